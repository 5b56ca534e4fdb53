"""Small trainings with settings that are no defaults, for the tests of both scripts that train."""

import numpy as np
import torch

from conftest import ROOT
from stages.base import params, splits
from stages.base.params import Recipe
from stages.base.splits import Split
from stages.learn import training
from stages.networks import models

# None of these values is a default of PyTorch or of a recipe
SGD = Recipe(
    epochs=2,
    batch_size=32,
    optimizer="sgd",
    learning_rate=0.037,
    schedule="constant",
    momentum=0.83,
    weight_decay=0.021,
    dropout=0.0,
    softmax_before_loss=False,
)
ADAMW = SGD.model_copy(update={"optimizer": "adamw", "weight_decay": 0.23})


def begun(recipe, images, name="mlp", seed=5):
    torch.manual_seed(seed)
    network = models.build(name, recipe)
    generator = torch.Generator().manual_seed(seed)
    return training.begin(network, recipe, training.total_steps(recipe, images), generator)


def trained(parts, recipe, name="mlp", seed=5, on_epoch=lambda state: None):
    state = begun(recipe, len(parts["train"]), name, seed)
    for _ in training.epochs(state, parts, recipe):
        on_epoch(state)
    return state


def garbage(part, seed=0, labels=True):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, part.images.shape, np.uint8)
    wrong = generator.integers(0, 10, part.labels.shape, np.uint8)
    return Split(images, wrong if labels else part.labels)


def script(monkeypatch, folder):
    """Runs a script's main() on given splits in an empty folder; returns its settings.

    LeNet-5 is trained with ADAMW, the MLP with SGD.
    """
    monkeypatch.chdir(ROOT)
    settings = params.load()
    recipes = dict(settings.recipes)
    recipes["documented"] = recipes["record_without_decay"] = params.Recipes(lenet5=ADAMW, mlp=SGD)
    settings = settings.model_copy(update={"recipes": recipes, "threads": 1})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MIRROR", "off")
    monkeypatch.setattr(params, "load", lambda: settings)

    def start(module, parts, *arguments):
        monkeypatch.setattr(splits, "load_split", lambda folder, name: parts[name])
        monkeypatch.setattr("sys.argv", ["script", *arguments])
        module.main()
        return settings

    return start
