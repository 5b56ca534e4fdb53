"""The hooks for dvc_mlflow: everything that dvc.yaml cannot say. No stage imports this file."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvc_kit import strict
from dvc_kit.errors import InputError
from dvc_mlflow.hooks import Dataset
from dvc_mlflow.naming import flat
from dvc_mlflow.result import Result
from dvc_mlflow.shown import tree
from dvc_mlflow.values import only_numbers
from stages import scoring
from stages.base import files, params
from stages.base.params import CLASSES, MODEL_NAMES, ModelName, Recipe, Registry
from stages.base.splits import SIDE
from stages.networks import MODELS

ROOT = Path(__file__).parents[1]
SPLITS_READ = {"train": "training", "test": "evaluation"}


def check() -> None:
    _point_to_recipes()
    params.load()
    params.check_stages()


def _point_to_recipes() -> None:
    """Name the right place of a model's setting in params.yaml. `dvc exp run -S +lenet5.epochs=5`,
    which DVC proposes, puts one there, and no stage would read it.

    Raises:
        InputError: There is such a setting.
    """
    content = strict.read(params.PATH)
    for model in MODEL_NAMES:
        for name, value in flat({model: content.get(model, {})}).items():
            recipe = content.get("recipe", "RECIPE")
            place = f"{params.RECIPES_PATH}:{recipe}.{name}"
            raise InputError(
                f"{params.PATH}: {name} is not a setting here; did you mean that of the recipe? "
                f"Take it out, then `dvc exp run -S '{place}={value}'`"
            )


def colors() -> dict[str, dict[str, str]]:
    """Of the runs in MLflow's charts, by the setting `model`: those of the figures."""
    return {"model": {name: model.color for name, model in MODELS.items()}}


# --- models ---


def export(result: Result, path: Path, folder: Path, **ids: Any) -> None:
    """Write a network as a pt2 archive, which takes raw images and needs none of our code."""
    import mlflow.pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from stages.networks import models

    name = params.model_name([path.stem])
    network = models.load_model(name, recipe_of(result, name), path)
    classifier = models.Classifier(network).eval()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, SIDE, SIDE))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, CLASSES))]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / path.name
        shutil.copyfile(path, weights)  # MLflow refuses DVC's links to its cache
        mlflow.pytorch.save_model(
            classifier,
            str(folder),
            mlflow_model=Model(**ids, model_type="classifier"),
            signature=signature,
            input_example=_raw_images(),
            pip_requirements=_requirements("torch", "numpy"),
            extra_files=[str(weights)],
            serialization_format="pt2",
        )


def recipe_of(result: Result, name: ModelName) -> Recipe:
    """The settings that a network depends on, from the result of its training."""
    settings = {key.rpartition(".")[2]: value for key, value in result.params.items()}
    # Not checked, because the recipe of an older commit may lack newer settings
    wanted = {key: settings[key] for key in ("dropout", "softmax_before_loss")}
    return Recipe.model_construct(**wanted)


def model_files(path: Path) -> list[str]:
    return ["MLmodel", "data/model.pt2", "requirements.txt", f"extra_files/{path.name}"]


def _raw_images() -> Any:
    """A 0 and a 1 as (2, 28, 28), from the contact sheet. A single one would fix the batch size."""
    from PIL import Image

    with Image.open(files.DATA_PREPARED / "contact_sheet.png") as sheet:
        column = 255 - np.asarray(sheet.crop((0, 0, SIDE, 2 * SIDE)))
    return column.reshape(2, SIDE, SIDE)


def _requirements(*libraries: str) -> list[str]:
    """Some lines of requirements/compute.txt."""
    lines = (ROOT / "requirements" / "compute.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.split("==")[0] in libraries]


# --- data and metrics ---


def reads(result: Result) -> list[str]:
    """Exporting a model and describing the data need the prepared images."""
    prepared = files.DATA_PREPARED.as_posix()
    return [prepared] if prepared in result.deps else []


def datasets(result: Result) -> Iterator[Dataset]:
    """The training images of a training, and the test images of a stage that scores models."""
    from safetensors import safe_open

    kinds = []
    trains = any(key.endswith("epochs") for key in result.params)
    if files.DATA_PREPARED.as_posix() in result.deps:
        is_cell = result.project != Path()
        kinds += ["train"] if trains and (result.models or is_cell) else []
        kinds += ["test"] if trains and not result.models else []
    for split in kinds:
        path = files.DATA_PREPARED / f"{split}.safetensors"
        with safe_open(path, "numpy") as file:
            shape = tuple(file.get_slice("images").get_shape())
        schema = {"images": f"uint8 {shape}", "labels": f"uint8 ({shape[0]},)"}
        yield Dataset(f"mnist-{split}", path, SPLITS_READ[split], json.dumps(schema), shape[0])


def metrics(path: Path) -> dict[str, float]:
    """Numbers that `dvc metrics show` does not show, or that are in a folder of results."""
    if path == files.EVALUATION:
        return only_numbers(tree(path))
    if path == files.REPORTS / "plot.json":
        # Not the scores of the models, which it repeats: under the names of evaluate's they would
        # rename both in the run of the pipeline, whose columns would be empty
        return {key: value for key, value in only_numbers(tree(path)).items() if "." not in key}
    if path == files.DATA_PREPARED:
        return dict(_counts(path / "counts.csv"))
    if (path / "metrics.json").is_file():
        return only_numbers(tree(path / "metrics.json"))
    scores = _cell(path).get("scores", {})
    return {name: value for name, [value] in scores.items()}


def history(path: Path) -> Mapping[str, Sequence[float]]:
    """The epochs in a cell of the study."""
    found: Mapping[str, Sequence[float]] = _cell(path).get("history", {})
    return found


def _cell(path: Path) -> dict[str, Any]:
    if path.parent.name != "cells":
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _counts(path: Path) -> Iterator[tuple[str, float]]:
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, *_, images = line.split(",")
        yield f"{name}_images", float(images)


def downloads() -> list[Path]:
    return [files.DATA_RAW]


def explain(path: str, committed: str, computed: str) -> str:
    """The first moment of a training at which the weights differ."""
    for model in MODEL_NAMES:
        if path == files.training_path(model).as_posix():
            was, now = (
                files.read_fingerprints(json.loads(text)["weights"])
                for text in (committed, computed)
            )
            for moment in [*was, *now]:
                if was.get(moment) != now.get(moment):
                    return f"the weights of {model}, {moment}"
    return ""


# --- the champion ---


def evidence(model: str) -> Path:
    """The predictions of a model on the test images."""
    return files.predictions_path(model)


def score(predictions: Path) -> float:
    """The accuracy."""
    return float(_correct(predictions).mean())


def judge(predictions: Path, champion: str | None, against: Path | None) -> tuple[bool, str]:
    """Whether a model becomes champion: it is accurate enough, and better than the champion.

    Better means: right on more test images, with an exact McNemar p of at most `registry.max_p`.
    """
    settings = strict.read(ROOT / "params.yaml").get("registry", {})
    gate = strict.check(Registry, Path("params.yaml"), settings)
    correct = _correct(predictions)
    accuracy = f"accuracy {correct.mean():.4f}"
    if correct.mean() < gate.min_accuracy:
        return False, f"not champion: {accuracy}, needed is {gate.min_accuracy}"
    if champion is None:
        return True, f"champion: {accuracy}, at least {gate.min_accuracy}; there was none before"
    if against is None:
        return False, f"not champion: the predictions of version {champion} are gone"
    theirs = _correct(against)
    if files.read_csv(against)["actual"] != files.read_csv(predictions)["actual"]:
        return False, f"not champion: version {champion} was scored on other test images"
    paired = scoring.paired_difference(correct, theirs)
    comparison = (
        f"{accuracy}; against version {champion}, alone right on {paired.only_first} images "
        f"and alone wrong on {paired.only_second} (exact McNemar p = {paired.mcnemar_p:.2g}, "
        f"needed is at most {gate.max_p})"
    )
    moves = paired.only_first > paired.only_second and paired.mcnemar_p <= gate.max_p
    return moves, f"{'champion' if moves else 'not champion'}: {comparison}"


def _correct(predictions: Path) -> scoring.Bools:
    columns = files.read_csv(predictions)
    correct: scoring.Bools = np.array(columns["actual"]) == np.array(columns["predicted"])
    return correct
