"""The header of a safetensors file, read and written without the library: stages without torch need it too."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from stages.runtime.canonical import parse_json
from stages.runtime.files import open_plain
from stages.runtime.kinds import ITEM_BYTES, violation

HEADER_LIMIT = 100 * 2**20  # bytes; the safetensors library's own limit


def read_whole_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset of its data. Raises ValueError if the data is truncated."""
    header, start = read_header(path)
    if expected_size(header, start) != path.stat().st_size:
        raise ValueError("its data is cut off")
    return header, start


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file and the offset of its data. Raises ValueError for a malformed header.

    It is parsed here because stages without torch need it too.
    """
    with open_plain(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(HEADER_LIMIT, path.stat().st_size - 8):
            raise ValueError("its header is longer than the file")
        header = parse_json(file.read(length))
    if problem := violation("header", header) or layout_problem(header):
        raise ValueError(problem)
    return header, 8 + length


def layout_problem(header: Mapping[str, Any]) -> str:
    """The first tensor whose data does not follow the previous one without a gap, as an error text; "" if there is none."""
    end = 0
    specs = {name: spec for name, spec in header.items() if name != "__metadata__"}
    for name, spec in sorted(specs.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = spec["data_offsets"]
        if start != end or stop - start != math.prod(spec["shape"]) * ITEM_BYTES[spec["dtype"]]:
            return f"its tensor {name} is not where it should be"
        end = stop
    return ""


def expected_size(header: Mapping[str, Any], start: int) -> int:
    """Size in bytes of a complete safetensors file with this header."""
    return start + max((spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__"), default=0)


def write_header(file: BinaryIO, header: Mapping[str, Any]) -> None:
    """Write the header of a safetensors file: 8 bytes of length, then JSON, padded with spaces to a multiple of 8 bytes."""
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
