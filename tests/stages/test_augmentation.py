"""Distortions follow their settings, for each image in its own way."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from stages.arithmetic import reference
from stages.base.params import Augmentation
from stages.learn import augmentation

DRAWS = 2_000
CENTRE = 15.5  # of the image, between its middle pixels; where no setting but a shift moves


def distort(images, seed=0, **settings):
    nothing = dict.fromkeys(Augmentation.model_fields, 0.0)
    generator = torch.Generator().manual_seed(seed)
    return augmentation.distort(images, Augmentation(**nothing | settings), generator)


def sources(**settings):
    """Where each pixel (y, x) of a distorted image comes from, x and y: (DRAWS, 2, 32, 32)."""
    field = []

    def note(images, x, y):
        field.extend((x, y))
        return images.float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation.choice, "of", lambda _: reference)
        patch.setattr(augmentation.choice, "compare", lambda *_: None)
        patch.setattr(reference, "sample", note)
        distort(torch.zeros(DRAWS, 1, 32, 32, dtype=torch.uint8), **settings)
    return torch.stack(field, 1).double().view(DRAWS, 2, 32, 32).numpy()


def affine(field):
    """The matrices (N, 2, 2) and shifts (N, 2) that the middle of a field consists of."""
    middle = np.arange(9, 23)
    y, x = (axis.ravel() - CENTRE for axis in np.meshgrid(middle, middle, indexing="ij"))
    design = np.stack([x, y, np.ones(len(x))])  # (3, P)
    values = field[:, :, 9:23, 9:23].reshape(len(field), 2, -1)
    fitted = values @ np.linalg.pinv(design)
    assert np.abs(fitted @ design - values).max() < 1e-3  # it is affine
    return fitted[:, :, :2], fitted[:, :, 2] - CENTRE


def assert_uniform(values, largest):
    """Between minus and plus ``largest``, as 2,000 draws can tell."""
    if not largest:
        assert np.abs(values).max() < 1e-3
        return
    assert abs(values.mean()) < 0.055 * largest
    assert -1.001 * largest <= values.min() < -0.98 * largest
    assert 0.98 * largest < values.max() <= 1.001 * largest
    for share in (-0.5, 0.0, 0.5):
        assert abs((values < share * largest).mean() - (1 + share) / 2) < 0.045


ALL = {"rotation": 20.0, "shift": 1.5, "scale": 0.1, "shear": 0.15}


@pytest.mark.parametrize("settings", [*({name: 2 * value} for name, value in ALL.items()), ALL])
def test_each_setting_is_a_uniform_and_independent_part_of_an_affine_map(settings):
    """A rotation about the centre in degrees, times a scale of each axis, times a shear of the
    rows by their height; and a shift in pixels along either axis."""
    matrix, shift = affine(sources(**settings))
    # A matrix is such a product in one way
    angle = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    scale_x = np.hypot(matrix[:, 0, 0], matrix[:, 1, 0])
    scale_y = np.linalg.det(matrix) / scale_x
    shear = (matrix[:, :, 0] * matrix[:, :, 1]).sum(1) / scale_x**2
    parts = {
        "rotation": [np.degrees(angle)],
        "shift": [*shift.T],
        "scale": [scale_x - 1, scale_y - 1],
        "shear": [shear],
    }
    for name, values in parts.items():
        for value in values:
            assert_uniform(value, settings.get(name, 0.0))
    drawn = [value for name in settings for value in parts[name]]
    for a, b in itertools.combinations(drawn, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.09


def test_each_pixel_is_scipys_bilinear_sample_also_across_the_border():
    """Of noise, because MNIST's own images are black at the border. At whole and half pixels, a
    wrong neighbour shows at once."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=generator)
    anywhere = 39 * torch.rand(20, 2, 1024, generator=generator) - 4
    for x, y in [*anywhere, *(2 * anywhere).round() / 2, 1e9 * anywhere[0]]:
        moved = reference.sample(noise, x.repeat(3, 1), y.repeat(3, 1))
        where = [y.double().numpy(), x.double().numpy()]
        for image, pixels in zip(noise[:, 0].double().numpy(), moved, strict=True):
            expected = map_coordinates(image, where, order=1, mode="grid-constant", cval=0)
            assert np.abs(pixels.flatten().double().numpy() - expected).max() < 0.51
