"""Plain-text tables."""

from collections.abc import Sequence

from stages.runtime.errors import printable


def table(rows: Sequence[Sequence[str]], figures: bool = False) -> str:
    """Rows as aligned lines without control characters. With `figures`, all columns but the first are right-aligned."""
    rows = [[*map(printable, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) if figures else c.ljust(w) for c, w in zip(others, widths[1:]))]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
