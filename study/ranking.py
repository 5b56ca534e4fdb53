"""Which trials of a rung go on to the next one."""

from collections.abc import Sequence

from scipy.stats import rankdata

from study.design import Row

GROUPS = 4  # of similar distortion


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows, the best first, each with its `rank_sum`.

    The rank by accuracy plus the rank by loss. Accuracy alone ties and is noisy: at 99.5 % it
    counts 50 mistakes. On a tie, the one with the smaller loss comes first, then the one with the
    smaller number. A training without a finite loss comes last.
    """
    worst = float("inf")
    losses = [worst if row["loss"] is None else row["loss"] for row in rows]
    errors = [worst if row["accuracy"] is None else -row["accuracy"] for row in rows]
    sums = rankdata(errors, "min") + rankdata(losses, "min")
    found = [row | {"rank_sum": int(total)} for row, total in zip(rows, sums, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: (sums[i], losses[i], rows[i]["trial"]))
    return [found[i] for i in order]


def survivors(rows: Sequence[Row], count: int) -> list[Row]:
    """The best ``count`` rows, equally many from each group of similar distortion.

    Args:
        rows: The best first.

    Returns:
        Chosen rows, the best first.
    """
    weakest = sorted(rows, key=lambda row: (row["distortion"], row["trial"]))
    chosen: set[int] = set()
    for group in range(GROUPS):
        low, high = (len(rows) * edge // GROUPS for edge in (group, group + 1))
        places = count * (group + 1) // GROUPS - count * group // GROUPS
        inside = {row["trial"] for row in weakest[low:high]}
        chosen.update([row["trial"] for row in rows if row["trial"] in inside][:places])
    return [row for row in rows if row["trial"] in chosen]
