"""Stages cell and validation of study/dvc.yaml: one recipe, one model, one seed.

    python -m stages.cell RECIPE MODEL SEED          trained on all training images
    python -m stages.cell RECIPE MODEL validation    trained without the validation images

The images that score a cell, the test images or the validation images, are looked at once, when
its network is trained.
"""

import sys

from safetensors.numpy import save

from stages import files, mnist, models, numerics, params, scoring, tracking
from stages.errors import InputError, main_function
from stages.params import ModelName, Params
from stages.train import fit, model_name

VALIDATION = "validation"


def parse(arguments: list[str], settings: Params) -> tuple[str, ModelName, str]:
    """Recipe, model, and the seed or `validation`.

    Raises:
        InputError: They are not what params.yaml has.
    """
    if len(arguments) != 3:
        raise InputError(f"usage: python -m stages.cell RECIPE MODEL SEED|{VALIDATION}")
    recipe, name, seed = arguments
    if recipe not in settings.recipes:
        raise InputError(f"recipe is {recipe}, expected one of: {', '.join(settings.recipes)}")
    if seed != VALIDATION and not (seed.isascii() and seed.isdecimal() and int(seed) < 2**32):
        raise InputError(f"seed is {seed}, expected a number from 0 to {2**32 - 1}")
    return recipe, model_name([name]), seed


@main_function
def main() -> None:
    settings = params.load()
    recipe_name, name, seed = parse(sys.argv[1:], settings)
    recipe = getattr(settings.recipes[recipe_name], name)
    cell = f"{recipe_name}-{name}-{seed}"
    stage = f"validation@{recipe_name}-{name}" if seed == VALIDATION else f"cell@{cell}"
    with tracking.run(stage) as run:
        train = mnist.load_split(files.DATA_PREPARED, "train")
        if seed == VALIDATION:
            size = settings.study.validation_size
            stay, drawn = mnist.hold_out(train.labels, size, settings.seed)
            train, scored = (
                mnist.Split(train.images[part], train.labels[part]) for part in (stay, drawn)
            )
        else:
            scored = mnist.load_split(files.DATA_PREPARED, "test")
        number = settings.seed if seed == VALIDATION else int(seed)
        generator = numerics.configure(settings.threads, number, settings.device)
        network, history, _ = fit(name, {"train": train}, recipe, settings.device, generator, run)
        examples = models.examples(scored, settings.device)
        outputs = models.outputs(network, examples.images)
        folder = files.CELLS / cell
        files.write_csv(
            folder / "history.csv", list(history[0]), (list(row.values()) for row in history)
        )
        models.save_model(network, folder / "model.safetensors")
        content = {"outputs": outputs.cpu().numpy(), "labels": scored.labels.copy()}
        files.write_bytes(folder / "outputs.safetensors", save(content))
        scores = {
            "accuracy": scoring.accuracy(outputs, examples.labels),
            "loss": scoring.loss(outputs, examples.labels),
        }
        files.write_json(folder / "scores.json", scores)
        print(f"{cell}: accuracy {scores['accuracy']:.2%}, loss {scores['loss']:.4f}")


if __name__ == "__main__":
    main()
