"""study/params.yaml as one frozen object, and where the files of the study are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dvc_kit import strict
from dvc_kit.errors import InputError
from dvc_kit.strict import Section
from stages.base import params
from stages.base.params import CLASSES, TRAIN_SIZE, Seed

FOLDER = Path("study")
PATH = FOLDER / "params.yaml"
CELLS = FOLDER / "cells"
REPORT = FOLDER / "report"
BITS = FOLDER / "bits.json"  # what the trainings depend on, see study/bits.py
BITS_FORMAT = 1  # of its keys
VALIDATION = "validation"  # instead of a seed: trained without the validation images
NAMING_RECIPES = ("recipes", "ablations", "differences")  # the keys whose values are recipes


class Study(Section):
    """Which recipes are compared, and over which seeds."""

    models: Annotated[list[str], Field(min_length=2)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    recipes: Annotated[list[str], Field(min_length=1)]
    ablations: list[str]
    ablation_seeds: Annotated[list[Seed], Field(min_length=1)]
    differences: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    validation_size: Annotated[int, Field(ge=CLASSES, le=TRAIN_SIZE - CLASSES)]

    @property
    def every_recipe(self) -> list[str]:
        return [*self.recipes, *self.ablations]

    def seeds_of(self, recipe: str) -> list[Seed]:
        return self.ablation_seeds if recipe in self.ablations else self.seeds


def cell_path(recipe: str, model: str, seed: int | str) -> Path:
    return CELLS / f"{recipe}-{model}-{seed}.json"


def load() -> Study:
    """Read study/params.yaml.

    Raises:
        InputError: It cannot be used. One line per mistake: the key, the value, and what is
            allowed.
    """
    recipes_by_name = params.load_recipes()
    known = list(recipes_by_name)
    names = dict.fromkeys(NAMING_RECIPES, known)
    study = strict.check(Study, PATH, strict.read(PATH), names)
    for key, recipes in ("recipes", study.recipes), ("ablations", study.ablations):
        for recipe in recipes:
            if recipe not in known:
                raise strict.unknown_name(PATH, key, recipe, known)
    for name in study.models:
        if name not in params.MODEL_NAMES:
            raise strict.unknown_name(PATH, "models", name, params.MODEL_NAMES)
        for recipe in study.every_recipe:
            params.of_recipe(recipes_by_name, recipe, name)
    lists: dict[str, Sequence[int | str]] = {
        "models": study.models,
        "seeds": study.seeds,
        "ablation_seeds": study.ablation_seeds,
        "recipes": study.recipes,
        "recipes and ablations": study.every_recipe,
    }
    for key, values in lists.items():
        doubles = [str(value) for value, count in Counter(values).items() if count > 1]
        if doubles:
            raise InputError(f"{PATH}: {key} has {', '.join(doubles)} more than once")
    if strangers := [seed for seed in study.ablation_seeds if seed not in study.seeds]:
        raise InputError(
            f"{PATH}: ablation_seeds has {strangers[0]}, expected some of `seeds`, so that an "
            "ablation can be compared"
        )
    for recipe in (recipe for pair in study.differences for recipe in pair):
        if recipe not in study.every_recipe:
            raise strict.unknown_name(PATH, "differences", recipe, study.every_recipe)
    return study
