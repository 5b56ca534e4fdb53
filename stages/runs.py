"""How one stage's results become one MLflow run, with its model and its data."""

import contextlib
import functools
import getpass
import hashlib
import json
import shutil
import socket
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import files, params
from stages.params import MODEL_NAMES, ModelName, Recipe
from stages.results import Result

Say = Callable[[str], None]


LARGEST_BATCH = 1_000  # metrics that MLflow takes in one call

# The files of a logged model that it cannot be loaded or checked without
MODEL_FILES = ("MLmodel", "data/model.pt2", "requirements.txt")

# Stages that train a network
TRAINING = ("train_lenet5", "train_mlp", "cell", "ablation", "validation")


def silent(line: str) -> None:
    """For a caller that nobody waits for."""


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


# --- one run ---


def start(experiment_id: str, result: Result, tags: Mapping[str, str]) -> str:
    """Begin a run with the stage's settings and content links; its id."""
    from mlflow.entities import Param

    described = {
        "stage": result.stage,
        "mlflow.note.content": result.desc,
        "mlflow.user": _user(),
        "mlflow.source.name": f"dvc repro {result.stage}",
        "mlflow.source.type": "PROJECT",
        "process": this_process(),
    }
    if result.recipe:
        described["recipe"] = result.recipe
    if "commit" in tags:
        described["mlflow.source.git.commit"] = tags["commit"]
    run = client().create_run(
        experiment_id, run_name=result.stage, tags={**described, **result.tags, **tags}
    )
    run_id: str = run.info.run_id
    settings = [Param(key, str(value)) for key, value in result.params.items()]
    client().log_batch(run_id, params=settings)
    return run_id


def log_epoch(run_id: str, row: Mapping[str, Any]) -> None:
    values = {key: value for key, value in row.items() if key != "epoch"}
    log_metrics(run_id, values, step=int(row["epoch"]))


def log_history(run_id: str, columns: Mapping[str, Sequence[float]]) -> None:
    """Log every epoch's metrics, in as few calls as the store allows."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now, int(epoch))
        for key, values in columns.items()
        if key != "epoch"
        for epoch, value in zip(columns["epoch"], values, strict=True)
    ]
    for start in range(0, len(metrics), LARGEST_BATCH):
        client().log_batch(run_id, metrics=metrics[start : start + LARGEST_BATCH])


def log_metrics(to_run: str, values: Mapping[str, float], step: int = 0, **of: Any) -> None:
    """Log metrics in one call; ``of`` names the logged model and the dataset they belong to."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, step, **of) for key, value in values.items()]
    client().log_batch(to_run, metrics=metrics)


def log_result(run_id: str, result: Result, say: Say = silent) -> None:
    """Copy a stage's outs, which lie in this folder, into its run, with their md5s."""
    from mlflow.entities import RunTag

    client().log_batch(run_id, tags=[RunTag(key, value) for key, value in result.tags.items()])
    kind = result.stage.partition("@")[0]
    if kind in TRAINING:
        log_dataset(run_id, "train", "training")
    if kind in ("evaluate", "cell", "ablation", "validation"):
        log_dataset(run_id, "test", "evaluation")
    say("ready")
    for out, path in zip(result.outs, map(Path, result.outs), strict=True):
        if path.suffix == ".safetensors":
            log_model(run_id, result, path, say)
        log_files(run_id, artifacts_of(out), say)
        metrics = path / "metrics.json" if result.stage == "report" else path
        if metrics.name == "metrics.json":
            found = json.loads(metrics.read_text(encoding="utf-8"))
            log_metrics(run_id, numbers(found))
        elif path == files.DATA_PREPARED:
            log_metrics(run_id, dict(_counts(path / "counts.csv")))
        elif path.parent == files.CELLS:
            scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
            log_metrics(run_id, {name: value for name, [value] in scores.items()})
        elif path == files.FIGURES:
            log_metrics(run_id, _last_epochs(result))
        say("ready")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in a JSON file, flat; as for `dvc metrics show`, lists are none."""
    flat = params.flatten(metrics)
    return {name: value for name, value in flat.items() if not isinstance(value, list)}


def artifacts_of(out: str) -> list[Path]:
    """The files of an out, which lies in this folder, that its run keeps beside the models."""
    path = Path(out)
    if path.is_dir():
        return [
            file for file in sorted(path.iterdir())
            if file.suffix in (".csv", ".json", ".md", ".png")
        ]  # fmt: skip
    return [] if path.suffix == ".safetensors" else [path]


def log_files(run_id: str, paths: Sequence[Path], say: Say = silent) -> None:
    """Copy files into a run."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            # MLflow takes no link that leads out of a folder, as DVC's into its cache do
            copied = Path(scratch) / path.name
            shutil.copyfile(path, copied)
            client().log_artifact(run_id, str(copied))
            copied.unlink()
            say("ready")


def lost_files(run_id: str, out: str, md5: str) -> bool:
    """Whether a run lacks files of one of its outs, as far as that shows without the out."""
    path = Path(out)
    if path.suffix == ".safetensors":
        return False
    kept = {file.path: file.file_size for file in client().list_artifacts(run_id)}
    if path.exists():
        differ = any(kept.get(file.name) != file.stat().st_size for file in artifacts_of(out))
        return differ and files.md5(path) == md5
    return path.name not in kept if path.suffix else not kept


def _last_epochs(result: Result) -> dict[str, float]:
    """The numbers at the right end of plot's curves: each model's test loss and accuracy."""
    return {
        f"{name}.{key}": columns[key][-1]
        for name in MODEL_NAMES
        if files.history_path(name).as_posix() in result.deps
        for columns in [files.read_csv(files.history_path(name))]
        for key in ("test_accuracy", "test_loss")
        if columns.get(key)
    }


def _counts(path: Path) -> Iterator[tuple[str, float]]:
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, *_, images = line.split(",")
        yield f"{name}_images", float(images)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@functools.cache
def machine() -> str:
    """This host's name and, because two may have the same name, more that tells it from others."""
    told = []
    for path in (Path("/etc/machine-id"), Path("/proc/self/ns/pid")):  # containers count apart
        with contextlib.suppress(OSError):
            told.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return f"{socket.gethostname()}-{hashlib.sha256(''.join(told).encode()).hexdigest()[:8]}"


def this_process() -> str:
    """Machine, process and the moment it started: enough to see later that it is gone."""
    import psutil

    process = psutil.Process()
    return f"{machine()} {process.pid} {process.create_time():.0f}"


def is_over(process: str) -> bool:
    """Whether a process is one of this machine that has ended; as :func:`this_process` says it."""
    import psutil

    host, _, rest = process.partition(" ")
    if host != machine():
        return False
    pid, _, started = rest.partition(" ")
    try:
        return not abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except (psutil.Error, ValueError):
        return True


def end_copy(run_id: str) -> None:
    """End a run that was written from results as FINISHED, without an end: it would give the
    time that the copying took as the stage's own."""
    client().update_run(run_id, status="FINISHED")


# --- models and data ---


def log_dataset(run_id: str, split: str, context: str) -> None:
    """Note a split as a run's input; its digest is the md5 of its file, as DVC has it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from safetensors import safe_open

    path = files.DATA_PREPARED / f"{split}.safetensors"
    with safe_open(path, "numpy") as file:
        shape = tuple(file.get_slice("images").get_shape())
    dataset = Dataset(
        name=f"mnist-{split}",
        digest=files.md5(path),
        source_type="code",
        source=json.dumps({"tags": {"mlflow.source.name": path.as_posix()}}),
        schema=json.dumps({"images": f"uint8 {shape}", "labels": f"uint8 ({shape[0]},)"}),
        profile=json.dumps({"num_rows": shape[0]}),
    )
    tags = [InputTag("mlflow.data.context", context)]
    client().log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])


def _raw_images() -> Any:
    """A 0 and a 1 as (2, 28, 28), from the contact sheet; one would fix the batch size at one."""
    import numpy as np
    from PIL import Image

    from stages.mnist import SIDE

    with Image.open(files.DATA_PREPARED / "contact_sheet.png") as sheet:
        column = 255 - np.asarray(sheet.crop((0, 0, SIDE, 2 * SIDE)))
    return column.reshape(2, SIDE, SIDE)


def log_model(run_id: str, result: Result, path: Path, say: Say = silent) -> None:
    """Log the model as a pt2 archive that takes raw images, with the file of weights beside it.

    Not `mlflow.pytorch.log_model`, which would copy the run's system metrics to the model and try
    the model out in a scoring server of its own.
    """
    from mlflow.entities import LoggedModelOutput

    name = path.stem
    experiment_id = client().get_run(run_id).info.experiment_id
    model = client().create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags={"md5": result.outs[path.as_posix()], "file": path.as_posix()},
        params={key: str(value) for key, value in result.params.items()},
        model_type="classifier",
    )
    try:
        log_model_files(model, path, say)
        client().finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):  # the first failure is the one to tell
            client().delete_logged_model(model.model_id)
        raise
    last_epoch = int(result.params[f"{name}.epochs"])
    client().log_outputs(run_id, [LoggedModelOutput(model.model_id, step=last_epoch)])


def log_model_files(model: Any, path: Path, say: Say = silent) -> None:
    """Write the files of a logged model, made from a file of weights."""
    with tempfile.TemporaryDirectory() as scratch:
        say("local")
        folder = Path(scratch) / "model"
        export(path, folder, run_id=model.source_run_id, model_id=model.model_id)
        say("ready")
        client().log_model_artifacts(model.model_id, str(folder))


def lost_model_files(model: Any) -> list[str]:
    """The files that a logged model should have and that are not in the store, or are empty."""
    weights = f"extra_files/{Path(model.tags['file']).name}"
    folders = ("data", "extra_files")
    kept = {
        file.path
        for folder in (None, *folders)
        for file in client().list_logged_model_artifacts(model.model_id, folder)
        if file.file_size
    }
    return sorted({*MODEL_FILES, weights} - kept)


def export(
    path: Path, folder: Path, run_id: str | None = None, model_id: str | None = None
) -> None:
    """Write the model of a file of weights as MLflow keeps it: a pt2 archive, none of our code."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from stages import mnist, models

    name: ModelName = "lenet5" if path.stem == "lenet5" else "mlp"
    network = models.load_model(name, recipe_here(name), path)
    classifier = models.Classifier(network).eval()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, mnist.SIDE, mnist.SIDE))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, mnist.CLASSES))]),
    )
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / path.name
        shutil.copyfile(path, weights)  # the content of a link, as in log_files
        mlflow.pytorch.save_model(
            classifier,
            str(folder),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=signature,
            input_example=_raw_images(),
            pip_requirements=requirements("torch", "numpy"),
            extra_files=[str(weights)],
            serialization_format="pt2",
        )


def recipe_here(name: ModelName) -> Recipe:
    """The selected recipe, unchecked: an older commit's lacks settings that came later."""
    content = params.read()
    return Recipe.model_construct(**content["recipes"][content["recipe"]][name])


def requirements(*libraries: str) -> list[str]:
    """The versions in pyproject.toml of some libraries."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [item for item in project["dependencies"] if item.split("==")[0] in libraries]


def find_models(md5: str) -> Sequence[Any]:
    """The logged models that were made from the file with this md5, the newest first."""
    ready = [model for model in _models_of(md5) if str(model.status) == "READY"]
    return sorted(ready, key=lambda model: model.creation_timestamp, reverse=True)


def drop_unfinished(md5: str) -> None:
    """Delete the logged models of a file of weights whose writing ended before they were whole."""
    for model in _models_of(md5):
        if str(model.status) != "READY":
            if model.source_run_id and _status(model.source_run_id) == "RUNNING":
                continue
            client().delete_logged_model(model.model_id)


def _models_of(md5: str) -> list[Any]:
    from mlflow.entities import ViewType

    experiments = client().search_experiments(view_type=ViewType.ACTIVE_ONLY)
    found: list[Any] = client().search_logged_models(
        [experiment.experiment_id for experiment in experiments],
        filter_string=f"tags.md5 = '{md5}'",
    )
    return found


def _status(run_id: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        status: str = client().get_run(run_id).info.status
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return "gone"
        raise
    return status


def score_models(result: Result) -> None:
    """Attach evaluate's metrics to the two logged models and the runs that made them.

    Args:
        result: evaluate's; its outs lie in this folder.
    """
    metrics = json.loads(files.METRICS.read_text(encoding="utf-8"))
    digest = files.md5(files.DATA_PREPARED / "test.safetensors")
    for name in MODEL_NAMES:
        for model in find_models(result.deps[files.model_path(name).as_posix()])[:1]:
            known = {(metric.key, metric.value) for metric in model.metrics or []}
            if known >= set(metrics[name].items()):
                continue
            log_metrics(
                model.source_run_id,
                metrics[name],
                run_id=model.source_run_id,
                model_id=model.model_id,
                dataset_name="mnist-test",
                dataset_digest=digest,
            )
