"""Figures of rare cases. The committed ones are in test_committed.py and test_comparison.py."""

import numpy as np
import pytest

from stages.base.params import MODEL_NAMES
from stages.show import figures
from study import pictures

PICTURES = np.random.default_rng(0).integers(0, 256, (40, 32, 32)).astype(np.uint8)
WRONG, SURE = [3, 4, 30], [0.7, 0.9, 0.8]  # of 40 images


def test_fewer_mistakes_than_places_are_shown_with_the_surest_first():
    actual, confidence = np.arange(40) % 10, np.full(40, 0.999)
    predicted = actual.copy()
    predicted[WRONG], confidence[WRONG] = (actual[WRONG] + 3) % 10, SURE
    figure = figures.mistakes("lenet5", PICTURES, actual, predicted, confidence)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [
        "4 taken for 7\n90.00 % sure",
        "0 taken for 3\n80.00 % sure",
        "3 taken for 6\n70.00 % sure",
    ]
    for axes, index in zip(shown, (4, 30, 3), strict=True):
        assert [text.get_text() for text in axes.texts] == [f"no. {index}"]
        assert (255 - np.asarray(axes.images[0].get_array()) == PICTURES[index]).all()


def test_a_digit_without_images_and_a_model_without_mistakes_have_no_shade():
    perfect = {name: 9 * np.eye(10, dtype=int) for name in MODEL_NAMES}
    low, high = figures.confusion(perfect).axes[0].images[0].get_clim()
    assert low == 0 < high
    counts = np.diag([0] + [9] * 9)
    counts[4, 0] = 3
    axes = figures.confusion(dict.fromkeys(MODEL_NAMES, counts)).axes[0]
    shade = np.asarray(axes.images[0].get_array())
    assert shade[0].tolist() == [0] * 10
    assert shade.max() == shade[4, 0] == pytest.approx(3 / 12)
    assert ": 3 mistakes in 84" in axes.get_title("left")
    # A row is an actual digit, a column a predicted one
    [(x, y)] = [text.get_position() for text in axes.texts if text.get_text() == "3"]
    assert (x, y, axes.get_xlabel(), axes.get_ylabel()) == (0, 4, "predicted digit", "actual digit")


def test_the_missed_images_have_no_empty_line_whether_none_or_too_many():
    rows = [{"index": at % 40, "label": 1, "lenet5": 2, "mlp": 3, "no_majority": int(at == 7)}
            for at in range(50)]  # fmt: skip
    for count, shown in ((0, 0), (1, 1), (9, 9), (50, 48)):
        figure = pictures.missed(PICTURES, rows[:count])
        panels = [axes for axes in figure.axes if axes.images]
        titles = [axes.get_title() for axes in panels]
        star = [" *" if at == 7 else "" for at in range(shown)]
        assert titles == [f"no. {at % 40}: 1{star[at]}\n2, 3" for at in range(shown)]
        lines = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
        assert len(lines) == max(1, -(-shown // 8))
