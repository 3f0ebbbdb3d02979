"""Simulated images: records, seeds, and the statistics of 200 of them against their parameters."""

import dataclasses
import hashlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.spatial import cKDTree

from utils.errors import UserError
from utils.simulation import GeometryError
from utils.simulation.image import (
    ImageConfig,
    SimulatedImage,
    gaussian_blur,
    image_rng,
    simulate_image,
)
from utils.simulation.labels import paint_disks

CONFIG = ImageConfig()
EXPECTED_HASHES = {
    (0, 0): "be8c3ac8841c80b1",
    (111, 17): "bb2e3666126de484",
}
"""Of the counts and the labels, with the pinned versions."""


def digest(sample: SimulatedImage) -> str:
    """Return a hash of image and labels; the image to a thousandth of a photon."""
    rounded = np.round(sample.image.astype(np.float64) * 1e3).astype(np.int64)
    return hashlib.sha256(rounded.tobytes() + sample.instances.tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def samples() -> list[SimulatedImage]:
    return [simulate_image(CONFIG, image_rng(7, i)) for i in range(200)]


def test_shapes_and_dtypes() -> None:
    config = ImageConfig(shape=(96, 120), max_centres=200)
    sample = simulate_image(config, image_rng(0, 0))
    n = len(sample.all_centres)
    assert sample.image.shape == sample.instances.shape == sample.mask.shape == (96, 120)
    assert sample.image.dtype == np.float32 and sample.instances.dtype == np.uint16
    assert sample.mask.dtype == np.uint8 and set(np.unique(sample.mask)) == {0, 1}
    assert sample.all_centres.dtype == sample.centres.dtype == np.float32
    assert sample.is_ring.shape == (n,) and sample.instances.max() <= n
    assert np.isfinite(sample.image).all() and sample.image.min() >= 0


def test_same_seed_same_bits_and_others_differ() -> None:
    first, again, other, seed = (
        simulate_image(CONFIG, image_rng(*s)) for s in ((0, 5), (0, 5), (0, 6), (1, 5))
    )
    for field in ("image", "instances", "all_centres", "is_ring"):
        assert_array_equal(getattr(first, field), getattr(again, field))
    assert first.parameters == again.parameters
    assert len({first.parameters, other.parameters, seed.parameters}) == 3


def test_samples_are_those_of_earlier_runs() -> None:
    found = {key: digest(simulate_image(CONFIG, image_rng(*key))) for key in EXPECTED_HASHES}
    assert found == EXPECTED_HASHES


def reduced_basis(centres: np.ndarray) -> tuple[float, float]:
    """Return length and angle (degrees) of the lattice's basis, seen from the points alone.

    The two shortest independent steps between points are the basis itself for angles of at least
    60 degrees; below, the shorter diagonal 2 d sin(angle / 2) takes the place of one of them.
    """
    steps = (centres[:, None] - centres[None]).reshape(-1, 2)
    length = np.linalg.norm(steps, axis=1)
    a = steps[np.argmin(np.where(length > 1.0, length, np.inf))]
    shortest = np.linalg.norm(a)
    across = np.abs(steps[:, 0] * a[1] - steps[:, 1] * a[0]) / shortest
    b = steps[np.argmin(np.where(across > 0.3 * shortest, length, np.inf))]
    second = np.linalg.norm(b)
    if second > 1.001 * shortest:
        return second, np.degrees(2.0 * np.arcsin(shortest / 2.0 / second))
    return second, np.degrees(np.arccos(abs(a @ b) / shortest / second))


def test_centres_stand_on_the_lattice_that_was_drawn(samples: list[SimulatedImage]) -> None:
    for sample in samples:
        distance, angle = reduced_basis(sample.centres.astype(np.float64))
        assert distance == pytest.approx(10.0 * sample.parameters.scale, rel=1e-3)
        assert angle == pytest.approx(np.degrees(sample.parameters.lattice_angle), abs=0.1)


def test_parameters_cover_their_ranges(samples: list[SimulatedImage]) -> None:
    for values, (low, high) in (
        ([s.parameters.scale for s in samples], CONFIG.scale_range),
        ([np.degrees(s.parameters.lattice_angle) for s in samples], CONFIG.lattice_angle_range),
        ([s.parameters.ring_share for s in samples], (0.0, 1.0)),
        ([s.parameters.turn for s in samples], (0.0, 2.0 * np.pi)),
    ):
        assert low <= min(values) < low + 0.15 * (high - low)
        assert high - 0.15 * (high - low) < max(values) <= high
    sizes = {(s.parameters.box_size, s.parameters.blur_size) for s in samples}
    assert sizes == {(box, blur) for box in (2, 3) for blur in (5, 7, 9)}


def test_enough_is_labelled_and_centres_are_few(samples: list[SimulatedImage]) -> None:
    assert min(s.mask.mean() for s in samples) >= 0.30
    counts = [len(s.centres) for s in samples]
    assert 1 <= min(counts) and max(counts) < 128


def test_labels_are_disks_of_the_radius_drawn(samples: list[SimulatedImage]) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(128) + 0.5] * 2, indexing="ij"), axis=-1)
    for sample in samples[:40]:
        radius = 3.5 * sample.parameters.scale
        distance, nearest = cKDTree(sample.all_centres).query(grid)
        clear = np.abs(distance - radius) > 1e-3
        assert_array_equal((distance < radius)[clear], (sample.mask == 1)[clear])
        labelled = clear & (distance < radius)
        assert_array_equal(sample.instances[labelled], nearest[labelled] + 1)


def test_a_whole_disk_has_the_area_of_a_circle(samples: list[SimulatedImage]) -> None:
    shares = []
    for sample in samples:
        radius = sample.parameters.label_radius
        whole = np.all((sample.all_centres > radius) & (sample.all_centres < 128 - radius), axis=1)
        areas = np.bincount(sample.instances.ravel(), minlength=len(whole) + 1)[1:][whole]
        shares.append(areas.mean() / (np.pi * radius**2))
    assert np.mean(shares) == pytest.approx(1.0, abs=0.003)


def test_disks_stand_beside_a_plain_twin() -> None:
    rng = np.random.default_rng(3)
    centres = rng.uniform(-5.0, 35.0, size=(20, 2))
    expected = np.zeros((30, 25), np.uint16)
    for i in range(30):
        for j in range(25):
            distance = np.hypot(i + 0.5 - centres[:, 0], j + 0.5 - centres[:, 1])
            if distance.min() <= 6.0:
                expected[i, j] = np.argmin(distance) + 1
    assert_array_equal(paint_disks((30, 25), centres, 6.0), expected)


def test_columns_lie_on_one_side_of_the_cut(samples: list[SimulatedImage]) -> None:
    for sample in samples:
        point = np.array(sample.parameters.cutoff_point)
        side = (sample.all_centres - point) @ np.array(sample.parameters.cutoff_normal)
        assert side.min() == pytest.approx(0.0, abs=1e-3)


def test_columns_are_brighter_than_what_lies_between(samples: list[SimulatedImage]) -> None:
    ratios = []
    for sample in samples[:60]:
        distance, _ = cKDTree(sample.centres).query(np.argwhere(sample.mask == 0) + 0.5)
        between = sample.image[sample.mask == 0][distance < 8.0 * sample.parameters.scale]
        ratios.append(sample.image[sample.mask == 1].mean() / between.mean())
    assert 1.2 < np.median(ratios) < 2.5


@pytest.mark.parametrize("ring", [False, True])
def test_rings_are_dark_in_the_middle_and_clouds_are_not(ring: bool) -> None:
    config = ImageConfig(ring_share_range=(float(ring),) * 2, blur_sizes=(5,), points_per_column=60)
    middle, rim = [], []
    for i in range(20):
        sample = simulate_image(config, image_rng(0, i))
        assert np.all(sample.is_ring == ring)
        centres, scale = sample.centres, sample.parameters.scale
        distance, _ = cKDTree(centres).query(np.argwhere(sample.mask == 1) + 0.5)
        values = sample.image[sample.mask == 1]
        middle.append(values[distance < 1.5 * scale].mean())
        rim.append(values[distance > 2.8 * scale].mean())
    assert (np.mean(middle) < np.mean(rim)) == ring


def test_a_gain_that_cuts_the_image_off_is_refused() -> None:
    with pytest.raises(UserError, match="too bright and cut off"):
        simulate_image(ImageConfig(gain=1e6), image_rng(0, 0))


def test_noise_is_that_of_photons_and_reading() -> None:
    """Beside the same image in a hundred times the light, the residual has Poisson's variance."""
    noisy, bright = (
        simulate_image(ImageConfig(gain=gain, read_noise_share=0.0), image_rng(4, 2)).image
        for gain in (1.0, 100.0)
    )
    expected = bright / 100.0
    residual = (noisy - expected) / np.sqrt(expected)
    assert residual.mean() == pytest.approx(0.0, abs=0.03)
    assert residual.std() == pytest.approx(1.0, abs=0.03)
    with_reading = simulate_image(ImageConfig(read_noise_share=0.1), image_rng(4, 2)).image
    added = (with_reading - noisy).std() / noisy.std()
    assert added == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(("size", "sigma"), [(5, 1.1), (7, 1.4), (9, 1.7), (21, 3.5)])
def test_blur_of_a_point_is_the_kernel(size: int, sigma: float) -> None:
    image = np.zeros((31, 31), np.float32)
    image[15, 15] = 1.0
    kernel = np.exp(-0.5 * ((np.arange(31) - 15) / sigma) ** 2)
    kernel[np.abs(np.arange(31) - 15) > size // 2] = 0.0
    kernel /= kernel.sum()
    np.testing.assert_allclose(gaussian_blur(image, size), np.outer(kernel, kernel), atol=1e-6)


def test_an_impossible_threshold_says_what_was_tried() -> None:
    config = ImageConfig(min_labelled=0.9, max_tries=50)
    with pytest.raises(
        GeometryError, match=r"min_labelled 0\.9 .* none of 50 placements"
    ) as caught:
        simulate_image(config, image_rng(0, 0))
    assert "min_labelled 0.9" in str(caught.value) and "0.4" in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        {"shape": (128,)},
        {"shape": (128, 0)},
        {"scale_range": (2.0, 1.0)},
        {"lattice_angle_range": (0.0, 90.0)},
        {"lattice_angle_range": (60.0, 180.0)},
        {"ring_share_range": (0.0, 1.5)},
        {"blur_sizes": ()},
        {"blur_sizes": (5, 6)},
        {"background_size": 20},
        {"min_labelled": 1.5},
        {"min_labelled": float("nan")},
        {"max_centres": 1},
        {"max_tries": 0},
        {"gain": -1.0},
        {"column_distance": 0.5},
    ],
)
def test_bad_configurations_name_the_field(field: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        ImageConfig(**field)


def test_configuration_survives_plain_json() -> None:
    config = ImageConfig(shape=(64, 48), blur_sizes=(3,), gain=2.0)
    assert ImageConfig.from_dict(config.to_dict()) == config
    assert {f.name for f in dataclasses.fields(config)} == set(config.to_dict())
