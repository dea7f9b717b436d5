"""C2PA manifests in videos (c2pa.org): a signed statement of what made a video, by the library c2pa-python."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.media.marks import Marks
from stages.runtime.artifacts import file_digest
from stages.runtime.errors import ItemError, UsageError, one_line
from stages.runtime.files import replacing

ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
FORMAT = "video/mp4"
UNTRUSTED = "signingCredential.untrusted"  # C2PA's code
ASSERTION = "org.kinemake.marks"  # label of the assertion with the marks


@dataclass(frozen=True)
class Signature:
    """What the C2PA manifest of a video says: whether it is valid for these bytes, the name in the certificate, whether an
    authority that the library trusts vouches for that name, and the faults by C2PA's codes."""

    is_valid: bool
    signer: str
    is_trusted: bool
    faults: tuple[str, ...]


def library() -> Any:
    """The module c2pa. Raises UsageError where it is not installed."""
    try:
        import c2pa
    except ImportError:
        raise UsageError("the package c2pa-python is not installed", "pip install 'kinemake[c2pa]'") from None
    return c2pa


def sign(video: Path, output: Path, marks: Marks, key: Path, chain: Path, algorithm: str) -> None:
    """Write a copy of an mp4 with a C2PA manifest, which states its marks, to `output`.

    `key` is a PEM file with a private key, `chain` one with its certificate and those that certify it. Nothing is sent to a
    time stamp authority. Raises UsageError for a key or certificates that cannot sign, ItemError for a file that cannot be
    signed.
    """
    c2pa = library()
    agent = {"name": marks.software, "version": marks.version}
    action = {"action": "c2pa.created", "digitalSourceType": marks.source, "softwareAgent": agent}
    facts = {**asdict(marks), "seed": [*map(str, marks.seed)], "sha256": file_digest(video)}  # the library packs numbers
    assertions = [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}, {"label": ASSERTION, "data": facts}]
    manifest = {"claim_generator_info": [agent], "title": output.name, "format": FORMAT, "assertions": assertions}
    try:
        texts = chain.read_bytes(), key.read_bytes()
        info = c2pa.C2paSignerInfo(algorithm.encode(), *texts, None)
        signer = c2pa.Signer.from_info(info)
    except (c2pa.C2paError, OSError) as error:
        remedy = f"give PEM files for {algorithm}, the key as openssl pkcs8 -topk8 -nocrypt -in {key} writes it"
        raise UsageError(f"{key} and {chain} cannot sign ({one_line(error)})", remedy) from None
    try:
        with replacing(output) as temporary:
            c2pa.Builder.from_json(json.dumps(manifest)).sign_file(video, temporary, signer)
    except c2pa.C2paError as error:
        raise ItemError(f"{video} cannot be signed ({one_line(error)})", "check the certificates and the video") from None


def read_signature(video: Path) -> Signature | None:
    """What the manifest of a video says; None without one. Raises UsageError without the library, ItemError for a fault."""
    c2pa = library()
    try:
        reader = c2pa.Reader.try_create(video)
    except c2pa.C2paError as error:
        raise ItemError(f"the C2PA manifest of {video} cannot be read ({one_line(error)})", "sign it again") from None
    if reader is None:
        return None
    manifest = reader.get_active_manifest() or {}
    failed = (reader.get_validation_results() or {}).get("activeManifest", {}).get("failure", [])
    faults = tuple(one["code"] for one in failed if one["code"] != UNTRUSTED)
    signer = manifest.get("signature_info", {})
    state = reader.get_validation_state()
    name = signer.get("common_name") or signer.get("issuer") or "an unnamed signer"
    return Signature(state in ("Valid", "Trusted"), name, state == "Trusted", faults)
