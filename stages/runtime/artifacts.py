"""The files between stages, written and read in one place; `kinds` describes what they hold.

An item's output is one typed file. Tensors travel in `.safetensors` (kind, version, fields and provenance in the header's
metadata); pixels and text as an index, `.json`, that lists its member files with their digests. A member's path is the
index's path without its ending, plus the member's suffix: `clip.json` has `clip.mp4` and `clip.last.png`. Members are in
place before the index is. The film is the exception that users expect: there the `.mp4` is declared, its index a member.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.errors import ItemError, one_line
from stages.runtime.files import file_fault, open_plain, read_plain, replacing
from stages.runtime.kinds import FAILED, ITEM_BYTES, KINDS, disagreement, validator

if TYPE_CHECKING:
    import torch

HEADER_LIMIT = 100 * 2**20  # bytes; the safetensors library's own limit
INDEX_LIMIT = 512 * 2**20  # bytes; a million frames are less


@dataclass(frozen=True)
class Failure:
    """Why an item could not be made; it travels down the pipeline in the item's place."""

    stage: str
    item: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.stage} of {self.item}: {self.reason}" + (f": {self.remedy}" if self.remedy else "")


class Contents(dict):
    """What an artifact holds, by name. To ask for what it lacks is an ItemError: it is the file that is at fault."""

    def __init__(self, path: Path, called: str, contents: Mapping[str, Any]):
        super().__init__(contents)
        self._path, self._called = path, called

    def __missing__(self, name: str) -> None:
        raise ItemError(f"{self._path} lacks {self._called}{name}", "make it again")


class Artifact:
    """A checked artifact: header read, fields present, members in place. Tensors are loaded only on demand."""

    def __init__(self, path: Path, head: Mapping[str, Any], header: Mapping[str, Any] | None = None):
        self.path = Path(path)
        self.kind: str = head["kinemake.kind"]
        self.fields: dict[str, Any] = Contents(self.path, "", head.get("fields", {}))
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
        """All tensors, on the CPU. Raises ItemError for a torn file, and for numbers that are NaN or infinite."""
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
        """Sizes of the tensors by name; none where pixels or text are held."""
        return {name: spec["shape"] for name, spec in (self._header or {}).items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the artifact says. Its provenance (seconds, machine) and the model's name do not enter."""
        fields = {name: value for name, value in self.fields.items() if name != "model"}  # the weights' digest is there
        content = {"kind": self.kind, "fields": fields, "members": self.members}
        sha = hashlib.sha256(canonical(content))
        if self.path.suffix == ".safetensors":
            sha.update(canonical(self._header))
            with open_plain(self.path) as file:
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
    """SHA-256 of a plain file. Raises OSError, also for what is none."""
    with open_plain(path) as file:
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
    head = {
        "kinemake.kind": kind,
        "kinemake.version": KINDS[kind].version,
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
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            with open(temporary, "wb") as file:
                _write_header(file, {"__metadata__": _metadata(FAILED, asdict(failure), [])})
        else:
            head = {"kinemake.kind": FAILED, "kinemake.version": 1, "fields": asdict(failure)}
            temporary.write_text(json.dumps(head, indent=1, ensure_ascii=False) + "\n")


def _write_header(file, header: Mapping[str, Any]) -> None:
    """The head of a safetensors file: 8 bytes of length, then JSON padded with spaces to a multiple of 8."""
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


# ----------------------------------------------------------------------------------------------------------------- read


def read(path: Path, kinds: Iterable[str]) -> Artifact:
    """Read and check an artifact without loading a tensor.

    Raises ItemError when it is missing, torn, of another kind or version, lacks a field, a tensor or a member, or has one
    that is not what the kind asks for. A failure is returned whatever kinds are asked for: its reader passes it on.
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


def read_failure(path: Path | str) -> Failure | None:
    """The failure that stands at `path`; None where there is no file, or a good or unreadable one.

    A failure is told by its first bytes: a plan looks at every file of thousands of clips.
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
            header, _ = _read_whole_header(path)
            metadata = header.pop("__metadata__", {})
            head = {
                "kinemake.kind": metadata["kinemake.kind"],
                "kinemake.version": int(metadata["kinemake.version"]),
                "fields": parse_json(metadata["fields"]),
                "provenance": parse_json(metadata["provenance"]),
            }
        else:
            head = parse_json(read_plain(index_path(path), INDEX_LIMIT))
        if problem := complaint("head", head):
            raise ValueError(problem)
        if head["kinemake.kind"] == FAILED and (problem := complaint(FAILED, head)):
            raise ValueError(problem)
        return Artifact(path, head, header), head
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ItemError(f"{path} is not a whole Kinemake file ({one_line(error)})", "make it again") from None


def parse_json(text: str | bytes) -> Any:
    """The value of JSON in UTF-8. Raises ValueError, also for NaN, half surrogates and a nesting too deep to be read."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        value = json.loads(text, parse_constant=refuse)
        canonical(value)  # all that is read may come into a digest
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def _read_whole_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a whole safetensors file and the offset of its data."""
    header, start = read_header(path)
    if whole_size(header, start) != path.stat().st_size:
        raise ValueError("its data is cut off")
    return header, start


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset of its data; read by hand because stages without torch do it too.

    Raises ValueError for what is no such header.
    """
    with open_plain(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(HEADER_LIMIT, path.stat().st_size - 8):
            raise ValueError("its header is longer than the file")
        header = parse_json(file.read(length))
    if problem := complaint("header", header) or layout_problem(header):
        raise ValueError(problem)
    return header, 8 + length


def layout_problem(header: Mapping[str, Any]) -> str:
    """What is wrong with the places of the tensors, which follow one another without a gap; empty where nothing is."""
    end = 0
    specs = {name: spec for name, spec in header.items() if name != "__metadata__"}
    for name, spec in sorted(specs.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = spec["data_offsets"]
        if start != end or stop - start != math.prod(spec["shape"]) * ITEM_BYTES[spec["dtype"]]:
            return f"its tensor {name} is not where it should be"
        end = stop
    return ""


def whole_size(header: Mapping[str, Any], start: int) -> int:
    """Bytes that a safetensors file with this header has when nothing of it is missing."""
    return start + max((spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__"), default=0)


def check_fields(path: Path, head: Mapping[str, Any]) -> None:
    """Hold what an artifact says of itself to its kind's description. Raises ItemError."""
    kind = KINDS[head["kinemake.kind"]]
    if missing := [name for name, field in kind.fields.items() if field.required and name not in head["fields"]]:
        raise ItemError(f"{path} lacks {', '.join(missing)} of kind {kind.name}", "make it again")
    if problem := complaint(kind.name, head):
        raise ItemError(f"{path} is not a whole Kinemake file ({problem})", "make it again")


def complaint(name: str, value: Any) -> str:
    """The first thing in which a record is not what the validator `name` asks for; empty where there is none."""
    error = next(validator(name).iter_errors(value), None)
    return "" if error is None else f"{'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message[:200]}"


def _check_tensors(artifact: Artifact) -> None:
    """Hold the tensors in the header to the kind's table, and to the fields; sizes of one letter must agree."""
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
