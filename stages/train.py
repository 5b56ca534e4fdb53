"""The stages train_*: ``python -m stages.train MODEL``."""

import sys

from dvc_kit.errors import main_function
from stages.arithmetic import numerics
from stages.base import files, params, splits
from stages.base.stage import running
from stages.learn.resume import Training
from stages.networks import models


@main_function
def main() -> None:
    name = params.model_name(sys.argv[1:])
    settings = params.load()
    stage = f"train_{name}"
    with running(stage) as run:
        parts = {part: splits.load_split(files.DATA_PREPARED, part) for part in splits.SPLITS}
        generator = numerics.configure(settings.threads, settings.seed, settings.device)
        recipe = settings.of_model(name)
        training = Training(stage, name, parts, recipe, settings.device, generator)
        for row in training.epochs():
            run.log_epoch(row)
        files.write_rows(files.history_path(name), training.state.history)
        fingerprints = files.fingerprint_lines(training.state.weights)
        files.write_json(files.training_path(name), {"weights": fingerprints})
        models.save_model(training.state.result, files.model_path(name))
        training.finish()


if __name__ == "__main__":
    main()
