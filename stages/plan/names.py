"""Names: ids of clips, and templates of films' names that are safe as paths and in Snakemake's rules."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from pathlib import PurePosixPath

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED_IDS = {"steps", "plan", "config", "score"}  # names of the run's own files
NUMBER_FIELDS = ("idx", "link", "seed", "sample", "rank", "resolution")
TEXT_FIELDS = ("clip", "model", "model_type", "image")
TEMPLATE_FIELDS = (*TEXT_FIELDS, *NUMBER_FIELDS)
WIDTH = re.compile(r"\d{0,2}d")  # as in {link:02d}
PATTERN = re.compile(r"[{}<>\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # Snakemake reads braces and <> as its own signs
REPEATING = re.compile(r"(.+?)\1{19}$")  # Snakemake takes such a value of a wildcard for an endless loop
LONGEST_PATH = 3000  # bytes, of 4096: names are put behind it
LONGEST = 200  # bytes of a name: file systems take 255, and logs and temporary files have longer names


def slug(text: str) -> str:
    """A clip id made of a file's stem; with a short hash where letters were lost, so that two names stay two ids."""
    plain = unicodedata.normalize("NFKD", text)
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    lost = any(char.isalnum() or unicodedata.category(char).startswith("M") for char in plain if not char.isascii())
    if not kept or lost or len(kept) > 64:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
        kept = f"{(kept or 'clip')[:57]}-{digest}"
    return kept


def part_of_name(stem: str) -> str:
    """A file's stem as a part of a film's name: as it is, or as `slug` makes it where it is long or has odd characters."""
    return slug(stem) if PATTERN.search(stem) or len(stem.encode()) > LONGEST // 2 else stem


def template_fault(template: str) -> str | None:
    """What is wrong with a template of names, or None: its fields are plain, those of numbers may have a width."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"mend its braces ({error})"
    for text, name, form, conversion in parts:
        if PATTERN.search(text):
            return "leave out braces, < and >, and control characters"
        if name is None:
            continue
        if name not in TEMPLATE_FIELDS:
            return f"it has the field {name!r}, known are {', '.join(TEMPLATE_FIELDS)}"
        if conversion or form and not (name in NUMBER_FIELDS and WIDTH.fullmatch(form)):
            return f"write the field as {{{name}}}" + (
                f", or {{{name}:02d}} for two digits" if name in NUMBER_FIELDS else ""
            )
    return None


def length_fault(path: str) -> str | None:
    """Whether a path or a name in it is longer than file systems take."""
    if any(len(part.encode()) > LONGEST for part in path.split("/")) or len(path.encode()) > LONGEST_PATH:
        return f"a name has at most {LONGEST} bytes, a path {LONGEST_PATH}"
    return None


def path_fault(name: str) -> str | None:
    """What is wrong with a film's name, a path within the folder of its run, or None."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or path.parts[0].removesuffix(".mp4") in RESERVED_IDS:
        return f"a name stays inside the run's folder and is not {', '.join(sorted(RESERVED_IDS))}"
    if name != str(path):
        return f"write it as {path}"
    if PATTERN.search(name):
        return "leave out braces, < and >, and control characters"
    if fault := length_fault(name):
        return fault
    if name.count(".mp4") >= 20 and REPEATING.search(name):
        return "a name does not end in the same letters twenty times"
    if any(part != part.strip() or part.startswith(".") for part in path.parts):
        return "a name neither begins with a dot nor begins or ends with space"
    return None
