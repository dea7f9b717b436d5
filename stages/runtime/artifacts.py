"""The files between stages: every kind, its tensors and its fields, written and checked in one place.

An item's output is one typed file. Tensors travel in `.safetensors` (kind, version, fields and provenance in the header's
metadata); pixels and text as an index, `.json`, that lists its member files with their digests. A member's path is the
index's path without its ending, plus the member's suffix: `clip.json` has `clip.mp4` and `clip.last.png`. Members are in
place before the index is. The film is the exception that users expect: there the `.mp4` is declared, its index a member.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.errors import ItemError

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100 * 2**20  # bytes; the safetensors library's own limit
FAILED = "failed"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of an artifact. A letter in `shape` stands for one size throughout the file, "" for any size."""

    name: str
    shape: tuple[int | str, ...]
    dtypes: tuple[str, ...]
    help: str
    required: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of artifact: `fields` maps a required field to what it says, `members` the files of an index."""

    name: str
    version: int
    suffix: str
    help: str
    fields: Mapping[str, str]
    tensors: tuple[TensorSpec, ...] = ()
    members: Mapping[str, str] = field(default_factory=dict)


MODEL_FIELDS = {
    "model": "name of the model, as declared or as given",
    "family": "family of the model",
    "variant": "variant of the family (14b or 5b for wan)",
    "weights": "digest of the weights that the stage used",
}
SIZE_FIELDS = {"width": "pixels", "height": "pixels", "num_frames": "number of frames"}
RATE_FIELDS = {"fps": 'frames per second, as a fraction in text: "24/1"'}
HALF_OR_FULL = ("BF16", "F16", "F32")

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "frames",
            1,
            ".json",
            "Frames of a video as PNG files: upright, square pixels, 8-bit RGB, resized to the size that was asked for.",
            {
                "width": "pixels",
                "height": "pixels",
                "select": "which frames: last, tail, segments, first, keyframes or all",
                "frames": "per frame: index in the video, time in seconds, suffix of its PNG, and canny, of its edges",
                "source": "facts of the video: stream, size, orientation, rate, duration, frames declared, codec, colours",
            },
            members={
                "/NNNNNN.png": "a frame, by its index in the video",
                "/NNNNNN.canny.png": "its hard edges, where asked for",
            },
        ),
        Kind(
            "caption",
            1,
            ".json",
            "A description of a video and the prompt made of it.",
            {
                "raw": "what the model said, untouched; empty when the prompt was given",
                "prompt": "the prompt for the generator: prefix and cleaned description, or the prompt that was given",
                "frames": "indices of the video's frames that the model saw",
                "tokens": "number of tokens that went into the model and came out of it",
                **MODEL_FIELDS,
            },
        ),
        Kind(
            "encoded",
            1,
            ".safetensors",
            "All that the denoiser needs: prompt embeddings, condition latents, mask.",
            {
                **MODEL_FIELDS,
                **SIZE_FIELDS,
                "prompt": "prompt",
                "negative_prompt": "negative prompt",
                "raw": "raw caption",
            },
            tensors=(
                TensorSpec(
                    "prompt_embeds", ("P", "L", "D"), HALF_OR_FULL, "text embeddings, a row per prompt; padding is zero"
                ),
                TensorSpec("negative_prompt_embeds", (1, "L", "D"), HALF_OR_FULL, "the same of the negative prompt", False),
                TensorSpec("image_embeds", (1, "N", "D"), HALF_OR_FULL, "tokens of the picture", False),
                TensorSpec("negative_image_embeds", (1, "N", "D"), HALF_OR_FULL, "the same of plain grey", False),
                TensorSpec("image_latents", (1, "C", "", "h", "w"), ("F32",), "normalised latents of the condition", False),
                TensorSpec(
                    "mask", (1, "", "T", "h", "w"), ("U8",), "1 where the condition is known, 0 where it is made", False
                ),
                TensorSpec("pixels", ("K", 3, "H", "W"), ("U8",), "keyframes of the source", False),
                TensorSpec("control", ("K", "H", "W"), ("U8",), "what a ControlNet is shown of them", False),
                TensorSpec("masks", ("K", "H", "W"), ("U8",), "255 where something is in front in them", False),
                TensorSpec("flow_forward", ("M", 2, "H", "W"), ("F16",), "flow of pairs of keyframes, in pixels", False),
                TensorSpec("flow_backward", ("M", 2, "H", "W"), ("F16",), "the same from the second to the first", False),
                TensorSpec("occluded_forward", ("M", "H", "W"), ("U8",), "1 where that flow cannot be trusted", False),
                TensorSpec("occluded_backward", ("M", "H", "W"), ("U8",), "the same from the second to the first", False),
            ),
        ),
        Kind(
            "latents",
            1,
            ".safetensors",
            "Final latents in the model's normalised space.",
            {**MODEL_FIELDS, **SIZE_FIELDS, "prompt": "prompt", "raw": "raw caption", "seed": "seed of the noise"},
            tensors=(TensorSpec("latents", (1, "C", "T", "h", "w"), ("F32",), "final latents"),),
        ),
        Kind(
            "clip",
            1,
            ".json",
            "A clip as pixels.",
            {
                **MODEL_FIELDS,
                **SIZE_FIELDS,
                **RATE_FIELDS,
                "prompt": "prompt",
                "raw": "raw caption",
                "seed": "seed of the noise",
                "statistics": "colour, saturation and sharpness of the first frame, the last one and all: tells drift",
            },
            members={
                ".mp4": "the clip, H.264",
                ".last.png": "the last frame, lossless: what the next link starts from",
                ".mkv": "the clip, lossless (FFV1), where concat has to encode it again",
                ".gif": "the clip as a GIF, where asked for",
                "/NNNNNN.png": "its frames, where asked for",
                ".sheet.png": "a contact sheet, where asked for",
            },
        ),
        Kind(
            "propagated",
            1,
            ".json",
            "Translated frames, keys and those between them, of a clip or a part of it, as PNG files of 8-bit RGB.",
            {
                "width": "pixels",
                "height": "pixels",
                "frames": "per frame: index in the video, time in seconds, suffix of its PNG",
                "keys": "indices of the clip's keys",
                "source": "facts of the video: stream, size, orientation, rate, duration, frames declared, codec, colours",
            },
            members={"/NNNNNN.png": "a frame, by its index in the video"},
        ),
        Kind(
            "film",
            1,
            ".mp4",
            "The finished film, encoded once, and its provenance.",
            {**SIZE_FIELDS, **RATE_FIELDS, "parts": "per part: file name, frames in the film"},
            members={".mp4": "the film, H.264", "/prompts_log.txt": "seed, source, caption and prompt of each link"},
        ),
    )
}


@dataclass(frozen=True)
class Failure:
    """Why an item could not be made; it travels down the pipeline in the item's place."""

    stage: str
    item: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.stage} of {self.item}: {self.reason}" + (f": {self.remedy}" if self.remedy else "")


class Artifact:
    """A checked artifact: header read, fields present, members in place. Tensors are loaded only on demand."""

    def __init__(self, path: Path, head: Mapping[str, Any], header: Mapping[str, Any] | None = None):
        self.path = Path(path)
        self.kind: str = head["kinemake.kind"]
        self.fields: dict[str, Any] = head.get("fields", {})
        self.members: dict[str, dict[str, Any]] = head.get("members", {})
        self.provenance: list[dict[str, Any]] = head.get("provenance", [])
        self._header = header

    @property
    def failure(self) -> Failure | None:
        return Failure(**self.fields) if self.kind == FAILED else None

    def member(self, suffix: str) -> Path:
        """Path of the member with this suffix. Raises ItemError when the index does not list it."""
        if suffix not in self.members:
            raise ItemError(f"{self.path} has no member {suffix}", f"it holds {', '.join(self.members) or 'none'}")
        return member_path(self.path, suffix)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the artifact says. Its provenance (seconds, machine) and the model's name do not enter."""
        fields = {name: value for name, value in self.fields.items() if name != "model"}  # the weights' digest is there
        content = {"kind": self.kind, "fields": fields, "members": self.members}
        sha = hashlib.sha256(canonical(content))
        if self.path.suffix == ".safetensors":
            sha.update(canonical(self._header))
            with open(self.path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                file.seek(8 + length)
                while chunk := file.read(2**20):
                    sha.update(chunk)
        return sha.hexdigest()


def member_path(index: Path, suffix: str) -> Path:
    return index.parent / (index.name.removesuffix(index.suffix) + suffix)


def canonical(value: Any) -> bytes:
    """JSON with one spelling per value: what digests are taken of."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------- write


def write_index(
    path: Path, kind: str, fields: Mapping[str, Any], members: Iterable[str] = (), provenance: list | None = None
) -> None:
    """Describe members that already lie beside `path`, and write the index."""
    described = {}
    for suffix in members:
        member = member_path(path, suffix)
        described[suffix] = {"sha256": file_digest(member), "bytes": member.stat().st_size}
    spec = KINDS[kind]
    head = {
        "kinemake.kind": kind,
        "kinemake.version": spec.version,
        "fields": dict(fields),
        "members": described,
        "provenance": provenance or [],
    }
    check_fields(path, head)
    path.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")


def write_tensors(path: Path, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors with their description. `add_provenance` completes the file."""
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, _metadata(kind, fields, []))
    read(path, (kind,))  # the writer is held to the contract too


def _metadata(kind: str, fields: Mapping[str, Any], provenance: list) -> dict[str, str]:
    version = KINDS[kind].version if kind in KINDS else 1
    return {
        "kinemake.kind": kind,
        "kinemake.version": str(version),
        "fields": json.dumps(fields, ensure_ascii=False),
        "provenance": json.dumps(provenance, ensure_ascii=False),
    }


def add_provenance(path: Path, provenance: list[dict[str, Any]]) -> None:
    """Set the provenance of a finished artifact (still under its temporary name)."""
    if path.suffix == ".safetensors":
        header, data_start = _read_whole_header(path)
        metadata = {**header["__metadata__"], "provenance": json.dumps(provenance, ensure_ascii=False)}
        grown = path.with_name(path.name + ".grown")
        with open(path, "rb") as source, open(grown, "wb") as target:
            _write_header(target, {**header, "__metadata__": metadata})
            source.seek(data_start)
            while chunk := source.read(2**20):
                target.write(chunk)
        grown.replace(path)
    else:
        index = index_path(path)
        head = json.loads(index.read_text())
        index.write_text(json.dumps({**head, "provenance": provenance}, indent=1, ensure_ascii=False) + "\n")


def index_path(path: Path) -> Path:
    """Where the description of an artifact stands: the file itself, or beside a film."""
    return path.with_suffix(".json") if path.suffix == ".mp4" else path


def write_failure(path: Path, failure: Failure) -> None:
    """Put a failure where an artifact would stand, in the form that its ending promises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.failed")
    if path.suffix == ".safetensors":
        with open(temporary, "wb") as file:
            _write_header(file, {"__metadata__": _metadata(FAILED, asdict(failure), [])})
    else:
        head = {"kinemake.kind": FAILED, "kinemake.version": 1, "fields": asdict(failure)}
        temporary.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _write_header(file, header: Mapping[str, Any]) -> None:
    """The head of a safetensors file: 8 bytes of length, then JSON padded with spaces to a multiple of 8."""
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


# ----------------------------------------------------------------------------------------------------------------- read


def read(path: Path, kinds: Iterable[str]) -> Artifact:
    """Read and check an artifact without loading a tensor.

    Raises ItemError when it is missing, torn, of another kind or version, or lacks a field, a tensor or a member.
    A failure is returned whatever kinds are asked for: its reader passes it on.
    """
    artifact, head = _open(Path(path))
    if artifact.kind == FAILED:
        return artifact
    if artifact.kind not in kinds:
        raise ItemError(f"{path} holds {artifact.kind!r}", f"a file of kind {' or '.join(kinds)} is needed here")
    known = KINDS[artifact.kind].version
    if int(head["kinemake.version"]) != known:
        raise ItemError(
            f"{path} is of version {head['kinemake.version']} of kind {artifact.kind}, this program knows {known}",
            "make it again",
        )
    check_fields(path, head)
    _check_tensors(artifact)
    for suffix, facts in artifact.members.items():
        member = member_path(index_path(artifact.path), suffix)
        if not member.is_file() or member.stat().st_size != facts["bytes"]:
            raise ItemError(f"{member}, a member of {path}, is missing or not whole", f"remove {path} and run again")
    return artifact


def read_failure(path: Path) -> Failure | None:
    """The failure that stands at `path`; None where there is no file, or a good or unreadable one.

    A failure is told by its first bytes: a plan looks at every file of thousands of clips.
    """
    try:
        with open(path, "rb") as file:
            if f'"kinemake.kind": "{FAILED}"'.encode() not in file.read(80):
                return None
        return _open(Path(path))[0].failure
    except (OSError, ItemError):
        return None


def _open(path: Path) -> tuple[Artifact, dict[str, Any]]:
    if not path.is_file():
        raise ItemError(f"{path} is missing", "run the stage that makes it first")
    try:
        if path.suffix == ".safetensors":
            header, _ = _read_whole_header(path)
            metadata = header.pop("__metadata__", {})
            head = {
                **metadata,
                "fields": json.loads(metadata["fields"]),
                "provenance": json.loads(metadata["provenance"]),
            }
            return Artifact(path, head, header), head
        head = json.loads(index_path(path).read_text())
        return Artifact(path, head), head
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ItemError(f"{path} is not a whole Kinemake file ({error})", "make it again") from None


def _read_whole_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a whole safetensors file and the offset of its data."""
    header, start = read_header(path)
    if whole_size(header, start) != path.stat().st_size:
        raise ValueError("its data is cut off")
    return header, start


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset of its data; read by hand because stages without torch do it too."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(HEADER_LIMIT, path.stat().st_size - 8):
            raise ValueError("its header is longer than the file")
        return json.loads(file.read(length)), 8 + length


def whole_size(header: Mapping[str, Any], start: int) -> int:
    """Bytes that a safetensors file with this header has when nothing of it is missing."""
    return start + max((spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__"), default=0)


def check_fields(path: Path, head: Mapping[str, Any]) -> None:
    kind = KINDS[head["kinemake.kind"]]
    if missing := [name for name in kind.fields if name not in head["fields"]]:
        raise ItemError(f"{path} lacks {', '.join(missing)} of kind {kind.name}", "make it again")


def _check_tensors(artifact: Artifact) -> None:
    """Hold the tensors in the header to the kind's table; sizes named by the same letter must agree."""
    bound: dict[str, int] = {}
    for spec in KINDS[artifact.kind].tensors:
        found = artifact._header.get(spec.name)
        if found is None:
            if spec.required:
                raise ItemError(f"{artifact.path} lacks the tensor {spec.name}", "make it again")
            continue
        if found["dtype"] not in spec.dtypes:
            raise ItemError(f"{spec.name} in {artifact.path} is {found['dtype']}", f"{' or '.join(spec.dtypes)} is needed")
        agrees = len(found["shape"]) == len(spec.shape) and all(
            size == (bound.setdefault(want, size) if isinstance(want, str) and want else want or size)
            for size, want in zip(found["shape"], spec.shape)
        )
        if not agrees:
            raise ItemError(
                f"{spec.name} in {artifact.path} has shape {found['shape']}",
                f"({', '.join(str(s) or 'any' for s in spec.shape)}) is needed, with {bound or 'any sizes'}",
            )
