"""Errors, by whose fault they are: the class decides what happens next.

Each message is one sentence that names the thing, its value and the remedy, because the user sees nothing else.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from difflib import get_close_matches
from typing import Any


class KinemakeError(Exception):
    """Base class of the errors that a user sees as one sentence instead of a traceback."""

    def __init__(self, reason: str, remedy: str = ""):
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}: {remedy}" if remedy else reason)


class UsageError(KinemakeError):
    """The command line, the manifest or the config is wrong. The exit code is 2, and nothing has started."""


class ItemError(KinemakeError):
    """One item fails (corrupt video, wrong shape). The other items of the shard go on."""


class JobError(KinemakeError):
    """The whole job fails (weights missing, disk full, no GPU). The exit code is 1, and no item is marked as failed."""


def one_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """A text for the terminal: a space stands for each control character, such as those that colour or turn the text."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shown(value: Any) -> str:
    """A value as text for a message, at most about 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with thousands of digits, a list that contains itself
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def format_bytes(count: float) -> str:
    """A number of bytes as text: 5.8 MB, 28.6 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The question after a name that is spelled almost like a known one; "" for any other name."""
    near = get_close_matches(str(name), sorted(known), 1)
    return f"did you mean {near[0]}?" if near else ""


def is_scalar(value: Any) -> bool:
    """Whether YAML can produce this value from an unquoted word: a number, a boolean, a date."""
    return isinstance(value, (bool, int, float, date))


TYPE_NAMES = {  # of JSON, as a user calls them
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table of keys and values",
}


def type_remedy(types: Iterable[str]) -> str:
    """Remedy for a value of another type than these types of JSON."""
    return f"it must be {' or '.join(dict.fromkeys(TYPE_NAMES[name] for name in types))}"


def choice_remedy(choices: Iterable[Any]) -> str:
    """Remedy for a value that is none of the choices."""
    return f"it must be one of {', '.join(map(str, choices))}"


def first_of(names: Sequence[str]) -> str:
    """The first five names as text, with dots for further ones."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def text_remedy(value: Any) -> str:
    """Remedy for any value where text is required."""
    return in_quotes(value) if is_scalar(value) else "it must be text"


def in_quotes(value: Any) -> str:
    """Remedy for a scalar (see `is_scalar`) where text is required."""
    example = {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown(value)
    if isinstance(value, date):
        example = value.isoformat()
    return f'it must be text: write it in quotes, such as "{example}"'
