"""Names: ids of clips, and templates of film names that are safe as paths and in Snakemake's rules."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from stages.plan.takes import without_take

LONGEST_ID, LONGEST_ID_BYTES = 64, 120
RESERVED_IDS = {"steps", "plan", "config", "score", "scores", "page"}  # names of other files of a run
NUMBER_FIELDS = ("idx", "link", "seed", "sample", "take", "rank", "resolution")
TEXT_FIELDS = ("clip", "stem", "model", "model_type", "image")
TEMPLATE_FIELDS = (*TEXT_FIELDS, *NUMBER_FIELDS)
WIDTH = re.compile(r"\d{0,2}d")  # as in {link:02d}
PATTERN = re.compile(r"[{}<>\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # braces and <> have a meaning to Snakemake
REPEATING = re.compile(r"(.+?)\1{19}$")  # Snakemake mistakes such a wildcard value for a recursion
LONGEST_PATH = 3000  # bytes, of 4096: names are appended to it
LONGEST = 200  # bytes of a name: file systems allow 255, and names of logs and temporary files are longer


def is_id(text: str) -> bool:
    """Whether a text is an id of a clip, or of a take: letters of any script, digits, dots, dashes and underscores."""
    of_clip = without_take(text)  # a picked take is a clip of the next run
    return (
        text[:1].isalnum()
        and all(map(is_part_of_id, text))
        and len(of_clip) <= LONGEST_ID
        and len(of_clip.encode()) <= LONGEST_ID_BYTES
        and unicodedata.is_normalized("NFC", text)
        and text not in RESERVED_IDS
    )


def is_part_of_id(char: str) -> bool:
    return char.isalnum() or char in "._-" or unicodedata.category(char).startswith("M")  # marks are parts of letters


def slug(text: str) -> str:
    """A clip id derived from text: its letters and digits. An id that is shortened ends in a hash of the text."""
    plain = unicodedata.normalize("NFC", text)
    kept = re.sub("-+", "-", "".join(char if is_part_of_id(char) else "-" for char in plain)).rstrip("-._")
    while kept and not kept[0].isalnum():
        kept = kept[1:]
    return kept if is_id(kept) else with_digest(kept, text)


def with_digest(kept: str, text: str) -> str:
    """An id that begins as `kept` and ends in a hash of `text`."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    shortened = kept[: LONGEST_ID - 7].encode()[: LONGEST_ID_BYTES - 7].decode(errors="ignore")
    return f"{shortened or 'clip'}-{digest}"


def distinct_ids(names: Sequence[str]) -> dict[str, str]:
    """The ids of the files of a folder, by name: their stems. Where stems give one id, endings and hashes are added."""
    found: dict[str, str] = {}
    for derive in (_from_stem, _from_stem_and_ending, lambda name: with_digest(_from_stem_and_ending(name), name)):
        ids = {name: derive(name) for name in names if name not in found}
        count = Counter([*ids.values(), *found.values()])
        found |= {name: identity for name, identity in ids.items() if count[identity] == 1}
    return found


def _from_stem(name: str) -> str:
    return slug(PurePosixPath(name).stem)


def _from_stem_and_ending(name: str) -> str:
    path = PurePosixPath(name)
    return slug(f"{path.stem}-{path.suffix.removeprefix('.')}")


def part_of_name(stem: str) -> str:
    """A file's stem as a part of a film's name: unchanged, or a `slug` if it is long or has unsafe characters."""
    return slug(stem) if PATTERN.search(stem) or len(stem.encode()) > LONGEST // 2 else stem


def template_fault(template: str) -> str | None:
    """What is wrong with a name template, or None. Its fields are plain; those of numbers may have a width."""
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
        if conversion or (form and not (name in NUMBER_FIELDS and WIDTH.fullmatch(form))):
            return f"write the field as {{{name}}}" + (
                f", or {{{name}:02d}} for two digits" if name in NUMBER_FIELDS else ""
            )
    return None


def template_fields(template: str) -> set[str]:
    """The names of the fields of a template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def length_fault(path: str) -> str | None:
    """Error text for a path, or a name in it, that is longer than file systems allow, or None."""
    if any(len(part.encode()) > LONGEST for part in path.split("/")) or len(path.encode()) > LONGEST_PATH:
        return f"a name has at most {LONGEST} bytes, a path {LONGEST_PATH}"
    return None


def path_fault(name: str) -> str | None:
    """What is wrong with the name of a film, a path within the folder of its run, or None."""
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
