"""Markdown tables, for the reports and the benchmarks."""

from collections.abc import Iterable, Sequence

JUSTIFY = {"l": str.ljust, "r": str.rjust, "c": str.center}


def table(header: str, align: str, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a newline at its end. Its columns are straight in a terminal too.

    Args:
        header: The titles of the columns, separated by |.
        align: One letter per column: l, r or c.
    """
    lines = [header.split(" | "), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, ["---"] * len(align), strict=True)]
    padded = [
        [
            JUSTIFY[letter](cell, width)
            for letter, cell, width in zip(align, line, widths, strict=True)
        ]
        for line in lines
    ]
    left = {"l": "-", "r": "-", "c": ":"}
    right = {"l": "-", "r": ":", "c": ":"}
    marks = [
        left[letter] + "-" * (width - 2) + right[letter]
        for letter, width in zip(align, widths, strict=True)
    ]
    first, *others = [f"| {' | '.join(line)} |" for line in padded]
    return "\n".join([first, f"| {' | '.join(marks)} |", *others])


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def interval(low: float | None, high: float | None, scale: float, digits: int) -> str:
    """An interval, or nothing where there is none, as for a single seed."""
    if low is None or high is None:
        return ""
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
