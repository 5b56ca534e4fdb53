"""Stage rung: a search for recipes, on validation images only.

    python -m study.search MODEL RUNG     train the best of the table before, and write the next

Successive halving (K. Jamieson, A. Talwalkar, "Non-stochastic best arm identification and
hyperparameter optimization", AISTATS 2016): many configurations are trained shortly, the best of
them again for longer, and so on. All configurations are drawn before the first training, and a rung
begins when the one before has ended. So the tables do not depend on the number of workers.

How much distortion is best depends on the length of a training. So equally many configurations go
on from each quarter of the strengths of distortion, and only the last rung compares them all. There
the recipe that was found by hand joins them, so the tables also show whether the search beats it.

A finished trial is kept until its rung is written, so an interrupted rung loses only the trials
that were running, and of those the last epoch.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from threading import Thread
from typing import Any

from scipy.stats import rankdata
from tqdm import tqdm

import dvc_mlflow
from dvc_mlflow.alone import FOLDER as UNFINISHED
from dvc_mlflow.errors import InputError, StageError, main_function
from dvc_mlflow.files import write_text
from stages.base import files, numerics, params, splits
from stages.base.params import Distillation, ModelName, PlainRecipe, Recipe
from stages.base.splits import Split
from stages.learn.resume import Training, teach
from stages.networks import models
from study import design
from study.cell import check_prepared, fitted_temperature, negative_log_likelihood, scaled
from study.design import Row, Rung, Search, Space

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


# --- trials ---

# What all trials of a process share: set once, as MNIST is larger than a trial's other data
_parts: dict[str, Split] = {}


def start_worker(validation_size: int, seed: int) -> None:
    """Load the images into this process, which ends when its parent does, even by a kill."""
    Thread(target=_end_with_parent, daemon=True).start()
    train = splits.load_split(files.DATA_PREPARED, "train")
    stay, drawn = splits.hold_out(train.labels, validation_size, seed)
    _parts["train"] = Split(train.images[stay], train.labels[stay])
    _parts["validation"] = Split(train.images[drawn], train.labels[drawn])


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def teachers_of(settings: Distillation, seed: int) -> list[models.Network]:
    """The teachers, which all trials with these settings share. Trained if need be."""
    digest = hashlib.sha256(repr(settings.recipe).encode()).hexdigest()[:8]
    return teach(f"search-{digest}", _parts["train"], settings, "cpu", seed)


def make_teachers(settings: Distillation, seed: int) -> None:
    """Train the teachers, so that :func:`teachers_of` finds their checkpoints."""
    numerics.configure(1, seed)
    teachers_of(settings, seed)


def score(name: ModelName, trial: int, settings: Recipe, seed: int) -> Row:
    """Train a configuration on one thread, and score it on the validation images.

    Returns:
        The accuracy, the loss, and the SHA-256 of the weights. The loss is the mean negative log
        likelihood in nats, with the temperature that makes it smallest. All are None if the
        training came to a loss that is not finite.
    """
    generator = numerics.configure(1, seed)
    stage = f"search-{name}-{trial}"
    parts = {"train": _parts["train"]}
    training = Training(stage, name, parts, settings, "cpu", generator, f"trial {trial}: ")
    kept = UNFINISHED / f"{stage}-{training.checkpoint.key.hex()[:16]}.json"
    if kept.is_file():
        found: Row = json.loads(kept.read_text(encoding="utf-8"))
        return found
    if settings.distillation:
        training.state.teachers = teachers_of(settings.distillation, seed)
    result: Row = dict.fromkeys(("accuracy", "loss", "weights"))
    try:
        for _ in training.epochs():
            pass
    except StageError:
        pass  # the loss was not finite
    else:
        network = training.state.result
        answers = models.answers(network, _parts["validation"])
        temperature = fitted_temperature(answers.probabilities, answers.labels)
        probabilities = scaled(answers.probabilities, temperature)
        result = {
            "accuracy": float(answers.correct.mean()),
            "loss": files.rounded(negative_log_likelihood(probabilities, answers.labels)),
            "weights": models.fingerprint(network),
        }
    write_text(kept, json.dumps(result))
    training.checkpoint.remove()
    return result


def workers() -> int:
    """How many trials run at once: WORKERS, or the number of cores."""
    asked = os.environ.get("WORKERS", "")
    if not asked:
        return numerics.cores()
    if not asked.isdecimal() or not int(asked):
        raise InputError(f"WORKERS is {asked}, expected a number of processes from 1")
    return int(asked)


def run_rung(name: ModelName, search: Search, rung: Rung, before: Sequence[Row]) -> list[Row]:
    """Train ``rung.trials`` configurations of the table before, and the incumbent if there is one.

    Returns:
        Their rows, the best first.
    """
    chosen = survivors(before, rung.trials)
    if rung.incumbent:
        chosen.append(design.incumbent(search, name, rung.incumbent))
    recipes = [design.recipe(search, row, rung.epochs) for row in chosen]
    largest: dict[PlainRecipe, Distillation] = {}
    for one in recipes:
        if one.distillation:
            present = largest.setdefault(one.distillation.recipe, one.distillation)
            if one.distillation.teachers > present.teachers:
                largest[one.distillation.recipe] = one.distillation
    with ProcessPoolExecutor(
        workers(),
        multiprocessing.get_context("spawn"),
        start_worker,
        (search.validation_size, search.seed),
    ) as pool:
        made = [pool.submit(make_teachers, one, search.seed) for one in largest.values()]
        for future in finished(made, "teachers"):
            future.result()
        # The longest first, so that no worker is left alone with a long one
        order = sorted(range(len(recipes)), key=lambda i: not recipes[i].distillation)
        running = {
            pool.submit(score, name, chosen[i]["trial"], recipes[i], search.seed): i for i in order
        }
        results: dict[int, Row] = {}
        for future in finished(list(running), f"{name}, {rung.epochs} epochs"):
            results[running[future]] = future.result()
    settings = ("trial", *Space.model_fields)
    return ranked(
        [
            {key: row[key] for key in settings} | {"epochs": rung.epochs} | results[i]
            for i, row in enumerate(chosen)
        ]
    )


def finished(running: Sequence[Future[Any]], title: str) -> Iterator[Future[Any]]:
    """The futures as they end, with a bar on a terminal. If one fails, the rest is not begun."""
    try:
        with tqdm(total=len(running), desc=title, unit="training", disable=None) as progress:
            for one in as_completed(running):
                yield one
                progress.update()
    finally:
        for other in running:
            other.cancel()


@main_function
def main() -> None:
    if len(sys.argv) != 3:
        raise InputError("usage: python -m study.search MODEL RUNG")
    name, search = params.model_name(sys.argv[1:2]), design.load()
    rungs = search.rungs(name)
    if sys.argv[2] not in [str(number) for number in range(1, len(rungs) + 1)]:
        raise InputError(f"rung is {sys.argv[2]}, expected a number from 1 to {len(rungs)}")
    number = int(sys.argv[2])
    with dvc_mlflow.run(f"rung@{name}-{number}"):
        check_prepared()
        rows = run_rung(name, search, rungs[number - 1], design.read_table(name, number - 1))
        files.write_rows(design.table_path(name, number), rows)
        for path in UNFINISHED.glob(f"search-{name}-*.json"):
            path.unlink()
        print(f"{name}: the best of {len(rows)} is trial {rows[0]['trial']}")


if __name__ == "__main__":
    main()
