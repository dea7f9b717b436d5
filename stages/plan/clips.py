"""Clips: rows of work, from a list in the config, a JSONL or CSV file, or a folder of videos or pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.media.options import PICTURE_ENDINGS, VIDEO_ENDINGS
from stages.runtime.errors import UsageError

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_IDS = {"steps", "plan", "config"}  # names of the run's own files


def read_clips(source: Any, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a run's `clips` and warnings about them. Every row has an id; no two have the same.

    Raises UsageError, naming the row, for a file that cannot be read and for a bad or doubled id.
    """
    warnings: list[str] = []
    if isinstance(source, list):
        rows = [(f"clip {number} of {where}", dict(row)) for number, row in enumerate(source, 1)]
    elif isinstance(source, Mapping):
        rows = list(_folder_rows(source, warnings))
    else:
        rows = list(_file_rows(Path(source)))
    seen: dict[str, str] = {}
    for place, row in rows:
        if "video_path" in row:  # as LongLive's files call it
            row["video"] = row.pop("video_path")
        named_by = next((row[key] for key in ("id", "video", "image", "prompt") if isinstance(row.get(key), str)), None)
        if "id" not in row and named_by is None:
            raise UsageError(
                f"{place} has no video, no picture, no prompt and no id", f"it has {', '.join(map(str, row)) or 'nothing'}"
            )
        for kind in ("video", "image"):
            if any("\udc80" <= letter <= "\udcff" for letter in str(row.get(kind))):  # bytes that are no letters
                raise UsageError(f"the name of the {kind} of {place} is not UTF-8", "rename the file")
        is_file = "video" in row or "image" in row
        row.setdefault("id", slug(Path(named_by).stem if is_file else named_by[:48]))
        identity = str(row["id"])
        if not ID.fullmatch(identity) or identity in RESERVED_IDS:
            raise UsageError(
                f"the id of {place} is {identity!r}",
                "an id has 1 to 64 letters, digits, dots, dashes or underscores, starts with a letter or digit, "
                f"and is not {', '.join(sorted(RESERVED_IDS))}",
            )
        if identity in seen:
            raise UsageError(f"{place} has the id {identity}, as {seen[identity]} has", "give one of them another id")
        seen[identity] = place
        row["id"] = identity
    return [row for _, row in rows], warnings


def _folder_rows(source: Mapping[str, Any], warnings: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A folder of videos or pictures, and their prompts: a folder of texts with the same stems (for pictures their own
    folder, unless another is named), or a text file with a line for each in the order of their names. Videos of masks have
    the same stems too."""
    kind, called, endings = (
        ("video", "videos", VIDEO_ENDINGS) if "videos" in source else ("image", "pictures", PICTURE_ENDINGS)
    )
    folder = Path(source[f"{kind}s"])
    found = _files(folder, endings, called)
    told = source.get("prompts", folder if kind == "image" else None)
    prompts = _prompts_beside(found, Path(told), called) if told else {}
    missing = source.get("missing_prompt", "caption")
    masks = {path.stem: path for path in _files(Path(source["masks"]), VIDEO_ENDINGS, "masks")} if "masks" in source else {}
    for path in found:
        row: dict[str, Any] = {kind: str(path)}
        if path.stem in masks:
            row["masks"] = str(masks[path.stem])
        elif "masks" in source:
            warnings.append(f"{path.name} has no masks in {source['masks']}")
        if prompts.get(path):
            row["prompt"] = prompts[path]
        elif told:
            fate = "is skipped" if missing == "skip" else "will be captioned"
            where = Path(told) / f"{path.stem}.txt" if Path(told).is_dir() else f"in {told}"
            warnings.append(f"{path.name} has no prompt {where} and {fate}")
            if missing == "skip":
                continue
        yield str(path), row


def _files(folder: Path, endings: Sequence[str], called: str) -> list[Path]:
    """The files of a folder that have one of these endings, by name. Raises UsageError where there is none."""
    if not folder.is_dir():
        raise UsageError(f"the folder of {called} {folder} does not exist", "mend the path")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    if not found:
        raise UsageError(f"the folder {folder} has no {called}", f"put {', '.join(endings)} files there")
    return found


def _prompts_beside(found: Sequence[Path], told: Path, called: str) -> dict[Path, str]:
    """The prompt of each file, empty where there is none. Raises UsageError."""
    if told.is_dir():
        texts = {path: told / f"{path.stem}.txt" for path in found}
        return {path: utf8_text(text).strip() if text.is_file() else "" for path, text in texts.items()}
    if not told.is_file():
        raise UsageError(f"the folder of prompts {told} does not exist", "mend the path, or leave prompts out")
    lines = [line.strip() for line in utf8_text(told).splitlines()]
    if len(lines) != len(found):
        raise UsageError(
            f"{told} has {len(lines)} lines for {len(found)} {called}", "a line for each, by name; it may be empty"
        )
    return dict(zip(found, lines, strict=True))


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A JSONL file (an object per line), a CSV file (a header, empty cells left out), a text file (a prompt per line)."""
    if not path.is_file():
        raise UsageError(f"the file of clips {path} does not exist", "mend the path")
    if path.suffix == ".csv":
        for number, cells in enumerate(csv.DictReader(io.StringIO(utf8_text(path))), 2):
            if None in cells or None in cells.values():
                raise UsageError(f"row {number} of {path} has another number of cells than the header", "mend the row")
            yield f"row {number} of {path}", {name: cell for name, cell in cells.items() if cell != ""}
    elif path.suffix == ".jsonl":
        for number, line in enumerate(utf8_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"line {number} of {path} is not JSON ({error})", "one object per line") from None
            if not isinstance(row, dict):
                raise UsageError(f"line {number} of {path} is not an object", 'write {"video": ...}')
            yield f"line {number} of {path}", row
    elif path.suffix == ".txt":
        for number, line in enumerate(utf8_text(path).splitlines(), 1):
            if prompt := line.strip():
                yield f"line {number} of {path}", {"id": f"{number:03d}-{slug(prompt[:48])}", "prompt": prompt}
    else:
        raise UsageError(f"the file of clips {path} ends with {path.suffix!r}", "it must be .jsonl, .csv or .txt")


def utf8_text(path: Path) -> str:
    """The file's text. Raises UsageError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start + 1})", "save it as UTF-8") from None


def slug(text: str) -> str:
    """A clip id made of a file's stem; with a short hash where letters were lost, so that two names stay two ids."""
    plain = unicodedata.normalize("NFKD", text)
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    lost = any(char.isalnum() or unicodedata.category(char).startswith("M") for char in plain if not char.isascii())
    if not kept or lost or len(kept) > 64:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        kept = f"{(kept or 'clip')[:57]}-{digest}"
    return kept
