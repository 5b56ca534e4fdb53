"""Stages train_lenet5 and train_mlp: ``python -m stages.train lenet5|mlp``."""

import sys
from typing import Any

import dvc_mlflow
from dvc_mlflow.errors import main_function
from stages.base import files, numerics, params, splits
from stages.learn.resume import Training
from stages.learn.training import State
from stages.networks import models


def metrics(state: State) -> dict[str, Any]:
    """The scores of the last epoch on the training images, and the fingerprints of the weights.

    As lists, because `dvc metrics show` does not show them.
    """
    last = {key: [state.history[-1][key]] for key in ("train_accuracy", "train_loss")}
    return last | {"weights": files.fingerprint_lines(state.weights)}


@main_function
def main() -> None:
    name = params.model_name(sys.argv[1:])
    settings = params.load()
    stage = f"train_{name}"
    with dvc_mlflow.run(stage) as run:
        parts = {part: splits.load_split(files.DATA_PREPARED, part) for part in splits.SPLITS}
        generator = numerics.configure(settings.threads, settings.seed, settings.device)
        recipe = settings.of_model(name)
        training = Training(stage, name, parts, recipe, settings.device, generator)
        for row in training.epochs():
            run.log_epoch(row)
        files.write_rows(files.history_path(name), training.state.history)
        files.write_json(files.training_path(name), metrics(training.state))
        models.save_model(training.state.result, files.model_path(name))
        training.finish()


if __name__ == "__main__":
    main()
