"""The stages train_*: ``python -m stages.train MODEL``.

As one of several workers (:mod:`stages.learn.launch`), it may also do no more than compute.
"""

import sys

from dvc_kit.errors import main_function
from stages.arithmetic import numerics
from stages.base import files, params, splits
from stages.base.params import ModelName, Params
from stages.base.stage import running
from stages.learn import meeting
from stages.learn.resume import Training
from stages.networks import models


def begun(settings: Params, name: ModelName = "") -> Training:
    """The training of a model; that of home, if it is left out."""
    threads = meeting.threads(settings.threads)
    generator = numerics.configure(threads, settings.seed, settings.device)
    name = meeting.meet(name)
    parts = {part: splits.load_split(files.DATA_PREPARED, part) for part in splits.SPLITS}
    recipe = settings.of_model(name)
    return Training(f"train_{name}", name, parts, recipe, settings.device, generator)


@main_function
def main() -> None:
    if not meeting.is_first():
        meeting.take_part(lambda: begun(params.load()).epochs())
        return
    name = params.model_name(sys.argv[1:])
    settings = params.load()
    if meeting.has_trained(name):
        return
    with running(f"train_{name}") as run:
        training = begun(settings, name)
        for row in training.epochs():
            run.log_epoch(row)
        files.write_rows(files.history_path(name), training.state.history)
        fingerprints = files.fingerprint_lines(training.state.weights)
        files.write_json(files.training_path(name), {"weights": fingerprints})
        models.save_model(training.state.result, files.model_path(name))
    training.finish()


if __name__ == "__main__":
    meeting.end_with(main)
