"""The mirror: every stage's results as a run in MLflow.

The truth is the files that DVC keeps. A run only copies them, so nothing here is read back to
compute a result, and a tracking server that fails costs a warning and not the stage. ``MIRROR=off``
in the environment makes no run at all.

``python -m stages.tracking sync`` writes the runs that are missing: of stages that DVC skipped or
took from its cache, and of those that ran while MLflow could not be reached.
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

from stages import files, numerics, params
from stages.errors import InputError, StageError, main_function
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
                f"{reason}). The results are complete; `make sync` logs them",
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
    current.up = os.environ.get("MIRROR") != "off"
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


def start(stage: str, **more_tags: str) -> None:
    import mlflow

    open_store()
    declared = declaration(stage)
    is_training = stage.startswith("train_")
    tags = {
        "stage": stage,
        "recipe": params.load().recipe,
        "portable": str(numerics.is_pinned()).lower(),
        "mlflow.note.content": declared["desc"],
    }
    live = is_training and not more_tags
    mlflow.start_run(run_name=stage, tags=tags | more_tags, log_system_metrics=live)
    mlflow.log_params(stage_params(stage))
    if is_training:
        mlflow.log_input(dataset("train"), context="training")


def end(status: str) -> None:
    import mlflow

    mlflow.end_run(status)


def open_store() -> None:
    """Point MLflow at the store and the experiment, and create them where there are none."""
    import logging

    for variable, value in TIMEOUTS.items():
        os.environ.setdefault(variable, value)
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


# --- what dvc.lock says has no run yet ---


def sync() -> None:
    """Write a run from the outs of every stage in dvc.lock that has no finished run.

    Raises:
        StageError: An out is not what dvc.lock says; names it and the command that brings it.
    """
    import mlflow

    open_store()
    for stage, outs in locked_outs().items():
        if has_run(outs):
            continue
        for path, md5 in outs.items():
            if not Path(path).exists() or files.md5(Path(path)) != md5:
                raise StageError(
                    f"{path} is not the one in dvc.lock: `dvc repro` or `dvc pull` brings it"
                )
        start(stage, backfilled="true")
        try:
            for name in outs:
                if Path(name).name.startswith("history_"):
                    log_history(Path(name))
            log_outs(stage)
        except BaseException:
            mlflow.end_run("FAILED")
            raise
        mlflow.end_run("FINISHED")
        print(f"logged the run of {stage} from its results")


def locked_outs() -> dict[str, dict[str, str]]:
    """By stage, the md5 of each out in dvc.lock."""
    try:
        lock = YAML(typ="safe").load(Path("dvc.lock").read_text(encoding="utf-8"))
    except OSError:
        raise StageError("there is no dvc.lock: `dvc repro` writes it") from None
    return {
        stage: {out["path"]: out["md5"] for out in locked["outs"]}
        for stage, locked in lock["stages"].items()
    }


def has_run(outs: Mapping[str, str]) -> bool:
    """Whether a finished run has exactly these outs."""
    import mlflow

    wanted = {f"out:{path}": md5 for path, md5 in outs.items()}
    path, md5 = next(iter(wanted.items()))
    found = mlflow.search_runs(
        filter_string=f"tags.`{path}` = '{md5}' and attributes.status = 'FINISHED'",
        output_format="list",
    )
    return any(wanted.items() <= run.data.tags.items() for run in found)


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


def log_history(path: Path) -> None:
    """Log a finished training's metrics, each at its epoch."""
    columns = files.read_csv(path)
    for values in zip(*columns.values(), strict=True):
        log_epoch(dict(zip(columns, values, strict=True)))


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


@main_function
def main() -> None:
    if sys.argv[1:] != ["sync"]:
        raise InputError("usage: python -m stages.tracking sync")
    try:
        sync()
    except StageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StageError(f"MLflow: {type(error).__name__}: {reason}") from None


if __name__ == "__main__":
    main()
