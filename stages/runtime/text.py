"""Read text and data from people and other programs, and normalise it to UTF-8 with "\\n" line ends and plain values.

Lists of clips, prompts, captions, configs and manifests are all read here. Every function raises UsageError for unreadable
input and names the file and the line, row or key; no error of a library leaves this module.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from stages.runtime.errors import UsageError
from stages.runtime.places import dangling

ENCODINGS = {  # by byte order mark; UTF-32 first, because its mark starts with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
DELIMITERS = ",;\t"  # of CSV files, the usual one first; spreadsheets write ";" in locales with a decimal comma
SEPARATOR = re.compile(r'"?sep=(\t|[^\w\s"])"?\n', re.IGNORECASE)  # before the header: the delimiter, for Excel
MARKS = re.compile("^\ufeff+", re.MULTILINE)  # several in files that were concatenated
UNFIT = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: neither can be in a text file
FORMULA = re.compile(r"'*[=+\-@]")  # how a cell begins that a spreadsheet program runs as a formula, or that is kept from it
MAX_DEPTH = 50  # of nested tables and lists
MAX_VALUES = 1_000_000  # with anchors, a few lines of YAML can stand for billions


def read_text(path: Path | str) -> str:
    """A file's text without byte order marks, with "\\n" line ends. U+2028 and U+0085 do not end lines."""
    if not os.path.isfile(path):
        fault = "is no file" if os.path.exists(path) else dangling(path) or "does not exist"
        raise UsageError(f"{path} {fault}", "mend the path")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "make it readable") from None
    if encoding := next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), ""):
        raise UsageError(f"{path} is {encoding} text", "save it as UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start + 1})", "save it as UTF-8") from None
    text = MARKS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(f"line {line} of {path} has a NUL character", "save it as plain text in UTF-8")
    return text


def read_lines(path: Path | str) -> list[str]:
    """A file's lines, stripped."""
    return [line.strip() for line in read_text(path).removesuffix("\n").split("\n")]


class _Refused(Exception):
    """JSON that the library accepts, but whose meaning is ambiguous. The message is a predicate."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return values


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _Refused(f"has the number {text[:20]}, which is infinite")
    return number


def _no_number(text: str) -> NoReturn:
    raise _Refused(f"has {text}, which is no number of JSON")


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text. `where` names it in errors: "line 3 of clips.jsonl"."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON ({error})", "mend it, or write it by a program's JSON functions") from None
    except ValueError:  # of int()
        raise UsageError(f"{where} has a number of more than 4300 digits", "write a smaller one") from None
    except RecursionError:
        raise UsageError(f"{where} is nested too deep", f"at most {MAX_DEPTH} levels are read") from None
    except _Refused as refused:
        raise UsageError(f"{where} {refused}", "mend it") from None
    check_values(value, where)
    return value


def read_jsonl(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place: "line 3 of clips.jsonl". Blank lines are skipped."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number} of {path}"
        row = parse_json(line, place)
        if not isinstance(row, dict):
            raise UsageError(f"{place} is not an object", 'write one object per line, such as {"video": "a.mp4"}')
        yield place, row


def read_csv(path: Path | str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file below its header, each with its place as in a spreadsheet: "row 3 of clips.csv".

    Blank cells are left out, and so are rows and columns that have only blank cells.
    """
    text = read_text(path)
    if declared := SEPARATOR.match(text):
        text, delimiter = text[declared.end() :], declared[1]
    else:
        header = text.partition("\n")[0]
        delimiter = next((letter for letter in DELIMITERS if letter in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    names: list[str] = []
    number = 0
    while True:
        number += 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(f"row {number} of {path} {_csv_fault(error)}", "mend the row") from None
        place = f"row {number} of {path}"
        if not any(cells):
            continue
        if not names:
            names = [cell.strip() for cell in cells]
            if twice := next((name for name in names if name and names.count(name) > 1), ""):
                raise UsageError(f"{path} has two columns {twice}", "remove one of them")
            continue
        while len(cells) > len(names) and not cells[-1]:
            cells.pop()
        if len(cells) != len(names):
            raise UsageError(
                f"{place} has another number of cells than the header ({len(cells)}, not {len(names)})",
                f"mend the row: cells are separated by {delimiter!r}, and one that holds that is quoted",
            )
        row = dict(zip(names, cells, strict=True))
        if row.get(""):
            raise UsageError(f"{place} has {row['']!r} in a column without a name", "name the column in the first row")
        yield place, {name: cell for name, cell in row.items() if cell}


def as_cell(text: str) -> str:
    """A text as a cell of a CSV file. One that spreadsheet programs would run as a formula has a ' in front."""
    return f"'{text}" if FORMULA.match(text) else text


def text_of_cell(cell: str) -> str:
    """The text of which `as_cell` has made a cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _csv_fault(error: csv.Error) -> str:
    message = str(error)
    if "unexpected end" in message:
        return "opens a quote that is never closed"
    if "field larger" in message:
        return f"has a cell of more than {csv.field_size_limit()} characters, perhaps by a quote that is never closed"
    if "expected after" in message:
        return 'has text behind the closing quote of a cell (a quote within one is written "")'
    return f"is not CSV ({message})"


Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(Loader):
    """PyYAML's loader, except that a duplicate key is an error and merged tables have a limited size."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if len(set(keys)) < len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "merged tables grow too large", node.start_mark)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """A number as it looks. YAML 1.1 reads 010 as eight and 1:30 as ninety, so both are refused."""
    text = node.value.replace("_", "").lstrip("+-")
    if ":" in text or re.fullmatch(r"0[0-9]+", text):
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value} is another number to YAML: write it in quotes, or as a plain number", node.start_mark
        )
    is_float = node.tag.endswith(":float")
    return loader.construct_yaml_float(node) if is_float else loader.construct_yaml_int(node)


for kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _decimal)


def read_yaml(path: Path | str) -> Any:
    """The value of a YAML or JSON file. An empty file gives None."""
    text = read_text(path)
    if text.lstrip().startswith("{"):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass  # a YAML flow mapping
        else:
            return parse_json(text, str(path))
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):  # before loading, because libyaml crashes on deep nesting
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UsageError(f"{path} is nested too deep", f"at most {MAX_DEPTH} levels are read")
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        place = f"line {mark.line + 1} of {path}" if mark else str(path)
        remedy = (
            "indent with spaces, not tabs, and quote text that begins with % or @" if "any token" in problem else "mend it"
        )
        raise UsageError(f"{place} is not YAML ({' '.join(problem.split())})", remedy) from None
    except (ValueError, OverflowError) as error:  # an impossible date or number
        raise UsageError(f"{path} has a value that cannot be read ({error})", "write it in quotes") from None
    check_values(value, str(path))
    return value


def is_plain(text: str) -> bool:
    """Whether text is valid UTF-8 without NUL. File names may hold other bytes, and JSON lone surrogates."""
    return not UNFIT.search(text)


def check_values(value: Any, where: str) -> None:
    """Raise UsageError for unusable values.

    These are tables and lists that contain themselves, are nested too deep or hold too many values, and text with a lone
    surrogate or NUL.
    """
    sizes: dict[int, int] = {}
    outer: set[int] = set()

    def size(value: Any, depth: int) -> int:
        if isinstance(value, str):
            if unfit := UNFIT.search(value):
                kind = "a NUL character" if unfit[0] == "\0" else f"half a character (\\u{ord(unfit[0]):04x})"
                raise UsageError(f"{where} has {kind}", "remove it, or write the character itself in UTF-8")
            return 1
        if not isinstance(value, (dict, list)):
            return 1
        if id(value) in outer:
            raise UsageError(f"{where} has a list or table that contains itself", "remove the anchor")
        if depth > MAX_DEPTH:
            raise UsageError(f"{where} is nested too deep", f"at most {MAX_DEPTH} levels are read")
        if id(value) not in sizes:
            outer.add(id(value))
            inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
            sizes[id(value)] = 1 + sum(size(one, depth + 1) for one in inner)
            outer.remove(id(value))
            if sizes[id(value)] > MAX_VALUES:
                raise UsageError(
                    f"{where} stands for more than {MAX_VALUES} values", "use fewer anchors, or a file of clips"
                )
        return sizes[id(value)]

    size(value, 1)
