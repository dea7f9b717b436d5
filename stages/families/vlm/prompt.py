"""Cleans a captioner's description to make a prompt of it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stages.families.vlm.requests import PARTS

THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
FENCE = re.compile(r"^\s*(```.*|~~~.*|[-*_]{3,})\s*$")  # code fences and rules
LINE_START = re.compile(r"^\s*(?:>\s*)*(?:#{1,6}\s+|[-*+•]\s+|\d{1,3}[.)]\s+)?")  # quote, heading, bullet, number
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
EMPHASIS = re.compile(r"(\*{1,3}|(?<!\w)_{1,3}|_{1,3}(?!\w)|`+|~~)")
FILM = r"(?:video|clip|footage|scene|sequence|film|animation)"
SHOWS = (
    r"(?:shows?|depicts?|features?|captures?|presents?|showcases?|displays?|portrays?|illustrates?|contains?|"
    r"(?:begins|starts|opens) with)"
)
WE_SEE = r"(?:we\s+(?:can\s+)?see|there\s+(?:is|are))\s+"
OPENINGS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^(?:sure|certainly|of course)[,.!:]\s*",
        r"^here(?:'s| is)\s+(?:a|the)\s+[^.:]*?description[^.:]*?[:.]\s*",
        rf"^(?:this|the)\s+(?:\w+\s+)?{FILM}(?:\s+{FILM})?\s+{SHOWS}\s+(?:to us\s+|us\s+)?",
        rf"^in\s+(?:this|the)\s+(?:\w+\s+)?{FILM}(?:\s+{FILM})?(?:,\s+{WE_SEE}|\s+{WE_SEE}|,\s+)",
    )
]

PART = re.compile(rf'"({"|".join(PARTS)})"\s*:\s*"((?:[^"\\]|\\.)*)', re.IGNORECASE | re.DOTALL)  # the text may break off


def clean(raw: str) -> str:
    """Turn a caption into one line of plain sentences: without markdown, lists and openings such as "The video shows".

    Every line becomes a sentence of its own. The words are unchanged.
    """
    lines = [strip_markdown(line) for line in THOUGHT.sub("", raw).splitlines() if not FENCE.match(line)]
    lines = [line for line in lines if line]
    sentences = [line if line[-1] in ".!?:;,。！？" else f"{line}." for line in lines[:-1]]
    text = " ".join([*sentences, *lines[-1:]])
    for opening in OPENINGS:
        text = opening.sub("", text)
    return text[:1].upper() + text[1:]


def strip_markdown(line: str) -> str:
    """A line without its markdown, and with single spaces."""
    line = EMPHASIS.sub("", LINK.sub(r"\1", LINE_START.sub("", line)))
    return re.sub(r"\s+", " ", line).strip()


def prompt_from(raw: str, prefix: str, structure: Sequence[str] = ()) -> str:
    """The prompt for a generator: prefix and cleaned description; empty if the cleaned description is empty.

    Of a structured description, the parts of `structure` in this order, a sentence or more each. What is no structured
    description, or has none of these parts, is taken as prose.
    """
    parts = parse_structure(raw) if structure else {}
    texts = [clean(parts[name]) for name in structure if name in parts]
    cleaned = " ".join(text if text[-1] in ".!?。！？" else f"{text}." for text in texts if text) or clean(raw)
    return f"{prefix.strip()} {cleaned}".strip() if cleaned else ""


def is_structured(raw: str) -> bool:
    """Whether a description has a part of a structured one."""
    return bool(parse_structure(raw))


def parse_structure(raw: str) -> dict[str, str]:
    """The parts of a structured description that have text, by name.

    Text around the JSON, a trailing comma, and an object that breaks off are tolerated: small models write such.
    """
    text = THOUGHT.sub("", raw)
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(re.sub(r",\s*([}\]])", r"\1", text[start : end + 1]), strict=False)
    except (ValueError, RecursionError):
        found = {name: json_text(value) for name, value in PART.findall(text[max(start, 0) :])}
    if not isinstance(found, Mapping):
        return {}
    named = {str(name).strip().lower(): as_text(value) for name, value in found.items()}
    return {name: named[name] for name in PARTS if named.get(name)}


def json_text(value: str) -> str:
    """The text of the inside of a JSON string, which may break off within an escape."""
    try:
        return str(json.loads(f'"{value}"', strict=False))
    except ValueError:
        return value


def as_text(value: Any) -> str:
    """A value of JSON as text: the texts within it, with commas between them."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return ", ".join(filter(None, map(as_text, value))) if isinstance(value, list) else str(value or "").strip()
