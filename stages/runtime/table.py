"""Plain-text tables."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], figures: bool = False) -> str:
    """Rows as aligned lines. With `figures`, all columns but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) if figures else c.ljust(w) for c, w in zip(others, widths[1:]))]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
