"""Read clips from a list in the config, a JSONL, CSV or text file, or a folder of videos or images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.media import folders
from stages.media.options import IMAGE_ENDINGS, VIDEO_ENDINGS
from stages.plan.names import LONGEST_ID, RESERVED_IDS, distinct_ids, is_id, slug
from stages.plan.picks import as_clips, as_sources, kept, read_picks
from stages.plan.shots import read_shots
from stages.runtime.errors import UsageError, shown, text_remedy
from stages.runtime.text import is_plain, read_csv, read_jsonl, read_lines, read_text

OWN = ("id", "video", "image", "prompt", "prompts")  # keys of a row that are not options


def read_clips(source: Any, where: str, has_links: bool = True) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a run's `clips`, and warnings about them. Each row has a unique id.

    `has_links` says whether the clips of the run have links, as those of a chain do.
    Raises UsageError, naming the row, for an unreadable file and for an invalid or duplicate id.
    """
    warnings: list[str] = []
    if isinstance(source, list):
        rows = [(f"clip {number} of {where}", dict(row)) for number, row in enumerate(source, 1)]
    elif isinstance(source, Mapping) and "films" in source:
        rows = as_sources(kept(read_picks(source["films"])), source["films"], warnings)
    elif isinstance(source, Mapping) and "shots" in source:
        rows = read_shots(source["shots"])
    elif isinstance(source, Mapping):
        rows = list(_folder_rows(source, warnings))
    else:
        rows = as_clips(kept(_file_rows(Path(os.path.expanduser(source)))), has_links)
    if not rows:
        raise UsageError(
            f"{where} has no clips" if isinstance(source, (list, Mapping)) else f"{source} has no clips", "add some"
        )
    seen: dict[str, str] = {}
    named = []
    for place, row in rows:
        row = _present(row, place)
        row["id"] = _identity(row, place)
        if row["id"] in seen:
            raise UsageError(f"{place} has the id {row['id']}, as {seen[row['id']]} has", "give one of them another id")
        seen[row["id"]] = place
        named.append(row)
    return named, warnings


def _present(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A row without null values and without blank values of its own keys; "~" is expanded. Raises UsageError."""
    row = {key: value for key, value in row.items() if value is not None}
    row = {key: value for key, value in row.items() if key not in (*OWN, "video_path") or not _is_blank(value)}
    for one, other in (("video", "video_path"), ("prompt", "prompts")):
        if one in row and other in row:
            raise UsageError(f"{place} has both {one} and {other}", "leave one of them out")
    if "video_path" in row:  # the name in LongLive's files
        row["video"] = row.pop("video_path")
    for key in ("video", "image"):
        if isinstance(row.get(key), str):
            row[key] = os.path.expanduser(row[key])
    return row


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _identity(row: Mapping[str, Any], place: str) -> str:
    """The id of a row: its own, or derived from the name of its file or from its prompt. Raises UsageError."""
    for key in ("video", "image", "prompt"):
        if key in row and not isinstance(row[key], str):
            raise UsageError(f"the {key} of {place} is {shown(row[key])}", text_remedy(row[key]))
    named_by = next((row[key] for key in ("id", "video", "image", "prompt") if key in row), None)
    if named_by is None:
        raise UsageError(
            f"{place} has no video, no image, no prompt and no id", f"it has {', '.join(map(str, row)) or 'nothing'}"
        )
    for kind in ("video", "image"):
        if not is_plain(row.get(kind, "")):
            raise UsageError(f"the name of the {kind} of {place} is not UTF-8", "rename the file")
    if "id" not in row:
        return derived_id(row)
    identity = row["id"]
    if not isinstance(identity, str):
        raise UsageError(f"the id of {place} is {shown(identity)}", text_remedy(identity))
    if not is_id(identity):
        raise UsageError(
            f"the id of {place} is {shown(identity)}",
            f"an id has 1 to {LONGEST_ID} letters, digits, dots, dashes or underscores, starts with a letter or digit, "
            f"and is not {', '.join(sorted(RESERVED_IDS))}",
        )
    return identity


def derived_id(row: Mapping[str, str]) -> str:
    """The id of a row that has none: from the name of its video or image, or from its prompt."""
    file = row.get("video", row.get("image"))
    return slug(Path(file).stem if file is not None else row["prompt"][:48])


def _folder_rows(source: Mapping[str, Any], warnings: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a folder of videos or images, with their prompts and masks.

    Prompts are text files with the same stems in a folder (for images by default their own folder), or a text file with one
    line per file in alphabetical order. Masks are videos with the same stems. Raises UsageError.
    """
    kind, endings = ("video", VIDEO_ENDINGS) if "videos" in source else ("image", IMAGE_ENDINGS)
    called = f"{kind}s"
    folder = _place(source[called])
    found = _files(folder, endings, called)
    if left := folders.unsupported_files(folder, endings):
        kinds = ", ".join(sorted({path.suffix.lower() for path in left}))
        taken = f"{called} of a folder are {', '.join(endings)}: convert them, or name them in a list of clips"
        warnings.append(
            f"{len(left)} files of {folder} are left out, the first is {left[0].name} (endings {kinds}); {taken}"
        )
    texts = _place(source["prompts"]) if "prompts" in source else folder if kind == "image" else None
    prompts = _read_prompts(found, texts, called) if texts else {}
    missing = source.get("missing_prompt", "caption")
    masks = folders.by_stem(_files(_place(source["masks"]), VIDEO_ENDINGS, "masks"), "masks") if "masks" in source else {}
    ids = distinct_ids([path.name for path in found])
    for path in found:
        row: dict[str, Any] = {"id": ids[path.name], kind: str(path)}
        if path.stem in masks:
            row["masks"] = str(masks[path.stem])
        elif "masks" in source:
            warnings.append(f"{path.name} has no masks in {source['masks']}")
        if prompts.get(path):
            row["prompt"] = prompts[path]
        elif texts:
            fate = "is skipped" if missing == "skip" else "will be captioned"
            where = texts / f"{path.stem}.txt" if os.path.isdir(texts) else f"in {texts}"
            warnings.append(f"{path.name} has no prompt {where} and {fate}")
            if missing == "skip":
                continue
        yield str(path), row


def _place(path: str) -> Path:
    return Path(os.path.expanduser(path))


def _files(folder: Path, endings: Sequence[str], called: str) -> list[Path]:
    """The files of a folder with one of these endings, sorted by name. Raises UsageError if there are none."""
    if not os.path.isdir(folder):
        raise UsageError(f"the folder of {called} {folder} does not exist", "mend the path")
    found = folders.files(folder, endings)
    if not found:
        raise UsageError(f"the folder {folder} has no {called}", f"put {', '.join(endings)} files there")
    return found


def _read_prompts(found: Sequence[Path], source: Path, called: str) -> dict[Path, str]:
    """The prompt of each file, from a folder of texts or a text file; "" if it has none. Raises UsageError."""
    if os.path.isdir(source):
        texts = folders.by_stem(folders.files(source, folders.TEXT_ENDINGS), "prompts")
        return {path: read_text(texts[path.stem]).strip() if path.stem in texts else "" for path in found}
    if not os.path.isfile(source):
        raise UsageError(f"the folder of prompts {source} does not exist", "mend the path, or leave prompts out")
    lines = read_lines(source)
    if len(lines) != len(found):
        raise UsageError(
            f"{source} has {len(lines)} lines for {len(found)} {called}", "a line for each, by name; it may be empty"
        )
    return dict(zip(found, lines, strict=True))


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file (one object per line), a CSV file (with header), or a text file (one prompt per line)."""
    if os.path.isdir(path):
        raise UsageError(f"the file of clips {path} is a folder", "write clips: {videos: FOLDER}, or {images: FOLDER}")
    if not os.path.isfile(path):
        raise UsageError(f"the file of clips {path} does not exist", "mend the path")
    ending = path.suffix.lower()
    if ending == ".csv":
        yield from read_csv(path)
    elif ending == ".jsonl":
        for place, row in read_jsonl(path):
            if type(row.get("id")) is int:  # unlike YAML, JSON keeps the digits as written
                row["id"] = str(row["id"])
            yield place, row
    elif ending == ".txt":
        for number, prompt in enumerate(read_lines(path), 1):
            if prompt:
                yield f"line {number} of {path}", {"id": f"{number:03d}-{slug(prompt[:48])}", "prompt": prompt}
    else:
        raise UsageError(f"the file of clips {path} ends with {path.suffix!r}", "it must be .jsonl, .csv or .txt")
