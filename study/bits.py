"""Stage bits: SHA-256 of everything that a training of the study can consist of.

    python -m study.bits

The trainings of the study take hours, so they do not depend on source files, as the stages of the
pipeline do. They depend on bits: if the code changes and no bit of a training does, this stage runs
again, in seconds, and nothing after it. study/bits.json has

* `ingredients`: each ingredient of a training alone, on fixed small inputs (study/ingredients.py),
* `bits`: for each recipe and model, the ingredients that it has, and a short training with its
  own settings, interrupted once, and scored as a cell of the study is,
* `validation_bits`: the images that are held out, and the temperature that is fitted on them,
* `search_bits`: for each model, everything that a trial may have, and which trials go on,
* `code`: the source of the stages that take seconds, without comments and empty lines.

Each stage of the study depends on its own hashes, so a changed bit makes stale what it can change.
"""

import functools
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dvc_kit.errors import main_function
from stages.base import files, params
from stages.base.params import (
    MODEL_NAMES,
    Distillation,
    ModelName,
    PlainRecipe,
    Recipe,
    Recipes,
)
from stages.base.stage import running
from study import cell, ingredients, settings
from study.ingredients import FULL, PLAIN, drawn, sha256

EPOCHS, TRAIN, TEST = 3, 300, 200  # of a short training: epochs and images
# The source of stages that take seconds. The rest of what they read is data
ALL = ["dvc_kit", "stages/base", "stages/networks", "study/settings.py"]
SHOWS = [*ALL, "stages/scoring.py", "stages/show", "study/filling.py", "study/templates"]
CODE = {
    "design": [*ALL, "study/design.py", "study/tables.py"],
    "findings": [
        *SHOWS,
        *(f"study/{name}.py" for name in ("design", "findings", "ranking", "tables")),
    ],
    "report": [
        *SHOWS,
        *(f"study/{name}.py" for name in ("comparison", "page", "pictures", "report")),
    ],
}


@functools.cache
def short_training(name: ModelName, recipe: Recipe) -> str:
    """SHA-256 of the cell of a training that is short, and otherwise has the same settings.

    It is interrupted after its first epoch, and goes on from its checkpoint.
    """
    changes: dict[str, Any] = {"epochs": EPOCHS}
    if given := recipe.distillation:
        of_teacher = given.recipe.model_copy(update=changes)
        changes["distillation"] = given.model_copy(update={"recipe": of_teacher})
    begun = ingredients.interrupted(name, recipe.model_copy(update=changes), drawn(TRAIN, 0))
    network = begun.state.result
    of_test, scores = cell.score(network, drawn(TEST, 1), None, "cpu")
    content = cell.content(scores, of_test, network, begun.state.history)
    return sha256([json.dumps(files.rounded(content))])


class Bits:
    """Hashes ingredients, each only once, and what consists of them."""

    def __init__(self) -> None:
        self.ingredients: dict[str, str] = {}

    def of(self, used: dict[str, Any]) -> list[tuple[str, str]]:
        """The names and hashes of ingredients."""
        for name, compute in used.items():
            if name not in self.ingredients:
                self.ingredients[name] = sha256(compute())
        return [(name, self.ingredients[name]) for name in sorted(used)]

    def of_training(self, name: ModelName, recipe: Recipe) -> str:
        used = self.of(ingredients.of_recipe(name, recipe))
        return sha256([*used, short_training(name, recipe)])

    def of_search(self, name: ModelName) -> str:
        """A model with each setting that a trial may have."""
        others = {"optimizer": "adamw", "schedule": "one_cycle", "weight_decay": 0.05}
        full = dict(PLAIN) | {"augmentation": FULL, "averaging": 0.9, "batch_size": 128}
        of_teacher = PlainRecipe(**(dict(PLAIN) | others | {"augmentation": FULL}))
        distilled = Distillation(teachers=2, recipe=of_teacher, temperature=2.0, weight=0.6)
        trials = [Recipe(**full), Recipe(**full | others, distillation=distilled)]
        used = {"validation": ingredients.validation, "ranking": ingredients.ranking}
        return sha256([*self.of(used), *(self.of_training(name, trial) for trial in trials)])


def plain(path: Path) -> str:
    """A file of Python without comments and empty lines; another file as it is."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def of_code(places: Iterable[str]) -> str:
    """SHA-256 of the source at some paths, from the main folder."""
    every = {
        path
        for place in map(Path, places)
        for path in (place.rglob("*") if place.is_dir() else [place])
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sha256((path.as_posix(), plain(path)) for path in sorted(every))


def everything(recipes: Mapping[str, Recipes]) -> dict[str, Any]:
    """The content of study/bits.json."""
    bits = Bits()
    rest = Recipe(**(dict(PLAIN) | {"softmax_before_loss": True, "dropout": 0.5}))
    for name in MODEL_NAMES:  # also what no recipe has today
        bits.of(ingredients.of_recipe(name, rest))
    return {
        "format": settings.BITS_FORMAT,
        "bits": {
            recipe: {
                name: bits.of_training(name, settings) for name, settings in of_models if settings
            }
            for recipe, of_models in recipes.items()
        },
        "search_bits": {name: bits.of_search(name) for name in MODEL_NAMES},
        "validation_bits": bits.of({"validation": ingredients.validation})[0][1],
        "ingredients": bits.ingredients,
        "code": {stage: of_code(places) for stage, places in CODE.items()},
    }


@main_function
def main() -> None:
    recipes = params.load_recipes()
    with running("bits"):
        files.write_json(settings.BITS, everything(recipes))


if __name__ == "__main__":
    main()
