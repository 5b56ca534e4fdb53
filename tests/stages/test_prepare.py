"""Splits and digits without images. test_comparison.py holds the bytes of MNIST's own."""

import numpy as np

from stages import prepare
from stages.base.splits import Split


def test_digits_without_images_count_0_also_where_a_split_is_empty():
    """As the validation split is, unless params.yaml says otherwise."""
    labels = {"train": [0, 2, 2], "validation": []}
    parts = {
        name: Split(np.zeros((len(digits), 28, 28), np.uint8), np.array(digits, np.uint8))
        for name, digits in labels.items()
    }
    assert prepare.counts(parts | {"test": parts["train"]}) == [
        ["train", 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3],
        ["validation", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ["test", 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3],
    ]


def test_a_digit_with_few_images_leaves_the_rest_of_its_row_white():
    images = np.full((3, 28, 28), 200, np.uint8)
    sheet = np.asarray(prepare.contact_sheet(Split(images, np.array([9, 9, 0], np.uint8))))
    shown = (sheet == 55).reshape(10, 28, 20, 28).all((1, 3))
    assert np.argwhere(shown).tolist() == [[0, 0], [9, 0], [9, 1]]
    assert (sheet == 255).sum() == sheet.size - 3 * 784
