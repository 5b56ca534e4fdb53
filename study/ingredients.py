"""The ingredients of a training, each alone, on fixed small inputs: what :mod:`study.bits` hashes.

An ingredient is what a recipe can name, such as an optimizer, or what every training has, such as
the order of the images. Its inputs reach what a training reaches: weights as they are drawn, large
and small ones, black and white images, a batch larger than the blocks that the layers compute in.
"""

import contextlib
import copy
import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from stages import scoring
from stages.arithmetic import losses, numerics
from stages.base import params
from stages.base.params import Augmentation, Distillation, ModelName, PlainRecipe, Recipe
from stages.base.splits import INPUT_SIDE, Split
from stages.learn import augmentation, average, teachers, training
from stages.learn.resume import Training
from stages.networks import models
from study import cell
from study.ranking import ranked, survivors
from study.tables import Row

SEED = 0
BATCH = 130  # images: the layers compute 64 at a time, so two blocks and a rest
LENGTH = 3  # pixels, of half a stroke's width
Values = Iterable[Any]

PLAIN = PlainRecipe(
    epochs=2, batch_size=64, learning_rate=0.05, momentum=0.9, dropout=0, softmax_before_loss=False
)
FULL = Augmentation(rotation=10, shift=2, scale=0.1, shear=0.1, elastic=0.8)


def drawn(count: int, seed: int) -> Split:
    """``count`` images (N, 32, 32) of a stroke each, with random labels; one is black, one white.

    Whole numbers of a generator whose stream NumPy keeps, and IEEE 754's own operations.
    """
    draw = np.random.default_rng(seed)
    begin, end = draw.integers(4, INPUT_SIDE - 4, (2, count, 1, 1, 2))
    pixels = np.moveaxis(np.mgrid[:INPUT_SIDE, :INPUT_SIDE], 0, -1)
    way = end - begin
    share = ((pixels - begin) * way).sum(-1) / np.maximum((way * way).sum(-1), 1)
    away = pixels - begin - way * share.clip(0, 1)[..., None]
    images = (255 - 255 / LENGTH**2 * (away * away).sum(-1)).clip(0, 255).astype(np.uint8)
    images[0], images[1] = 0, 255
    return Split(images, draw.integers(0, params.CLASSES, count).astype(np.uint8))


def sha256(values: Values) -> str:
    """SHA-256 of tensors and arrays by their bytes, and of other values by their text."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _network(name: ModelName, scale: float = 1.0, **settings: Any) -> models.Network:
    """A network whose weights are ``scale`` times as large as a training begins with."""
    numerics.configure(1, SEED)
    network = models.build(name, Recipe(**(dict(PLAIN) | settings)))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(scale)
    return network


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    data = models.examples(drawn(BATCH, SEED))
    return data.images, data.labels.long()


def _step(network: models.Network) -> Iterator[Any]:
    """The outputs, the loss and the gradients, of labels and of the network's own answers.

    Late in a training, the loss is small and most gradients are nearly zero, as of own answers.
    """
    images, labels = _batch()
    for wanted in (labels, None):
        outputs = network(images)
        loss = losses.cross_entropy(outputs, outputs.argmax(1) if wanted is None else wanted)
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        yield from (outputs, loss, *(weight.grad for weight in network.parameters()))


def layers(name: ModelName) -> Iterator[Any]:
    """Initial weights and their fingerprint; outputs and gradients at three sizes of weights."""
    network = _network(name)
    yield from (*network.parameters(), models.fingerprint(network))
    for scale in (1.0, 6.0, 2.0**-8):
        yield from _step(_network(name, scale))
    many = drawn(models.EVALUATION_BATCH + 9, SEED)
    yield from dataclasses.astuple(models.answers(network, many))


def softmax(name: ModelName) -> Iterator[Any]:
    """The same with softmax as the last layer."""
    for scale in (1.0, 6.0):
        yield from _step(_network(name, scale, softmax_before_loss=True))
    network = _network(name, softmax_before_loss=True)
    yield from dataclasses.astuple(models.answers(network, drawn(BATCH, SEED)))


def dropout(name: ModelName) -> Iterator[Any]:
    for probability in (0.5, 0.2):
        yield from _step(_network(name, dropout=probability))


def _layer() -> Any:
    """A small network, whose weights are drawn as those of the models are."""
    numerics.configure(1, SEED)
    layer = torch.nn.Linear(30, 10)
    models.initialize(layer)
    return layer


def _updates(recipe: Recipe) -> Iterator[Any]:
    """Weights and learning rates over some steps with gradients of very different sizes."""
    network = _layer()
    state = training.begin(network, recipe, 12, torch.Generator())
    draw = torch.Generator().manual_seed(SEED)
    for step in range(12):
        for weight in network.parameters():
            weight.grad = (torch.rand(weight.shape, generator=draw) - 0.5) * 10.0 ** (2 - step)
        rate = state.rate(step)
        yield rate
        state.optimizer.step(rate)
    yield from network.parameters()


def optimizer(name: str) -> Iterator[Any]:
    for decay, momentum in ((0.0, 0.9), (0.01, 0.5), (0.1, 0.0)):
        changes = {"optimizer": name, "weight_decay": decay, "momentum": momentum}
        yield from _updates(Recipe(**(dict(PLAIN) | changes)))


def schedule(name: str) -> Iterator[Any]:
    yield from _updates(Recipe(**(dict(PLAIN) | {"schedule": name})))
    yield [training.total_steps(Recipe(**dict(PLAIN)), images) for images in (64, 65, 60_000)]


def distortions() -> Iterator[Any]:
    images = models.examples(drawn(BATCH, SEED)).images
    nothing = Augmentation(rotation=0, shift=0, scale=0, shear=0, elastic=0)
    far = Augmentation(rotation=180, shift=32, scale=0.9, shear=1, elastic=20)
    for settings in (FULL, nothing, far):
        generator = torch.Generator().manual_seed(SEED)
        yield augmentation.distort(images, settings, generator).float()
        yield generator.get_state()


def averaging() -> Iterator[Any]:
    network = _layer()
    mean = copy.deepcopy(network)
    for step in (1, 2, 3, 50, 2_000):
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(0.9)
        average.update(mean, network, 0.99, step)
    yield from mean.parameters()


def distillation(name: ModelName) -> Iterator[Any]:
    """The answers of teachers, the loss of a student and its gradients; teachers' own seeds."""
    settings = Distillation(teachers=2, recipe=PLAIN, temperature=2.5, weight=0.7)
    taught = [_network("lenet5", scale) for scale in (1.0, 6.0)]
    images, labels = _batch()
    answers = teachers.answers(taught, images, settings.temperature)
    student = _network(name)
    loss = teachers.loss(student(images), labels, answers, settings)
    loss.backward()  # type: ignore[no-untyped-call]
    yield from (answers, loss, *(weight.grad for weight in student.parameters()))
    yield [teachers.seed(student, number) for student in (0, 7) for number in (1, 2)]


def order() -> Iterator[Any]:
    generator = torch.Generator().manual_seed(SEED)
    yield from (training.random_order(size, generator) for size in (1, 500, 60_000))


def interrupted(name: ModelName, recipe: Recipe, train: Split) -> Training:
    """A training that was interrupted after its first epoch, and went on from its checkpoint."""
    for last in (1, recipe.epochs):
        generator = numerics.configure(1, SEED)
        with contextlib.redirect_stdout(io.StringIO()):
            begun = Training("bits", name, {"train": train}, recipe, "cpu", generator)
            next(row for row in begun.epochs() if row["epoch"] == last)
    begun.finish()
    return begun


def resume(name: ModelName) -> Iterator[Any]:
    """The records of a training that was interrupted."""
    begun = interrupted(name, Recipe(**dict(PLAIN)), drawn(BATCH, SEED))
    yield from (begun.state.history, begun.state.weights)


def _answers(strength: int) -> models.Answers:
    """Probabilities that are certain, nearly certain, wrong and uniform."""
    draw = np.random.default_rng(SEED)
    logits = draw.integers(-40, 40, (BATCH, params.CLASSES)) * draw.integers(0, 4, (BATCH, 1))
    sure = losses.probabilities(torch.from_numpy(logits * strength / 8)).numpy()
    sure[0] = np.eye(params.CLASSES)[3]
    return models.Answers("", 0.0, sure, drawn(BATCH, SEED).labels)


def scores() -> Iterator[Any]:
    answers = _answers(2)
    yield from cell.confidence_scores("test", answers.probabilities, answers.labels).values()
    yield from (answers.predicted, answers.confidence, answers.correct)
    yield from scoring.calibration(answers.confidence, answers.correct)


def validation() -> Iterator[Any]:
    """Which images are held out; the temperature that is fitted on them, and scores with it."""
    for part in cell.divided(drawn(700, SEED), 100, SEED):
        yield from (part.images, part.labels)
    yield from (cell.scores_of(_answers(2), _answers(strength)) for strength in (1, 8))


def ranking() -> Iterator[Any]:
    """Which trials of a rung go on, among equal, unfinished and distorted trials."""
    draw = np.random.default_rng(SEED)
    rows: list[Row] = [
        {
            "trial": trial,
            "accuracy": None if trial % 11 == 5 else int(draw.integers(90, 99)) / 100,
            "loss": None if trial % 11 == 5 else int(draw.integers(1, 9)) / 10,
            "distortion": int(draw.integers(0, 4)) / 4,
        }
        for trial in range(40)
    ]
    best = ranked(rows)
    yield from (best, survivors(best, 13), survivors(best, 4))


def of_recipe(name: ModelName, recipe: PlainRecipe) -> dict[str, Callable[[], Values]]:
    """The ingredients that a training consists of, by name."""
    used: dict[str, Callable[[], Values]] = {
        name: lambda: layers(name),
        recipe.optimizer: lambda: optimizer(recipe.optimizer),
        recipe.schedule: lambda: schedule(recipe.schedule),
        "order of the images": order,
        f"resume {name}": lambda: resume(name),
        "scores": scores,
    }
    if recipe.dropout:
        used[f"dropout in {name}"] = lambda: dropout(name)
    if recipe.softmax_before_loss:
        used[f"softmax after {name}"] = lambda: softmax(name)
    if recipe.augmentation:
        used["distortions"] = distortions
    if recipe.averaging:
        used["averaging"] = averaging
    if taught := getattr(recipe, "distillation", None):
        used |= of_recipe("lenet5", taught.recipe)
        used[f"distillation of {name}"] = lambda: distillation(name)
    return used
