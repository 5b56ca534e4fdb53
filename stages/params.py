"""params.yaml as one frozen object, checked whole before anything is computed."""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from stages.errors import InputError, did_you_mean

PATH = Path("params.yaml")
TRAIN_SIZE = 60_000  # images in MNIST's training set
LARGEST_BATCH = 2**13  # of which a gradient is still an exact sum: stages/exact.py
CLASSES = 10
SEEDS = 2**32  # how many there are, for NumPy as for PyTorch

ModelName = Literal["lenet5", "mlp"]
MODEL_NAMES: tuple[ModelName, ...] = ("lenet5", "mlp")
Source = Literal["raw", "torchvision", "package"]
Device = Literal["cpu", "cuda"]


class Section(BaseModel):
    """A mapping of params.yaml: no unknown keys, no conversion between types, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    sources: Annotated[list[Source], Field(min_length=1)]
    validation_size: Annotated[int, Field(ge=0, le=TRAIN_SIZE - CLASSES)]
    train_limit: Annotated[int, Field(ge=0, le=TRAIN_SIZE)]


class Augmentation(Section):
    """How far training images are distorted (stages/augmentation.py)."""

    rotation: Annotated[float, Field(ge=0, le=180)]
    shift: Annotated[float, Field(ge=0, le=32)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, le=1)]
    elastic: Annotated[float, Field(ge=0, le=32)]


class Recipe(Section):
    """How one model is trained; what has a default here is left out where it is not used."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "one_cycle"] = "constant"
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)]
    softmax_before_loss: bool
    augmentation: Augmentation | None = None


class Recipes(Section):
    """One recipe: its settings for each model."""

    lenet5: Recipe
    mlp: Recipe


class Registry(Section):
    """What a model needs to become the champion of MLflow's registry."""

    min_accuracy: Annotated[float, Field(ge=0, le=1)]
    max_p: Annotated[float, Field(ge=0, le=1)]


Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


class Study(Section):
    """Which recipes study/dvc.yaml compares, over which seeds."""

    seeds: Annotated[list[Seed], Field(min_length=1)]
    recipes: Annotated[list[str], Field(min_length=1)]
    ablations: list[str]
    differences: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    validation_size: Annotated[int, Field(ge=CLASSES, le=TRAIN_SIZE - CLASSES)]

    @property
    def every_recipe(self) -> list[str]:
        return [*self.recipes, *self.ablations]


class Params(Section):
    seed: Seed
    threads: Annotated[int, Field(ge=1, le=64)]
    device: Device
    data: Data
    registry: Registry
    study: Study
    recipe: str
    recipes: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Recipes]

    def of_model(self, name: ModelName) -> Recipe:
        """The selected recipe's settings for ``name``."""
        recipe: Recipe = getattr(self.recipes[self.recipe], name)
        return recipe


def read() -> dict[str, Any]:
    """params.yaml as it stands, in the YAML 1.2 that DVC reads.

    Raises:
        InputError: It is missing or is not YAML.
    """
    try:
        # pure: libyaml, where it is installed, ends the process at lists nested 50,000 deep
        content = YAML(typ="safe", pure=True).load(PATH.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{PATH}: {error.strerror}; run this in the project's folder") from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{PATH}: {line}{error.problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{PATH}: {' '.join(str(error).split()) or 'nested too deep'}") from None
    if not isinstance(content, dict):
        raise InputError(f"{PATH}: is {_shown(content)}, expected keys: {_keys(Params)}")
    return content


def load() -> Params:
    """Read params.yaml.

    Raises:
        InputError: It cannot be used; a line for each key, with what was found and is allowed.
    """
    content = read()
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        lines: dict[Any, str] = {}
        for detail in error.errors():
            loc = detail["loc"]
            # What is wrong in a recipe is wrong again in each that takes it over, and said once
            what = loc[2:] if loc[0] == "recipes" and len(loc) > 3 else loc
            lines.setdefault((what, detail["msg"], _shown(detail["input"])), _line(detail, content))
        raise InputError("\nerror: ".join(lines.values())) from None
    _check_study(params)
    data = params.data
    available = TRAIN_SIZE - data.validation_size
    if 0 < data.validation_size < CLASSES:
        raise InputError(
            f"{PATH}: data.validation_size is {data.validation_size}, expected 0 or at least "
            f"{CLASSES}: one image of each class"
        )
    if data.train_limit > available:
        raise InputError(
            f"{PATH}: data.train_limit is {data.train_limit}, expected at most {available}: "
            f"data.validation_size takes {data.validation_size} of the {TRAIN_SIZE} images"
        )
    return params


def _check_study(params: Params) -> None:
    study = params.study
    named = [("study.recipes", study.recipes), ("study.ablations", study.ablations)]
    for key, recipes in [("recipe", [params.recipe]), *named]:
        for recipe in recipes:
            if recipe not in params.recipes:
                raise InputError(
                    f"{PATH}: {key} is {_shown(recipe)}, expected one of: "
                    f"{', '.join(params.recipes)}{did_you_mean(recipe, params.recipes)}"
                )
    lists: dict[str, Sequence[int | str]] = {
        "seeds": study.seeds,
        "recipes": study.recipes,
        "recipes and study.ablations": study.every_recipe,
    }
    for key, values in lists.items():
        doubles = [str(value) for value, count in Counter(values).items() if count > 1]
        if doubles:
            raise InputError(f"{PATH}: study.{key} has {', '.join(doubles)} more than once")
    for recipe in (recipe for pair in study.differences for recipe in pair):
        if recipe not in study.every_recipe:
            raise InputError(
                f"{PATH}: study.differences has {_shown(recipe)}, expected two of study.recipes "
                f"and study.ablations: {', '.join(study.every_recipe)}"
                f"{did_you_mean(recipe, study.every_recipe)}"
            )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``: MLflow shows a nested mapping as one string."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _line(detail: Any, content: Mapping[str, Any]) -> str:
    """One of pydantic's errors about ``content`` as `file: key is VALUE, expected WHAT`."""
    loc, kind, given = detail["loc"], detail["type"], detail["input"]
    key = ".".join(str(part) for part in loc if part != "[key]")
    if kind == "extra_forbidden":
        section = _section(loc)
        near = did_you_mean(loc[-1], section.model_fields)
        return f"{PATH}: {key} is not a setting, expected here: {_keys(section)}{near}"
    choices = _choices(loc, content)
    if kind == "missing":
        return f"{PATH}: {key} is missing" + (f", expected {_listed(choices)}" if choices else "")
    near = did_you_mean(given, choices) if kind == "literal_error" else ""
    if kind == "model_type":
        expected = f"keys: {_keys(_section((*loc, '')))}"
    elif kind == "too_short":
        expected = f"at least {detail['ctx']['min_length']} item"
        expected += "s" if detail["ctx"]["min_length"] > 1 else ""
        expected += f" of: {', '.join(choices)}" if choices else ""
    elif kind == "list_type" and choices:
        expected = f"a list of: {', '.join(choices)}"
    elif kind == "string_type" and choices:
        expected = _listed(choices)
    elif kind == "bool_type":
        expected = "true or false"
    else:
        expected = detail["msg"].replace("Input should be ", "").replace("String should", "to")
    return f"{PATH}: {key} is {_shown(given)}, expected {expected}{near}"


def _choices(loc: tuple[Any, ...], content: Mapping[str, Any]) -> list[str]:
    """The values that the setting at ``loc`` may have, where they can be listed."""
    if loc[0] == "recipe" or loc[:2] in [("study", key) for key in NAMING_RECIPES]:
        recipes = content.get("recipes")
        return [str(name) for name in recipes] if isinstance(recipes, Mapping) else []
    name = next(part for part in reversed(loc) if isinstance(part, str))
    field = _section(loc).model_fields.get(name)
    return _literals(field.annotation) if field else []


def _literals(annotation: Any) -> list[str]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(argument) for argument in arguments]
    return [literal for argument in arguments for literal in _literals(argument)]


def _listed(choices: Sequence[str]) -> str:
    return f"one of: {', '.join(choices)}"


NAMING_RECIPES = ("recipes", "ablations", "differences")  # the keys of `study` that do


SECTIONS: dict[Any, type[Section]] = {
    "data": Data,
    "registry": Registry,
    "study": Study,
    "recipes": Recipes,
    "augmentation": Augmentation,
}


def _section(loc: tuple[Any, ...]) -> type[Section]:
    """The section of params.yaml that holds the key at ``loc``."""
    section: type[Section] = Params
    for part in loc[:-1]:
        section = Recipe if part in MODEL_NAMES else SECTIONS.get(part, section)
    return section


def _keys(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    # Not repr: a few lines of YAML with aliases can stand for a list too long for any memory
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxlong, short.maxother = 3, 80, 80, 80
    text = short.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
