"""Markdown tables, for the reports and the benchmarks."""

from collections.abc import Iterable, Sequence

MARKS = {"l": "---", "r": "--:", "c": ":-:"}


def table(header: str, align: str, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a newline at its end.

    Args:
        header: The titles of the columns, separated by |.
        align: One letter per column: l, r or c.
    """
    marks = "|".join(MARKS[letter] for letter in align)
    return "\n".join([f"| {header} |", f"|{marks}|", *(f"| {' | '.join(row)} |" for row in rows)])


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def interval(low: float | None, high: float | None, scale: float, digits: int) -> str:
    """An interval, or nothing where there is none, as for a single seed."""
    if low is None or high is None:
        return ""
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
