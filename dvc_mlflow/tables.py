"""Tables for a terminal."""

from collections.abc import Sequence


def text(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns. The first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
