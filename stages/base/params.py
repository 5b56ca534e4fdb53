"""params.yaml and recipes.yaml as one frozen object, checked whole before any computation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, create_model, field_validator
from pydantic_core import PydanticCustomError

from dvc_kit import strict
from dvc_kit.errors import InputError
from dvc_kit.strict import Section
from stages.networks import MODELS

PATH = Path("params.yaml")
RECIPES_PATH = Path("recipes.yaml")
PIPELINE = Path("dvc.yaml")
TRAIN_SIZE = 60_000  # images in MNIST's training set
LARGEST_BATCH = 2**13  # with more images, a gradient is no exact sum: stages/arithmetic/exact.py
CLASSES = 10
SEEDS = 2**32  # NumPy and PyTorch both take 0 to 2^32 - 1

ModelName = str  # of the registry in stages/networks
MODEL_NAMES: tuple[ModelName, ...] = tuple(MODELS)
TITLES = {name: model.title for name, model in MODELS.items()}  # in tables and figures
Source = Literal["raw", "torchvision", "package"]
Device = Literal["cpu", "cuda"]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


class Data(Section):
    sources: Annotated[list[Source], Field(min_length=1)]
    validation_size: Annotated[int, Field(ge=0, le=TRAIN_SIZE - CLASSES)]
    train_limit: Annotated[int, Field(ge=0, le=TRAIN_SIZE)]


class Registry(Section):
    """The conditions for a model to become the champion of MLflow's registry."""

    min_accuracy: Annotated[float, Field(ge=0, le=1)]
    max_p: Annotated[float, Field(ge=0, le=1)]


class Augmentation(Section):
    """How far training images are distorted (stages/learn/augmentation.py)."""

    rotation: Annotated[float, Field(ge=0, le=180)]
    shift: Annotated[float, Field(ge=0, le=32)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, le=1)]
    elastic: Annotated[float, Field(ge=0, le=32)]


class PlainRecipe(Section):
    """How a network is trained without teachers. A setting with a default may be left out."""

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
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Distillation(Section):
    """A network that also learns from the answers of others (stages/learn/teachers.py)."""

    teachers: Annotated[int, Field(ge=1, le=16)]
    recipe: PlainRecipe  # of the teachers, which are LeNet-5 networks
    temperature: Annotated[float, Field(gt=0)]
    weight: Annotated[float, Field(ge=0, le=1)]

    @field_validator("recipe")
    @classmethod
    def _of_logits(cls, recipe: PlainRecipe) -> PlainRecipe:
        if recipe.softmax_before_loss:
            raise PydanticCustomError("no_logits", "one with softmax_before_loss: false")
        return recipe


class Recipe(PlainRecipe):
    """How one model is trained."""

    distillation: Distillation | None = None

    @field_validator("distillation")
    @classmethod
    def _of_logits(cls, found: Distillation | None, info: ValidationInfo) -> Distillation | None:
        if found and info.data.get("softmax_before_loss"):
            raise PydanticCustomError("no_logits", "null, because softmax_before_loss is true")
        return found


if TYPE_CHECKING:

    class Recipes(Section):
        """One recipe: its settings for each model. Only the selected one needs all models."""

        def __getattr__(self, model: ModelName) -> Recipe: ...

else:
    Recipes = create_model("Recipes", __base__=Section, **dict.fromkeys(MODELS, (Recipe, None)))

RecipesByName = dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Recipes]


class Settings(Section):
    """The content of params.yaml."""

    recipe: str
    seed: Seed
    threads: Annotated[int, Field(ge=0, le=64)]
    device: Device
    data: Data
    registry: Registry


class Params(Settings):
    """The content of params.yaml, and that of recipes.yaml."""

    recipes: RecipesByName

    def of_model(self, name: ModelName) -> Recipe:
        """The selected recipe's settings for ``name``."""
        return of_recipe(self.recipes, self.recipe, name)


def of_recipe(recipes: dict[str, Recipes], recipe: str, model: ModelName) -> Recipe:
    """The settings of one recipe for one model.

    Raises:
        InputError: The recipe has none for this model.
    """
    settings: Recipe | None = getattr(recipes[recipe], model)
    if settings is None:
        raise InputError(f"{RECIPES_PATH}: {recipe}.{model} is missing: how {model} is trained")
    return settings


def model_name(arguments: list[str]) -> ModelName:
    """The one argument of a command, which names a model.

    Raises:
        InputError: It does not.
    """
    for name in MODEL_NAMES:
        if arguments == [name]:
            return name
    raise InputError(
        f"model is {' '.join(arguments) or 'not named'}, expected one of: {', '.join(MODEL_NAMES)}"
    )


def load() -> Params:
    """Read params.yaml and recipes.yaml.

    Raises:
        InputError: One of them cannot be used. One line per mistake: the key, the value, and what
            is allowed.
    """
    recipes = load_recipes()
    settings = strict.check(Settings, PATH, strict.read(PATH), {"recipe": list(recipes)})
    if settings.recipe not in recipes:
        raise strict.unknown_name(PATH, "recipe", settings.recipe, list(recipes))
    for name in MODEL_NAMES:
        of_recipe(recipes, settings.recipe, name)
    data = settings.data
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
    return Params(**dict(settings), recipes=recipes)


def load_recipes() -> dict[str, Recipes]:
    """The recipes by name."""
    return strict.check(
        RecipesByName,
        RECIPES_PATH,
        strict.read(RECIPES_PATH),
        # By `<<` a recipe takes over the settings of another one, with its mistakes
        inherited=lambda location: location[1:] if len(location) > 2 else location,
    )


def check_stages() -> None:
    """Check that dvc.yaml trains the models of the registry, if this folder has a pipeline.

    Raises:
        InputError: It does not.
    """
    stages = strict.read(PIPELINE).get("stages") if PIPELINE.is_file() else None
    if not isinstance(stages, dict):
        return
    trained = [str(name)[6:] for name in stages if str(name).startswith("train_")]
    if set(trained) != set(MODEL_NAMES):
        raise InputError(
            f"{PIPELINE} trains {', '.join(trained)}, stages/networks/__init__.py lists "
            f"{', '.join(MODEL_NAMES)}: `python -m stages.declare` adds what {PIPELINE} lacks; "
            "what it has beyond that, list there or remove here"
        )
