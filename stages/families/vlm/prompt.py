"""Cleans a captioner's description to make a prompt of it."""

import re

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


def prompt_from(raw: str, prefix: str) -> str:
    """The prompt for a generator: prefix and cleaned caption; empty if the cleaned caption is empty."""
    cleaned = clean(raw)
    return f"{prefix.strip()} {cleaned}".strip() if cleaned else ""
