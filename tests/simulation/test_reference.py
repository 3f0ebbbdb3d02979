"""Default volumes against the reference generator's numbers, written out and in closed form.

Each number stands here once more: a change of one, in the defaults or on the way into a volume,
fails a test, where statistics over a few volumes are too wide to notice.
"""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter1d, uniform_filter
from scipy.spatial import cKDTree

from utils.simulation import VolumeConfig, sample_rng, simulate_volume
from utils.simulation.geometry import draw_optic_lobe
from utils.simulation.volume import _draw_parameters, _take_image


@pytest.fixture(scope="module")
def volumes():
    return [simulate_volume(VolumeConfig(), sample_rng(3, i)) for i in range(4)]


def nearest_distance(points):
    return cKDTree(points).query(points, k=2)[0][:, 1].mean()


def test_defaults_are_the_reference_s():
    assert VolumeConfig().to_dict() == {
        "shape": [128, 128, 128],
        "lattice_intervals": [8, 15],
        "axis_scales": [0.7, 1.5],
        "min_columns": 100,
        "max_tries": 2000,
        "cone_length": 2.25,
        "cone_radius": 0.35,
        "simplify_factor": 1.25,
        "baseline_intensity": 50.0,
        "v_std": 1.0,
        "std_intensity_range": [0.3, 1.2],
        "cube_kernel_size": 2,
        "background_sigma": 10.0,
        "background_range": [0.0005, 0.0025],
        "gain_range": [10, 29],
        "contrast_range": [0.7, 1.0],
    }


def test_cones_have_the_reference_s_volume(volumes):
    """pi r^2 h (1 + f + f^2) / 3 times the frame's determinant, for columns wholly inside."""
    expected = found = 0.0
    for volume in volumes:
        spacing = nearest_distance(volume.entry_points)
        radius, length = 0.35 * spacing, 2.25 * spacing
        ends = volume.entry_points + length * volume.e_r
        taper = nearest_distance(ends) / spacing
        assert taper > 1.1  # else nothing here would notice a cylinder
        low, high = np.minimum(volume.entry_points, ends), np.maximum(volume.entry_points, ends)
        within = np.all((low > 2 * radius) & (high < 1 - 2 * radius), axis=1)
        frames = np.stack([volume.e_theta, volume.e_phi, volume.e_r], axis=2)[within]
        in_frame = np.pi * radius**2 * length * (1 + taper + taper**2) / 3
        expected += in_frame * np.abs(np.linalg.det(frames)).sum()
        found += np.isin(volume.instances, np.flatnonzero(within) + 1).mean()
    assert found == pytest.approx(expected, rel=0.02)


def test_two_columns_in_eleven_are_left_out_and_three_are_of_each_type(volumes):
    for volume in volumes:
        shares = np.bincount(volume.column_type, minlength=4) / len(volume.column_type)
        assert_allclose(shares, np.array([2, 3, 3, 3]) / 11, atol=1 / len(volume.column_type))


def test_parameters_are_drawn_evenly_from_the_reference_s_ranges():
    rng = np.random.default_rng(0)
    lobe = draw_optic_lobe(
        rng, lattice_intervals=(8, 15), axis_scales=(0.7, 1.5), min_columns=100, max_tries=2000
    )
    drawn = [_draw_parameters(VolumeConfig(), lobe, rng) for _ in range(2000)]
    for name, low, high in (
        ("std_intensity", 0.3, 1.2),
        ("background_weight", 0.0005, 0.0025),
        ("gain", 9.5, 29.5),  # whole numbers 10..29
        ("contrast", 0.7, 1.0),
    ):
        place = (np.array([getattr(one, name) for one in drawn]) - low) / (high - low)
        quantiles = np.linspace(0, 1, 11)
        assert_allclose(np.quantile(place, quantiles), quantiles, atol=0.05, err_msg=name)
        assert place.min() >= 0 and place.max() <= 1


@pytest.fixture(scope="module")
def microscope():
    """A canvas so bright that whole counts can be told, brighter in a corner, and parameters."""
    volume = simulate_volume(VolumeConfig(), sample_rng(3, 0))
    parameters = dataclasses.replace(
        volume.parameters, gain=29, background_weight=0.0025, contrast=1.0
    )
    canvas = np.random.default_rng(1).uniform(0, 200, (64, 64, 64)).astype(np.float32)
    canvas[:30, :25, :35] *= 5
    return canvas, parameters


def take(canvas, parameters):
    return _take_image(VolumeConfig(), parameters, canvas, np.random.default_rng(2)).astype(float)


def test_the_microscope_counts_the_photons_of_the_reference_s_composition(microscope):
    """Box of 2 voxels; background of sigma 10, twice along y, from before the box along z."""
    canvas, parameters = microscope
    box = uniform_filter(canvas.astype(float), 2, mode="constant") * 8
    light = uniform_filter(canvas.astype(float), (2, 2, 1), mode="constant") * 4
    for axis in (0, 1, 1, 2):
        light = gaussian_filter1d(light, 10.0, axis, mode="mirror", truncate=6.0)
    expected = 29 * (box / np.percentile(box, 99) + 0.0025 * light + 0.1)
    residual = (take(canvas, parameters) - expected) / np.sqrt(expected)
    assert residual.mean() == pytest.approx(0, abs=0.01)
    assert residual.std() == pytest.approx(1, abs=0.01)
    for part in (box, light):  # nothing of either is left
        assert abs(np.corrcoef(residual.ravel(), part.ravel())[0, 1]) < 0.01


def test_read_noise_is_a_tenth_of_the_deviation_of_the_log_counts(microscope):
    image = take(*microscope)
    counts = np.round(image)
    assert counts.min() > 0
    assert (image - counts).std() == pytest.approx(np.log(counts).std() / 10, rel=0.02)


def test_contrast_shrinks_the_logarithm_about_its_mean(microscope):
    canvas, parameters = microscope
    whole = np.log(take(canvas, parameters))
    flat = np.log(take(canvas, dataclasses.replace(parameters, contrast=0.7)))
    assert_allclose(flat, whole.mean() + 0.7 * (whole - whole.mean()), atol=1e-4)
