"""Distortions do what their settings say, to each image in its own way."""

import pytest
import torch

from stages import augmentation
from stages.params import Augmentation

NOTHING = Augmentation(rotation=0.0, shift=0.0, scale=0.0, shear=0.0, elastic=0.0)


@pytest.fixture(scope="module")
def images(resized):
    return torch.from_numpy(resized["train"].images[:200]).unsqueeze(1)


def distort(images, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return augmentation.distort(images, NOTHING.model_copy(update=settings), generator)


def test_settings_of_0_change_no_pixel(images):
    assert torch.equal(distort(images), images.float())


@pytest.mark.parametrize(
    "settings",
    [{"rotation": 10.0}, {"shift": 2.0}, {"scale": 0.2}, {"shear": 0.2}, {"elastic": 1.0}],
)
def test_each_setting_alone_distorts_each_image_in_its_own_way_from_the_seed(images, settings):
    twice = distort(images[:1].repeat(5, 1, 1, 1), **settings)
    assert len({image.numpy().tobytes() for image in twice}) == 5
    assert torch.equal(distort(images, **settings), distort(images, **settings))
    assert not torch.equal(distort(images, **settings), distort(images, seed=1, **settings))
    # A digit stays: about as much ink as before
    ink = distort(images, **settings).sum((1, 2, 3)) / images.float().sum((1, 2, 3))
    assert 0.8 < float(ink.mean()) < 1.25


def test_a_pixel_comes_from_where_the_coordinates_say_and_from_outside_comes_black(images):
    y, x = (
        axis.flatten().float()
        for axis in torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    )
    moved = augmentation._sample(images, x.expand(200, -1) + 3, y.expand(200, -1) - 2)
    expected = torch.zeros_like(moved)
    expected[:, :, 2:, :-3] = images[:, :, :-2, 3:].float()
    assert torch.equal(moved, expected)
    halfway = augmentation._sample(images, x.expand(200, -1) + 0.5, y.expand(200, -1))
    expected = (images.float() + torch.nn.functional.pad(images, (0, 1))[..., 1:].float()) / 2
    assert torch.equal(halfway, expected)
    far = augmentation._sample(images, x.expand(200, -1) + 1e9, y.expand(200, -1))
    assert not far.any()
