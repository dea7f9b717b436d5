"""Read and write the files that pass between stages; `kinds` describes their contents.

The output of an item is one typed file. Tensors are stored as `.safetensors`; the metadata of its header holds kind,
version, fields and provenance. Pixels and text are stored as an index, a `.json` file that lists its member files with their
digests. The path of a member is the path of the index without its ending, plus the member's suffix: `clip.json` has the
members `clip.mp4` and `clip.last.png`. Members are written before their index. A film is the exception: users expect an
`.mp4`, so the `.mp4` is the declared output and the index lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.canonical import canonical_json, parse_json
from stages.runtime.errors import ItemError, one_line
from stages.runtime.files import file_fault, open_plain, read_plain, replacing
from stages.runtime.kinds import FAILED, KINDS, disagreement, violation
from stages.runtime.safetensors_header import read_whole_header, write_header

if TYPE_CHECKING:
    import torch

INDEX_LIMIT = 512 * 2**20  # bytes; a million frames are less

NOT_IN_DIGEST = ("model", "pick")  # "weights" identifies the model, and the members the take


@dataclass(frozen=True)
class Failure:
    """Why an item failed. It takes the place of the item's output, so that later stages pass it on."""

    stage: str
    item: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.stage} of {self.item}: {self.reason}" + (f": {self.remedy}" if self.remedy else "")


class Contents(dict):
    """The fields or tensors of an artifact, by name.

    Looking up a missing name raises ItemError, because the file is at fault.
    """

    def __init__(self, path: Path, called: str, contents: Mapping[str, Any]):
        super().__init__(contents)
        self._path, self._called = path, called

    def __missing__(self, name: str) -> None:
        raise ItemError(f"{self._path} lacks {self._called}{name}", "make it again")


class Artifact:
    """A validated artifact: its header is read, its fields are complete, its members exist.

    Tensors are loaded on demand only.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], header: Mapping[str, Any] | None = None):
        self.path = Path(path)
        self.kind: str = head["kinemake.kind"]
        self.fields: dict[str, Any] = Contents(self.path, "", head.get("fields", {}))
        self.members: dict[str, dict[str, Any]] = head.get("members", {})
        self.provenance = _with_programs(head.get("provenance", []), head.get("programs", {}))
        self._header = header

    @property
    def failure(self) -> Failure | None:
        return Failure(**self.fields) if self.kind == FAILED else None

    def member(self, suffix: str) -> Path:
        """Path of the member with this suffix. Raises ItemError if the index does not list it."""
        if suffix not in self.members:
            raise ItemError(f"{self.path} has no member {suffix}", f"it holds {', '.join(self.members) or 'none'}")
        return member_path(self.path, suffix)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, on the CPU. Raises ItemError for a truncated file and for NaN or infinite values."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(self.path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ItemError(f"{self.path} is not a whole Kinemake file ({one_line(error)})", "make it again") from None
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ItemError(f"{name} in {self.path} has NaN or infinite numbers", "make it again")
        return Contents(self.path, "the tensor ", tensors)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shapes of the tensors, by name. Empty for an index."""
        return {name: spec["shape"] for name, spec in (self._header or {}).items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content. It leaves out the provenance (seconds, machine), the name of the model, and of what a take
        was picked."""
        fields = {name: value for name, value in self.fields.items() if name not in NOT_IN_DIGEST}
        content = {"kind": self.kind, "fields": fields, "members": self.members}
        sha = hashlib.sha256(canonical_json(content))
        if self.path.suffix == ".safetensors":
            sha.update(canonical_json(self._header))
            with open_plain(self.path) as file:
                (length,) = struct.unpack("<Q", file.read(8))
                file.seek(8 + length)
                while chunk := file.read(2**20):
                    sha.update(chunk)
        return sha.hexdigest()


def member_path(index: Path, suffix: str) -> Path:
    return index.parent / (index.name.removesuffix(index.suffix) + suffix)


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file. Raises OSError, also if the path is not a regular file."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------- write


def write_index(
    path: Path, kind: str, fields: Mapping[str, Any], members: Iterable[str] = (), provenance: list | None = None
) -> None:
    """Write the index of members that already lie beside `path`. Raises ItemError for fields that do not match the kind."""
    described = {}
    for suffix in members:
        member = member_path(path, suffix)
        described[suffix] = {"sha256": file_digest(member), "bytes": member.stat().st_size}
    head = {
        "kinemake.kind": kind,
        "kinemake.version": KINDS[kind].version,
        "fields": dict(fields),
        "members": described,
        **_without_programs(provenance or []),
    }
    check_fields(path, head)
    path.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")


def write_tensors(path: Path, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors and fields.

    `add_provenance` completes the file. Raises ItemError for content that does not match the kind.
    """
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, _metadata(kind, fields, []))
    read(path, (kind,))  # validates the new file


def _metadata(kind: str, fields: Mapping[str, Any], provenance: list) -> dict[str, str]:
    version = KINDS[kind].version if kind in KINDS else 1
    content = {"fields": fields, **_without_programs(provenance)}
    return {
        "kinemake.kind": kind,
        "kinemake.version": str(version),
        **{name: json.dumps(value, ensure_ascii=False) for name, value in content.items()},
    }


def add_provenance(path: Path, provenance: list[dict[str, Any]], fields: Mapping[str, Any] = {}) -> None:
    """Set the provenance, and update some fields, of a finished artifact that still has its temporary name."""
    if path.suffix == ".safetensors":
        header, data_start = read_whole_header(path)
        metadata = header["__metadata__"]
        changed = {**_without_programs(provenance), "fields": {**json.loads(metadata["fields"]), **fields}}
        metadata |= {name: json.dumps(value, ensure_ascii=False) for name, value in changed.items()}
        with replacing(path) as temporary, open(path, "rb") as source, open(temporary, "wb") as target:
            write_header(target, header)
            source.seek(data_start)
            while chunk := source.read(2**20):
                target.write(chunk)
    else:
        index = index_path(path)
        head = json.loads(index.read_text())
        head |= {"fields": {**head["fields"], **fields}, **_without_programs(provenance)}
        index.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")


def _without_programs(provenance: list[dict[str, Any]]) -> dict[str, Any]:
    """The provenance as a file holds it: records that name their program by its digest, and each program once.

    The records of a long chain are many, and their programs are one or two.
    """
    digests = [hashlib.sha256(canonical_json(one["program"])).hexdigest() if "program" in one else "" for one in provenance]
    return {
        "provenance": [{**one, "program": digest} if digest else one for one, digest in zip(provenance, digests)],
        "programs": {digest: one["program"] for one, digest in zip(provenance, digests) if digest},
    }


def _with_programs(provenance: list[dict[str, Any]], programs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records with their programs. In files of earlier versions each record holds its own."""
    return [
        {**one, "program": programs[one["program"]]} if isinstance(one.get("program"), str) else one for one in provenance
    ]


def index_path(path: Path) -> Path:
    """Path of the file that describes an artifact: the file itself, or the `.json` beside a film."""
    return path.with_suffix(".json") if path.suffix == ".mp4" else path


def write_failure(path: Path, failure: Failure) -> None:
    """Write a failure in the place of an artifact, in the format of that path's ending."""
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            with open(temporary, "wb") as file:
                write_header(file, {"__metadata__": _metadata(FAILED, asdict(failure), [])})
        else:
            head = {"kinemake.kind": FAILED, "kinemake.version": 1, "fields": asdict(failure)}
            temporary.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")


# ----------------------------------------------------------------------------------------------------------------- read


def read(path: Path, kinds: Iterable[str]) -> Artifact:
    """Read and validate an artifact; no tensor is loaded.

    Raises ItemError if the file is missing, truncated, or of another kind or version, or if a field, a tensor or a member is
    missing or does not match the kind. A failure is returned whatever `kinds` are asked for, so that the reader can pass it
    on.
    """
    path = Path(path)
    artifact, head = _open(path)
    if artifact.kind == FAILED:
        return artifact
    if artifact.kind not in kinds or path.suffix != KINDS[artifact.kind].suffix:
        raise ItemError(f"{path} holds {artifact.kind!r}", f"a file of kind {' or '.join(kinds)} is needed here")
    known = KINDS[artifact.kind].version
    if head["kinemake.version"] != known:
        raise ItemError(
            f"{path} is of version {head['kinemake.version']} of kind {artifact.kind}, this program knows {known}",
            "make it again",
        )
    check_fields(path, head)
    _check_tensors(artifact)
    for suffix, facts in artifact.members.items():
        member = member_path(index_path(artifact.path), suffix)
        try:
            whole = member.is_file() and member.stat().st_size == facts["bytes"]
            digest = file_digest(member) if whole else ""
        except OSError as error:
            raise ItemError(f"{member}, a member of {path}, cannot be read ({error.strerror})", "make it readable") from None
        if not whole:
            raise ItemError(f"{member}, a member of {path}, is missing or not whole", f"remove {path} and run again")
        if digest != facts["sha256"]:
            raise ItemError(
                f"{member}, a member of {path}, was changed after it was written", f"remove {path} and run again"
            )
    return artifact


def read_description(path: Path) -> Artifact:
    """Read the description of an artifact of any kind, without validation against it.

    Raises ItemError for any other file.
    """
    return _open(path)[0]


def read_failure(path: Path | str) -> Failure | None:
    """The failure stored at `path`, or None if there is no file, another artifact, or an unreadable one.

    The first 80 bytes identify a failure, because a plan checks every file of thousands of clips.
    """
    try:
        with open_plain(path) as file:
            if f'"kinemake.kind": "{FAILED}"'.encode() not in file.read(80):
                return None
        return _open(Path(path))[0].failure
    except (OSError, ItemError):
        return None


def _open(path: Path) -> tuple[Artifact, dict[str, Any]]:
    if fault := file_fault(path):
        raise ItemError(f"{path} {fault}", "mend the path, or run the stage that makes it first")
    header = None
    try:
        if path.suffix == ".safetensors":
            header, _ = read_whole_header(path)
            metadata = header.pop("__metadata__", {})
            head = {
                "kinemake.kind": metadata["kinemake.kind"],
                "kinemake.version": int(metadata["kinemake.version"]),
                "fields": parse_json(metadata["fields"]),
                "provenance": parse_json(metadata["provenance"]),
                "programs": parse_json(metadata.get("programs", "{}")),
            }
        else:
            head = parse_json(_read_index(path))
        if problem := violation("head", head):
            raise ValueError(problem)
        if head["kinemake.kind"] == FAILED and (problem := violation(FAILED, head)):
            raise ValueError(problem)
        return Artifact(path, head, header), head
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ItemError(f"{path} is not a whole Kinemake file ({one_line(error)})", "make it again") from None


def _read_index(path: Path) -> bytes:
    """The text of an index. Raises ItemError if there is none, OSError if it cannot be read."""
    index = index_path(path)
    try:
        return read_plain(index, INDEX_LIMIT)
    except FileNotFoundError:
        reason = f"{path} has no {index.name} beside it, which says what it is"
        raise ItemError(reason, "give a result of Kinemake") from None


def check_fields(path: Path, head: Mapping[str, Any]) -> None:
    """Validate the description of an artifact against its kind. Raises ItemError."""
    kind = KINDS[head["kinemake.kind"]]
    if missing := [name for name, field in kind.fields.items() if field.required and name not in head["fields"]]:
        raise ItemError(f"{path} lacks {', '.join(missing)} of kind {kind.name}", "make it again")
    if problem := violation(kind.name, head):
        raise ItemError(f"{path} is not a whole Kinemake file ({problem})", "make it again")


def _check_tensors(artifact: Artifact) -> None:
    """Validate the tensors in the header against the kind and the fields. Sizes with the same letter must be equal."""
    bound: dict[str, int] = {}
    header = artifact._header or {}
    for spec in KINDS[artifact.kind].tensors:
        found = header.get(spec.name)
        if found is None:
            if spec.required:
                raise ItemError(f"{artifact.path} lacks the tensor {spec.name}", "make it again")
            continue
        if found["dtype"] not in spec.dtypes:
            raise ItemError(f"{spec.name} in {artifact.path} is {found['dtype']}", f"{' or '.join(spec.dtypes)} is needed")
        agrees = len(found["shape"]) == len(spec.shape) and all(
            size > 0 and size == (bound.setdefault(want, size) if isinstance(want, str) and want else want or size)
            for size, want in zip(found["shape"], spec.shape)
        )
        if not agrees:
            raise ItemError(
                f"{spec.name} in {artifact.path} has shape {found['shape']}",
                f"({', '.join(str(s) or 'any' for s in spec.shape)}) is needed, with {bound or 'any sizes'}",
            )
    if problem := disagreement(artifact.fields, bound):
        raise ItemError(f"{artifact.path} is not a whole Kinemake file ({problem})", "make it again")
