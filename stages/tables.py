"""Markdown tables, as the reports and the benchmarks have them."""

from collections.abc import Iterable, Sequence

TITLES = {"lenet5": "LeNet-5", "mlp": "MLP"}  # what a reader calls the models
MARKS = {"l": "---", "r": "--:", "c": ":-:"}


def table(header: str, align: str, rows: Iterable[Sequence[str]]) -> str:
    """Its lines, without a last newline.

    Args:
        header: The columns' titles, with | between them.
        align: A letter a column: l, r or c.
    """
    marks = "|".join(MARKS[letter] for letter in align)
    return "\n".join([f"| {header} |", f"|{marks}|", *(f"| {' | '.join(row)} |" for row in rows)])


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def interval(low: float | None, high: float | None, scale: float, digits: int) -> str:
    """Nothing where there is none, as over a single seed."""
    if low is None or high is None:
        return ""
    return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
