"""Which trials of a rung go on to the next one, and which become recipes."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import rankdata

from stages.base.params import ModelName, Recipe
from study import design
from study.design import Search
from study.tables import Row

Tables = Mapping[ModelName, Sequence[Sequence[Row]]]  # the rungs of each model, from the first
Longer = Mapping[ModelName, Sequence[Row]]  # the longer trainings of each model
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


def seconds(search: Search, name: ModelName, row: Mapping[str, Any]) -> float:
    """How long a configuration trains on all training images, and its teachers before."""
    times, teachers = search.seconds, int(row["teachers"])
    before = teachers * int(row["teacher_epochs"] or 0) * times.epoch["lenet5"]
    return before + int(row["epochs"]) * (times.epoch[name] + teachers * times.answers)


def winners(
    found: Search, name: ModelName, rungs: Sequence[Sequence[Row]], longer: Sequence[Row]
) -> dict[str, Row]:
    """The configurations of a model that the rule of study/search.yaml chooses, by recipe.

    `fast` is the best without teachers of the second rung, or of the first if none is in the
    second. `record` is the best of the last rung. `ten_minutes` is the best of the longer
    trainings that takes at most ten minutes.
    """
    plain = next(row for rows in rungs[1::-1] for row in rows if not row["teachers"])
    limit = found.seconds.limit
    within = [row for row in longer if seconds(found, name, row) <= limit]
    chosen = {"fast": plain, "record": rungs[-1][0]}
    return chosen | ({"ten_minutes": within[0]} if within else {})


def recipes(found: Search, tables: Tables, longer: Longer) -> dict[str, dict[ModelName, Recipe]]:
    """The recipes that the search chooses, with the epochs of study/search.yaml or of the trial."""
    chosen: dict[str, dict[ModelName, Recipe]] = {}
    given = dict(found.epochs)
    for name, rungs in tables.items():
        for recipe, row in winners(found, name, rungs, longer.get(name, ())).items():
            epochs = given[recipe][name] if recipe in given else row["epochs"]
            chosen.setdefault(recipe, {})[name] = design.recipe(found, row, epochs)
    return chosen
