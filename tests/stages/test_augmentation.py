"""Distortions follow their settings, for each image in its own way."""

import itertools

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates
from scipy.stats import kurtosis

from stages.base.params import Augmentation
from stages.learn import augmentation

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
    halfway = augmentation._sample(images, x.expand(200, -1) + 0.5, y.repeat(200, 1))
    expected = (images.float() + torch.nn.functional.pad(images, (0, 1))[..., 1:].float()) / 2
    assert torch.equal(halfway, expected.round())  # a pixel is a whole number
    far = augmentation._sample(images, x.expand(200, -1) + 1e9, y.repeat(200, 1))
    assert not far.any()


DRAWS = 2_000
CENTRE = 15.5  # of the image, between its middle pixels; where no setting but a shift moves


def sources(count=DRAWS, seed=0, **settings):
    """Where each pixel (y, x) of a distorted image comes from, x and y: (count, 2, 32, 32)."""
    found = []

    def note(images, x, y):
        found.extend((x, y))
        return images.float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "_sample", note)
        distort(torch.zeros(count, 1, 32, 32, dtype=torch.uint8), seed, **settings)
    return torch.stack(found, 1).double().view(count, 2, 32, 32).numpy()


def affine(field):
    """The matrices (N, 2, 2) and shifts (N, 2) that the middle of a field consists of."""
    middle = np.arange(9, 23)
    y, x = (axis.ravel() - CENTRE for axis in np.meshgrid(middle, middle, indexing="ij"))
    design = np.stack([x, y, np.ones(len(x))])  # (3, P)
    values = field[:, :, 9:23, 9:23].reshape(len(field), 2, -1)
    found = values @ np.linalg.pinv(design)
    assert np.abs(found @ design - values).max() < 1e-3  # it is affine
    return found[:, :, :2], found[:, :, 2] - CENTRE


def assert_uniform(values, largest):
    """Between minus and plus ``largest``, as 2,000 draws can tell."""
    assert abs(values.mean()) < 0.055 * largest
    assert -1.001 * largest <= values.min() < -0.98 * largest
    assert 0.98 * largest < values.max() <= 1.001 * largest
    for share in (-0.5, 0.0, 0.5):
        assert abs((values < share * largest).mean() - (1 + share) / 2) < 0.045


def assert_independent(*values):
    for a, b in itertools.combinations(values, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.09


def test_rotation_turns_about_the_centre_by_degrees_either_way():
    matrix, shift = affine(sources(rotation=20.0))
    angle = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    assert_uniform(np.degrees(angle), 20.0)
    turned = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1)
    assert np.allclose(matrix.reshape(-1, 4), turned, atol=1e-4)
    assert np.abs(shift).max() < 1e-3


def test_shift_is_in_pixels_along_either_axis():
    matrix, shift = affine(sources(shift=3.0))
    assert np.allclose(matrix, np.eye(2), atol=1e-4)
    for axis in (0, 1):
        assert_uniform(shift[:, axis], 3.0)
    assert_independent(*shift.T)


def test_scale_stretches_and_shrinks_each_axis_by_itself():
    matrix, shift = affine(sources(scale=0.3))
    assert np.abs(matrix[:, [0, 1], [1, 0]]).max() < 1e-4
    for axis in (0, 1):
        assert_uniform(matrix[:, axis, axis] - 1, 0.3)
    assert_independent(matrix[:, 0, 0], matrix[:, 1, 1])
    assert np.abs(shift).max() < 1e-3


def test_shear_moves_rows_sideways_by_their_height():
    matrix, shift = affine(sources(shear=0.25))
    assert_uniform(matrix[:, 0, 1], 0.25)
    matrix[:, 0, 1] = 0
    assert np.allclose(matrix, np.eye(2), atol=1e-4)
    assert np.abs(shift).max() < 1e-3


def test_all_settings_at_once_are_each_within_their_range_and_independent():
    matrix, shift = affine(sources(rotation=10.0, shift=1.5, scale=0.1, shear=0.15))
    # A matrix that is a rotation, times a scale of each axis, times a shear, is so in one way
    angle = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    scale_x = np.hypot(matrix[:, 0, 0], matrix[:, 1, 0])
    scale_y = np.linalg.det(matrix) / scale_x
    shear = (matrix[:, :, 0] * matrix[:, :, 1]).sum(1) / scale_x**2
    assert_uniform(np.degrees(angle), 10.0)
    assert_uniform(scale_x - 1, 0.1)
    assert_uniform(scale_y - 1, 0.1)
    assert_uniform(shear, 0.15)
    assert_uniform(shift[:, 0], 1.5)
    assert_uniform(shift[:, 1], 1.5)
    assert_independent(angle, scale_x, scale_y, shear, *shift.T)


def test_elastic_is_the_deviation_of_the_control_points_of_a_cubic_spline_every_4_pixels():
    field = sources(elastic=1.5)
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    moves = (field - np.stack([x, y]))[:, :, 6:26, 6:26]
    # The weights of each pixel's control points, (32, 12), by SciPy
    spline = BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    points = 4 * np.arange(-2, 10) + 1.5  # control points, between the middle pixels of each four
    weights = np.nan_to_num(spline((np.arange(32)[:, None] - points) / 4))
    assert np.allclose(weights.sum(1), 1)
    of_rows = (weights @ weights.T)[6:26, 6:26]  # covariances
    deviation = 1.5 * np.sqrt(np.outer(np.diag(of_rows), np.diag(of_rows)))
    assert np.abs(moves.mean((0, 2, 3))).max() < 0.03
    assert np.abs(moves.std(0) / deviation - 1).max() < 0.08
    assert np.abs((moves.std(0) / deviation).mean((1, 2)) - 1).max() < 0.02
    for distance in (1, 4, 8):  # neighbours move together, far ones do not
        expected = np.diag(of_rows, distance).mean() / np.diag(of_rows).mean()
        for axis in (2, 3):
            a, b = (np.take(moves, range(start, start + 20 - distance), axis)
                    for start in (0, distance))  # fmt: skip
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(expected, abs=0.03)
    assert abs(np.corrcoef(moves[:, 0].ravel(), moves[:, 1].ravel())[0, 1]) < 0.03
    assert abs(kurtosis(moves[:, 0, 10, 10])) < 0.4  # normal; uniform ones have -1.2
    assert abs(kurtosis(moves[:, 0, 5, 5])) < 0.4


def test_each_pixel_is_the_bilinear_sample_that_scipy_takes_also_across_the_border():
    """Of noise, because MNIST's own images are black at the border. At whole and half pixels, a
    wrong neighbour shows at once."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=generator)
    anywhere = 39 * torch.rand(20, 2, 1024, generator=generator) - 4
    for x, y in [*anywhere, *(2 * anywhere).round() / 2]:
        found = augmentation._sample(noise, x.repeat(3, 1), y.repeat(3, 1))
        where = [y.double().numpy(), x.double().numpy()]
        for image, moved in zip(noise[:, 0].double().numpy(), found, strict=True):
            expected = map_coordinates(image, where, order=1, mode="grid-constant", cval=0)
            assert np.abs(moved.flatten().numpy() - expected).max() < 0.51


def test_outside_of_the_image_all_is_black_on_all_four_sides():
    _, shift = affine(sources(200, shift=6.0))
    white = torch.full((200, 1, 32, 32), 255, dtype=torch.uint8)
    at = np.arange(32) + shift[:, :, None]  # (200, 2, 32): x and y
    inside = np.clip(at + 1, 0, 1) * np.clip(32 - at, 0, 1)  # between the last pixel and the border
    expected = 255 * inside[:, 1, :, None] * inside[:, 0, None, :]
    assert np.abs(distort(white, shift=6.0)[:, 0].numpy() - expected).max() < 0.51


def test_a_bar_turns_the_way_its_rotation_says():
    """Seen as a picture: right of the centre, it lies on a circle, up to 45 degrees off."""
    bar = torch.zeros(300, 1, 32, 32, dtype=torch.uint8)
    bar[:, :, 14:18, 24:28] = 200
    moved = distort(bar, rotation=45.0)[:, 0].double().numpy()
    ink = moved.sum((1, 2))
    x = (moved.sum(1) @ (np.arange(32) - CENTRE)) / ink
    y = (moved.sum(2) @ (np.arange(32) - CENTRE)) / ink
    assert np.allclose(np.hypot(x, y), 10, atol=0.1)
    angle = np.degrees(np.arctan2(y, x))
    assert -45.5 < angle.min() < -42
    assert 42 < angle.max() < 45.5
    assert np.allclose(ink, 16 * 200, rtol=0.05)


def test_a_distorted_image_has_whole_pixels_and_each_field_is_exact(images):
    settings = {"rotation": 30.0, "shift": 3.0, "scale": 0.2, "shear": 0.2, "elastic": 2.0}
    found = distort(images, **settings)
    assert torch.equal(found, found.round())
    assert 0 <= float(found.min()) <= float(found.max()) <= 255
    # Control points times spline weights: the order of a product's sums changes no bit
    moves = augmentation.exact.on_grid(100 * torch.rand(4, 2, 12, 12).double() - 50, 2.0**-20)
    weights = augmentation._spline_weights()
    order = torch.randperm(12)
    whole = (moves @ weights.T).mT @ weights.T
    permuted = (moves[..., order] @ weights[:, order].T).mT[..., order] @ weights[:, order].T
    assert torch.equal(whole, permuted)
    by_numpy = np.einsum("bcij,yi,xj->bcxy", moves.numpy(), weights.numpy(), weights.numpy())
    assert np.array_equal(whole.numpy(), by_numpy)
