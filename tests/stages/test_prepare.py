"""The results of prepare from MNIST's own files, checked with Pillow and by counting."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from stages import prepare
from stages.base import files
from stages.base.splits import Split, load_split
from stages.mnist import idx

SIZES = {"train": 300, "validation": 30, "test": 10_000}


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> Path:
    """Where prepare has run, with few images to train on and some held out."""
    folder = tmp_path_factory.mktemp("prepare")
    shutil.copytree(ROOT / files.DATA_RAW, folder / files.DATA_RAW)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for key, size in (("train_limit", SIZES["train"]), ("validation_size", SIZES["validation"])):
        assert f"  {key}: 0 " in text
        text = text.replace(f"  {key}: 0 ", f"  {key}: {size} ")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "recipes.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MIRROR", "off")
        prepare.main()
    return folder / files.DATA_PREPARED


def test_the_test_split_is_every_image_made_larger_beside_its_label(raw, prepared):
    part = load_split(prepared, "test")
    assert bytes(part.labels) == raw[idx.TEST_LABELS][8:]
    for index in (0, 1, 9_999):
        start = 16 + 784 * index
        image = Image.frombytes("L", (28, 28), raw[idx.TEST_IMAGES][start : start + 784])
        larger = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        assert (part.images[index] == larger).all()


def test_the_counts_have_a_row_a_split_and_a_column_a_digit(prepared):
    with (prepared / "counts.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["split", *"0123456789", "images"]
    for (name, *counts), (expected, size) in zip(rows, SIZES.items(), strict=True):
        labels = load_split(prepared, name).labels
        assert (name, len(labels)) == (expected, size)
        by_digit = np.bincount(labels, minlength=10).tolist()
        assert [int(count) for count in counts] == [*by_digit, size]
        if name == "validation":
            assert by_digit == [3] * 10  # stratified: a tenth of the images are of each digit


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


def test_the_contact_sheet_has_the_first_20_images_of_each_digit_in_a_row(raw, prepared):
    with Image.open(prepared / "contact_sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (10 * 28, 20 * 28)
    everything = idx.split(raw, SIZES["validation"], SIZES["train"], seed=0)["train"]
    shown = sheet.reshape(10, 28, 20, 28).swapaxes(1, 2)
    for digit in range(10):
        of_digit = everything.images[everything.labels == digit]
        assert len(of_digit) > 20
        assert (255 - shown[digit] == of_digit[:20]).all()  # black on white, as on paper


def test_a_digit_with_few_images_leaves_the_rest_of_its_row_white():
    images = np.full((3, 28, 28), 200, np.uint8)
    sheet = np.asarray(prepare.contact_sheet(Split(images, np.array([9, 9, 0], np.uint8))))
    shown = (sheet == 55).reshape(10, 28, 20, 28).all((1, 3))
    assert np.argwhere(shown).tolist() == [[0, 0], [9, 0], [9, 1]]
    assert (sheet == 255).sum() == sheet.size - 3 * 784
