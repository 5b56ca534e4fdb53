"""The model card: what the models were made of, how good they are, and what they are not for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from stages import scoring
from stages.base.files import rounded
from stages.base.params import TITLES, TRAIN_SIZE, Params
from stages.show.tables import table

if TYPE_CHECKING:
    from stages.networks.models import Answers

COLUMNS = "model | test accuracy | 95 % interval | calibration error | wrong | of these disputed"
TEXT = """# Model card: {titles} on MNIST

They read one handwritten digit: a uint8 image of 28x28 pixels gives ten probabilities.

{scores}

- **Data.** Trained on {train:,} of MNIST's {all:,} training images, scored on {test:,} test images.
  MNIST has digits of American Census Bureau employees and high school students, size-normalised,
  centred, white on black.
- **Recipe.** `{recipe}` of `recipes.yaml`, seed {seed}. The study repeats it with other seeds.
{recipes}
- **Accuracy.** With Wilson's interval over the test images, not over seeds.
- **Calibration.** The error is the mean distance of confidence and accuracy in {bins} bins.
- **Disputed labels.** No majority of five annotators confirms the label of {disputed} test images
  (Northcutt et al., 2021). An answer that differs from such a label counts as wrong above.
- **Not for** several digits, letters, photographs, dark digits on white, or digits that are not
  centred. Any image gets one of the ten digits, and on such images the confidence means nothing.
  Not for decisions about people or money without somebody who checks them.
"""


def text(settings: Params, answers: Mapping[str, "Answers"]) -> str:
    """The card of the models that gave these answers to the test images."""
    rows, recipes = [], []
    for name, given in answers.items():
        correct, metric = given.correct, scoring.METRICS["calibration_error"]
        ends = " to ".join(f"{end:.2%}" for end in rounded(scoring.accuracy_interval(correct)))
        error = format(rounded(metric.of(given)), metric.form)
        disputed = np.isin(np.arange(len(correct)), scoring.NO_MAJORITY)
        wrong = [f"{int((~correct).sum())}", f"{int((~correct & disputed).sum())}"]
        rows.append([TITLES[name], f"{scoring.accuracy(correct):.2%}", ends, error, *wrong])
        chosen = settings.of_model(name).model_dump(exclude_defaults=True)
        recipes.append(f"  - {TITLES[name]}: " + ", ".join(f"{k} {v}" for k, v in chosen.items()))
    train = settings.data.train_limit or TRAIN_SIZE - settings.data.validation_size
    return TEXT.format(
        titles=" and ".join(TITLES[name] for name in answers), all=TRAIN_SIZE, train=train,
        scores=table(COLUMNS, "lrcrrr", rows), recipes="\n".join(recipes), test=len(correct),
        recipe=settings.recipe, seed=settings.seed, bins=scoring.CALIBRATION_BINS,
        disputed=len(scoring.NO_MAJORITY),
    )  # fmt: skip
