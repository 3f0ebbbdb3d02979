from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter1d

from utils.errors import UserError
from utils.simulation.microscope import (
    Microscope,
    MicroscopeConfig,
    along,
    blur_matrix,
    draw_microscope,
    plane_places,
    planes_to_voxels,
    point_spread,
    take_picture,
    uneven_light,
)

CLEAR = Microscope(
    axis=2,
    from_far=False,
    bias=0.0,
    attenuation=1.0,
    blur_growth=1.0,
    lateral_sigma=0.0,
    axial_sigma=0.0,
    coarse=1.0,
    photons=50_000.0,
    read_noise=0.0,
    artefact=0.0,
    offset=0.0,
    gamma=1.0,
    saturated=0.0,
)
"""A microscope that changes nothing but for a little shot noise."""


def picture(image, seed=0, **changes):
    return take_picture(replace(CLEAR, **changes), image.copy(), np.random.default_rng(seed))


def ramp(shape=(24, 20, 28)):
    return np.linspace(0, 1, np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.5, 7.0])
def test_blur_is_scipys_and_keeps_the_sum(axis, sigma):
    image = np.random.default_rng(0).random((24, 30, 27), dtype=np.float32)
    n = image.shape[axis]
    blurred = along(blur_matrix(n, np.arange(n, dtype=float), sigma), image, axis)
    radius = int(3 * sigma)
    expected = gaussian_filter1d(image.astype(float), sigma, axis, mode="reflect", radius=radius)
    if radius:
        assert_allclose(blurred, expected, atol=1e-5)
    assert blurred.sum(dtype=float) == pytest.approx(image.sum(dtype=float), rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_products_along_an_axis_are_those_of_the_matrix(axis):
    image = ramp((9, 11, 13))
    matrix = np.random.default_rng(1).random((5, image.shape[axis]), dtype=np.float32)
    matrix[:, :3] = 0
    expected = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    assert_allclose(along(matrix, image, axis), expected, rtol=1e-5)


def test_the_point_spread_widens_away_from_the_nearest_plane():
    seen = replace(CLEAR, axial_sigma=2.0, blur_growth=2.0)
    for far, order in ((False, 1), (True, -1)):
        matrix = point_spread(replace(seen, from_far=far), 61)[::order]
        widths = [np.sqrt(np.sum(matrix[m] * (np.arange(61)[::order] - m) ** 2)) for m in (10, 50)]
        assert_allclose(widths, [2 * (1 + 10 / 60), 2 * (1 + 50 / 60)], rtol=0.05)


@pytest.mark.parametrize("coarse", [1.0, 1.5, 2.0, 3.7, 4.0])
def test_coarse_planes_keep_a_slope_and_their_thickness(coarse):
    seen = replace(CLEAR, coarse=coarse)
    matrix, back = point_spread(seen, 40), planes_to_voxels(seen, 40)
    places = plane_places(seen, 40)
    assert len(places) == len(matrix) == np.ceil(40 / coarse)
    assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    middle = slice(8, 32)
    assert_allclose((back @ (matrix @ np.arange(40)))[middle], np.arange(40)[middle], atol=0.2)
    row, place = matrix[len(matrix) // 2], places[len(matrix) // 2]
    variance = np.sum(row * (np.arange(40) - place) ** 2)
    assert variance == pytest.approx((coarse**2 - 1) / 12, abs=0.26)


def test_a_clear_microscope_shows_what_is_there():
    # white is the brightest voxel, up to 1.5 % above its mean by shot noise
    image = ramp()
    grey = picture(image)
    assert grey.dtype == np.float32 and grey.shape == image.shape
    assert_allclose(grey.mean(axis=2), 255 * image.mean(axis=2) / image.max(), atol=4)
    assert_array_equal(grey, np.round(grey))


@pytest.mark.parametrize("gamma, offset", [(0.5, 0.0), (2.0, 0.1), (1.0, 0.05)])
def test_grey_values_follow_gamma_and_offset(gamma, offset):
    image = ramp()
    expected = 255 * (offset + (1 - offset) * (image / image.max()) ** gamma)
    grey = picture(image, gamma=gamma, offset=offset)
    assert_allclose(grey[2:].mean(axis=2), expected[2:].mean(axis=2), atol=6)
    assert grey.min() == np.round(255 * offset)


@pytest.mark.parametrize("saturated", [0.0, 0.01, 0.02])
def test_the_share_of_saturated_voxels(saturated):
    grey = picture(ramp((40, 40, 40)), saturated=saturated)
    assert np.mean(grey == 255) == pytest.approx(saturated, abs=0.004)


@pytest.mark.parametrize(
    "photons, read_noise", [(2.0, 0.0), (20.0, 0.0), (200.0, 0.0), (20.0, 0.1), (500.0, 0.1)]
)
def test_noise_of_photons_and_of_the_camera(photons, read_noise):
    """Half the volume is bright, half has half of that; neither is so near 0 as to be clipped."""
    image = np.ones((40, 40, 40), dtype=np.float32)
    image[20:] = 0.5
    grey = picture(image, photons=photons, read_noise=read_noise)
    mean, sd = (np.array([f(half) for half in (grey[:20], grey[20:])]) for f in (np.mean, np.std))
    level = np.array([1.0, 0.5])
    assert_allclose(mean / mean[0], level, rtol=0.03)
    assert_allclose(sd / mean[0], np.sqrt(level / photons + read_noise**2), rtol=0.05)


def test_light_is_lost_along_the_axis():
    image = np.ones((16, 16, 64), dtype=np.float32)
    for far in (False, True):
        grey = picture(image, attenuation=4.0, from_far=far)[..., :: -1 if far else 1]
        depth = np.linspace(0, 1, 64)
        assert_allclose(grey.mean(axis=(0, 1)) / grey[..., 0].mean(), 4.0**-depth, rtol=0.02)


def test_the_bias_is_a_smooth_change_of_light_with_the_drawn_deviation():
    shape = (24, 20, 28)
    light = [
        uneven_light(replace(CLEAR, bias=0.4), shape, np.random.default_rng(seed))
        for seed in range(300)
    ]
    x, y, z = (np.log([curves[axis][:, 0] for curves in light]) for axis in range(3))
    logs = x[:, ::6, None, None] + y[:, None, ::6, None] + z[:, None, None, ::6]
    assert_allclose(logs.std(), 0.4, rtol=0.1)
    assert max(np.abs(np.diff(curve, 2, axis=1)).max() for curve in (x, y, z)) < 0.15


def test_artefacts_are_planes_and_lines_across_the_axis():
    image = np.ones((40, 40, 40), dtype=np.float32)
    grey = picture(image, artefact=0.2)
    planes = grey.mean(axis=(0, 1))
    lines = grey.mean(axis=1) / planes
    assert planes.std() / planes.mean() == pytest.approx(0.2, abs=0.06)
    assert lines.std() == pytest.approx(0.2, abs=0.03)
    assert (grey.std(axis=1) / grey.mean()).max() < 0.02


@pytest.mark.parametrize("seed", range(8))
def test_drawn_pictures_are_in_range_and_repeat(seed):
    drawn = draw_microscope(MicroscopeConfig(), np.random.default_rng(seed), 10.0)
    assert (
        1 <= drawn.coarse <= 2.5 >= drawn.axial_sigma
        and Microscope.from_dict(drawn.to_dict()) == drawn
    )
    image = np.random.default_rng(9).random((21, 30, 26), dtype=np.float32)
    first, again = (take_picture(drawn, image, np.random.default_rng(seed)) for _ in range(2))
    assert_array_equal(first, again)
    assert first.shape == image.shape and first.min() >= 0 and first.max() < 255.01
    assert first.std() > 0


def test_a_dark_volume_stays_dark():
    dark = np.zeros((8, 8, 8), dtype=np.float32)
    assert_array_equal(picture(dark, offset=0.1), np.full(dark.shape, 26.0))


@pytest.mark.parametrize(
    "field, value",
    [
        ("bias", (-0.1, 0.5)),
        ("bias", (0.5, 1000.0)),
        ("attenuation", (0.5, 2.0)),
        ("blur_growth", (0.9, 2.0)),
        ("axial_sigma", (3.0, 1.0)),
        ("coarse", (0.5, 2.0)),
        ("coarse_probability", 1.5),
        ("photons", (0.0, 5.0)),
        ("gamma", (0.0, 1.0)),
        ("saturated", (0.0, 1.2)),
        ("read_noise", (0.0, np.nan)),
    ],
)
def test_bad_configurations_are_named(field, value):
    with pytest.raises(UserError, match=field):
        MicroscopeConfig(**{field: value})
