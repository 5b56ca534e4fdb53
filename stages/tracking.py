"""The mirror: every stage's results as a run in MLflow.

The truth is the files that DVC keeps. A run only copies them, so nothing here is read back to
compute a result, and a tracking server that fails costs a warning and not the stage.
"""

import functools
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages import files, params
from stages.errors import StageError
from stages.params import MODEL_NAMES, ModelName

EXPERIMENT = "mnist"
DESCRIPTION = (
    "LeNet-5 and a 60-unit MLP on MNIST. Each run is one DVC stage; its tags `out:PATH` and "
    "`dep:PATH` are the md5s that dvc.lock has for them."
)

# A dead server must not hold a stage up: with MLflow's own settings one call may wait for minutes.
TIMEOUTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "2",
}


class Run:
    """One stage's run. The first call that MLflow refuses is reported; later ones are skipped."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.up = True

    def attempt(self, action: Callable[[], None]) -> None:
        if not self.up:
            return
        try:
            action()
        except Exception as error:  # whatever it is, it is the mirror's and not the stage's
            self.up = False
            reason = " ".join(str(error).split())[:200]
            print(
                f"warning: MLflow run of {self.stage} not logged ({type(error).__name__}: "
                f"{reason}); the results themselves are complete",
                file=sys.stderr,
            )

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Log one epoch's metrics while the stage runs."""
        self.attempt(lambda: log_epoch(row))


@contextmanager
def run(stage: str) -> Iterator[Run]:
    """A run for ``stage`` while its body computes, then a copy of the outs that it wrote.

    The run ends FINISHED, FAILED when the body raises, or KILLED when it is interrupted.
    """
    current = Run(stage)
    current.attempt(lambda: start(stage))
    try:
        yield current
    except KeyboardInterrupt:
        current.attempt(lambda: end("KILLED"))
        raise
    except BaseException:
        current.attempt(lambda: end("FAILED"))
        raise
    current.attempt(lambda: log_outs(stage))
    current.attempt(lambda: end("FINISHED"))


def start(stage: str) -> None:
    for name, value in TIMEOUTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    open_store()
    declared = declaration(stage)
    is_training = stage.startswith("train_")
    tags = {"stage": stage, "recipe": params.load().recipe, "mlflow.note.content": declared["desc"]}
    mlflow.start_run(run_name=stage, tags=tags, log_system_metrics=is_training)
    mlflow.log_params(stage_params(stage))
    if is_training:
        mlflow.log_input(dataset("train"), context="training")


def end(status: str) -> None:
    import mlflow

    mlflow.end_run(status)


def open_store() -> None:
    """Point MLflow at the store and the experiment, and create them where there are none."""
    import logging

    import mlflow
    from filelock import FileLock

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        return
    mlflow.set_tracking_uri(store_uri())
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    # Two processes that create the tables at the same time can break each other's migration
    with FileLock(root() / ".dvc" / "tmp" / "mlflow.lock"):
        if mlflow.get_experiment_by_name(name) is None:
            location = (root() / "mlartifacts").as_uri()
            mlflow.create_experiment(name, location, tags={"mlflow.note.content": DESCRIPTION})
        mlflow.set_experiment(name)


def root() -> Path:
    """The checkout that keeps the store: DVC names the main one, also in a copy that it made."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def store_uri() -> str:
    return f"sqlite:///{root() / 'mlflow.db'}"


# --- what dvc.yaml says of a stage ---


@functools.cache
def declaration(stage: str) -> dict[str, Any]:
    stages = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if stage not in stages:
        raise StageError(f"dvc.yaml has no stage {stage}")
    declared: dict[str, Any] = stages[stage]
    return declared


def stage_params(stage: str) -> dict[str, Any]:
    """The stage's own settings, flattened: `recipes.published.lenet5.epochs` is 20."""
    content = params.read()
    found: dict[str, Any] = {}
    for key in declaration(stage)["params"]:
        if not isinstance(key, str):
            continue  # settings in another file: pyproject.toml's versions
        key = key.replace("${recipe}", content["recipe"])
        value: Any = content
        for part in key.split("."):
            value = value[part]
        found |= params.flatten(value, key)
    return found


def stage_outs(stage: str) -> list[Path]:
    declared = declaration(stage)
    entries = [*declared.get("metrics", []), *declared["outs"]]
    return [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


# --- outs to MLflow ---


def log_outs(stage: str) -> None:
    """Copy a stage's outs into the active run, with the md5s that dvc.lock has for them."""
    import mlflow

    outs = stage_outs(stage)
    tags = {f"out:{path.as_posix()}": files.md5(path) for path in outs}
    tags |= {f"dep:{path}": files.md5(Path(path)) for path in declaration(stage)["deps"]}
    mlflow.set_tags(tags)
    for path in outs:
        if path.suffix == ".safetensors":
            log_model(path)
        elif path.is_dir():
            for file in sorted(path.iterdir()):
                if file.suffix in (".csv", ".png"):
                    mlflow.log_artifact(str(file))
        else:
            mlflow.log_artifact(str(path))
        if path == files.METRICS:
            log_scores(path)
        elif path == files.DATA_PREPARED:
            log_counts(path / "counts.csv")


def log_epoch(row: Mapping[str, Any]) -> None:
    import mlflow

    values = {key: value for key, value in row.items() if key != "epoch"}
    mlflow.log_metrics(values, step=int(row["epoch"]))


def log_counts(path: Path) -> None:
    import mlflow

    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, *_, images = line.split(",")
        mlflow.log_metric(f"{name}_images", int(images))


def log_scores(path: Path) -> None:
    """Evaluation metrics: all on this run, and each model's on the model and the run it is from."""
    import json

    import mlflow

    metrics = json.loads(path.read_text(encoding="utf-8"))
    mlflow.log_metrics(params.flatten(metrics))
    test = dataset("test")
    mlflow.log_input(test, context="evaluation")
    for name in MODEL_NAMES:
        model = find_model(files.md5(files.model_path(name)))
        if model is not None:
            mlflow.log_metrics(
                metrics[name], run_id=model.source_run_id, model_id=model.model_id, dataset=test
            )


def find_model(md5: str) -> Any:
    """The newest logged model that was made from the file with this md5, or None."""
    import mlflow

    found = mlflow.search_logged_models(
        experiment_ids=[current_experiment()],
        filter_string=f"tags.md5 = '{md5}'",
        max_results=1,
        output_format="list",
    )
    return found[0] if found else None


def current_experiment() -> str:
    import mlflow

    active = mlflow.active_run()
    assert active is not None
    experiment_id: str = active.info.experiment_id
    return experiment_id


def dataset(split: str) -> Any:
    """A split as MLflow describes data; its digest is the md5 of its file, not one of MLflow's."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.numpy_dataset import from_numpy

    from stages import mnist

    part = mnist.load_split(files.DATA_PREPARED, split)
    path = files.DATA_PREPARED / f"{split}.safetensors"
    return from_numpy(
        part.images.numpy(),
        source=CodeDatasetSource({"mlflow.source.name": path.as_posix()}),
        targets=part.labels.numpy(),
        name=f"mnist-{split}",
        digest=files.md5(path),
    )


def log_model(path: Path) -> None:
    """The model as a pt2 archive that takes raw images: no pickle, and none of our code in it."""
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from stages import mnist, models

    name: ModelName = "lenet5" if path.stem == "lenet5" else "mlp"
    recipe = params.load().of_model(name)
    network = models.load_model(name, recipe, path)
    classifier = models.Classifier(network).eval()
    classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    side = mnist.SIDE
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, side, side))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, mnist.CLASSES))]),
    )
    # Two images, because an example with one would fix the batch size at one
    example = mnist.load_split(files.DATA_PREPARED, "test").images[:2].numpy()
    mlflow.pytorch.log_model(
        classifier,
        name=name,
        signature=signature,
        input_example=example,
        pip_requirements=requirements("torch", "numpy"),
        tags={"md5": files.md5(path), "file": path.as_posix()},
        serialization_format="pt2",
    )


def requirements(*libraries: str) -> list[str]:
    """The versions in pyproject.toml of some libraries."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [item for item in project["dependencies"] if item.split("==")[0] in libraries]
