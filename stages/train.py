"""Stages train_lenet5 and train_mlp: ``python -m stages.train lenet5|mlp``."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from stages import files, mnist, models, numerics, params, tracking, training
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


def fit(
    name: ModelName,
    splits: Mapping[str, mnist.Split],
    recipe: Recipe,
    device: Device,
    generator: "Generator",
    run: tracking.Run,
) -> tuple[models.Network, list[training.Row], list[tuple[str, str]]]:
    """Train a new network, showing each epoch here and in ``run``.

    Returns:
        The network, each epoch's numbers, and the fingerprint of the weights at each moment.
    """
    network = models.build(name, recipe).to(device)
    history: list[training.Row] = []
    weights: list[tuple[str, str]] = []
    with tqdm(total=recipe.epochs, desc=name, unit="epoch", disable=None) as progress:

        def on_epoch(row: training.Row) -> None:
            history.append(files.rounded(row))
            run.log_epoch(history[-1])
            progress.update()
            progress.write(epoch_line(history[-1], recipe.epochs))

        def on_weights(moment: str, network: models.Network) -> None:
            weights.append((moment, models.fingerprint(network)))

        training.train(network, splits, recipe, generator, on_epoch, on_weights)
    return network, history, weights


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    parts = [
        f"{split} loss {row[f'{split}_loss']:.4f} accuracy {row[f'{split}_accuracy']:.2%}"
        for split in mnist.SPLITS
        if f"{split}_loss" in row
    ]
    return f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  " + ",  ".join(parts)


@main_function
def main() -> None:
    name = model_name(sys.argv[1:])
    settings = params.load()
    with tracking.run(f"train_{name}") as run:
        splits = {part: mnist.load_split(files.DATA_PREPARED, part) for part in mnist.SPLITS}
        generator = numerics.configure(settings.threads, settings.seed, settings.device)
        network, history, weights = fit(
            name, splits, settings.of_model(name), settings.device, generator, run
        )
        files.write_csv(
            files.history_path(name), list(history[0]), (list(row.values()) for row in history)
        )
        files.write_csv(files.weights_path(name), ["weights", "sha256"], weights)
        models.save_model(network, files.model_path(name))


if __name__ == "__main__":
    main()
