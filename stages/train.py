"""Stages train_lenet5 and train_mlp: ``python -m stages.train lenet5|mlp``."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from stages import alone, files, mnist, models, numerics, params, tracking, training
from stages.checkpoint import Checkpoint, key
from stages.errors import InputError, main_function
from stages.params import MODEL_NAMES, Device, ModelName, Recipe

if TYPE_CHECKING:
    from torch import Generator


def model_name(arguments: list[str]) -> ModelName:
    for name in MODEL_NAMES:
        if arguments == [name]:
            return name
    raise InputError(
        f"model is {' '.join(arguments) or 'not named'}, expected one of: {', '.join(MODEL_NAMES)}"
    )


@contextmanager
def fit(
    stage: str,
    name: ModelName,
    splits: Mapping[str, mnist.Split],
    recipe: Recipe,
    device: Device,
    generator: "Generator",
    run: tracking.Run,
) -> Iterator[training.State]:
    """Train a new network, showing each epoch here and in ``run``, and give its last state.

    A training of the same stage that was stopped is gone on with from its last finished epoch, as
    long as the body has not written what it makes of it.
    """
    network = models.build(name, recipe).to(device)
    steps = training.total_steps(recipe, len(splits["train"]))
    state = training.begin(network, recipe, steps, generator)
    checkpoint = Checkpoint(stage, key(state, splits, recipe))
    checkpoint.restore(state)
    if state.history:
        print(f"{stage} goes on after epoch {len(state.history)} of {recipe.epochs}", flush=True)
    for row in state.history:
        run.log_epoch(row)
    with tqdm(
        total=recipe.epochs, initial=len(state.history), desc=name, unit="epoch", disable=None
    ) as progress:

        def on_epoch(state: training.State) -> None:
            checkpoint.save(state)
            run.log_epoch(state.history[-1])
            progress.update()
            progress.write(epoch_line(state.history[-1], recipe.epochs))

        training.train(state, splits, recipe, on_epoch)
    yield state
    checkpoint.remove()


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    parts = [
        f"{split} loss {row[f'{split}_loss']:.4f} accuracy {row[f'{split}_accuracy']:.2%}"
        for split in mnist.SPLITS
        if f"{split}_loss" in row
    ]
    return f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  " + ",  ".join(parts)


def metrics(name: ModelName, state: training.State) -> dict[str, Any]:
    """The last epoch on the training images, and the fingerprints of the weights."""
    last = {key: state.history[-1][key] for key in ("train_accuracy", "train_loss")}
    return {name: last, "weights": files.fingerprint_lines(state.weights)}


@main_function
def main() -> None:
    name = model_name(sys.argv[1:])
    settings = params.load()
    stage = f"train_{name}"
    with alone.holding(stage), tracking.run(stage) as run:
        splits = {part: mnist.load_split(files.DATA_PREPARED, part) for part in mnist.SPLITS}
        generator = numerics.configure(settings.threads, settings.seed, settings.device)
        recipe = settings.of_model(name)
        with fit(stage, name, splits, recipe, settings.device, generator, run) as state:
            files.write_rows(files.history_path(name), state.history)
            files.write_json(files.training_path(name), metrics(name, state))
            models.save_model(state.network, files.model_path(name))


if __name__ == "__main__":
    main()
