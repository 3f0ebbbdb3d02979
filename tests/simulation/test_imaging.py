import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter1d, uniform_filter
from scipy.stats import chisquare, poisson

from utils.errors import UserError
from utils.simulation import imaging


def random_image(shape, seed=0, lit=0.3):
    rng = np.random.default_rng(seed)
    return (rng.random(shape) * 100 * (rng.random(shape) < lit)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_box_sum_matches_scipy(size):
    image = random_image((9, 12, 15))
    across, full = imaging.box_sum(image, size)
    mean = uniform_filter(image.astype(float), size, mode="constant")
    assert_allclose(full, mean * size**3, rtol=1e-4, atol=1e-3)
    mean = uniform_filter(image.astype(float), (size, size, 1), mode="constant")
    assert_allclose(across, mean * size**2, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 40, 33), (7, 8, 130), (2, 5, 1)])
@pytest.mark.parametrize("sigma", [0.0, 0.7, 3.0, 10.0])
def test_background_matches_scipy_with_mirrored_borders(shape, sigma):
    image = random_image(shape)
    expected = image.astype(float)
    for axis in (0, 1, 1, 2):  # y twice: the reference's quirk
        if sigma and shape[axis] > 1:
            expected = gaussian_filter1d(expected, sigma, axis, mode="mirror", truncate=6.0)
    blurred = imaging.background(image, sigma)
    assert_allclose(blurred, expected, atol=2e-5 * image.max())


def test_composition_follows_its_formula():
    box, light = random_image((20, 20, 20), 1, lit=1.0), random_image((20, 20, 20), 2)
    expected = box / np.percentile(box, 99) + 0.002 * light + 0.1
    assert_allclose(imaging.compose(box, light, 0.002), expected, rtol=1e-5)


def test_composition_of_a_nearly_dark_volume_divides_by_its_maximum():
    box = np.zeros((20, 20, 20), dtype=np.float32)
    box[3, 4, 5] = 8.0
    image = imaging.compose(box, box, 0.0)
    assert image.max() == pytest.approx(1.1) and image.min() == pytest.approx(0.1)
    dark = imaging.compose(np.zeros_like(box), np.zeros_like(box), 0.001)
    assert_allclose(dark, 0.1, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 100), st.floats(0, 1), st.integers(2, 12))
def test_percentile_matches_numpy(seed, percent, lit, n):
    image = random_image((n, n, n), seed, lit)
    image -= 2.0 * (image < 1.5) * (image > 0)  # a few negative values count as zeros
    expected = np.percentile(np.maximum(image, 0), percent)
    assert imaging.percentile_of_nonnegative(image, percent) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.03, 0.31, 1.0, 2.71, 9.9, 31.99, 32.0, 71.3, 250.0])
def test_shot_noise_is_poisson(mean):
    n = 60_000
    image = np.full(n, mean / 10, dtype=np.float32)
    counts = imaging.shot_noise(image, 10.0, np.uint64(99))
    assert counts.dtype == np.uint16
    assert counts.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / n) + 1e-9)
    if mean == 0:
        return
    low, high = poisson.ppf((0.001, 0.999), mean).astype(int)
    values = np.arange(low, high + 1)
    expected = poisson.pmf(values, mean)
    expected[0], expected[-1] = poisson.cdf(low, mean), poisson.sf(high - 1, mean)
    clipped = np.clip(counts, low, high)
    observed = np.bincount(clipped - low, minlength=len(values))
    assert chisquare(observed, n * expected / expected.sum()).pvalue > 1e-4


def test_shot_noise_depends_on_key_and_place_only():
    image = random_image((16, 16, 16)) / 30
    first = imaging.shot_noise(image, 12, np.uint64(1))
    assert_array_equal(first, imaging.shot_noise(image, 12, np.uint64(1)))
    changed = image.copy()
    changed[0, 0, 0] = 300.0
    assert_array_equal(imaging.shot_noise(changed, 12, np.uint64(1)).ravel()[1:], first.ravel()[1:])
    assert (imaging.shot_noise(image, 12, np.uint64(2)) != first).any()


def test_shot_noise_saturates_instead_of_wrapping():
    counts = imaging.shot_noise(np.full(10, 1e6, dtype=np.float32), 1.0, np.uint64(0))
    assert counts.min() > 59_000


def test_a_thousandth_of_an_image_may_be_cut_off_and_no_more():
    image = np.ones((10, 10, 100), dtype=np.float32)
    image[:, 0, 0] = 3_001.0
    imaging.check_exposure(image, 20.0)  # 3000 are the most
    image[0, 1, 0] = 3_001.0
    imaging.check_exposure(image, 19.0)
    with pytest.raises(UserError, match="0.1% of an image would count more than 60000 photons"):
        imaging.check_exposure(image, 20.0)
    image[image > 1] = 65_504.0
    imaging.check_brightness(image)
    image *= 2
    with pytest.raises(UserError, match="0.1% of an image would be brighter than 65504"):
        imaging.check_brightness(image)


def test_read_noise_sd_follows_its_formula():
    counts = np.random.default_rng(0).poisson(2.5, size=(12, 13, 14)).astype(np.uint16)
    assert imaging.read_noise_sd(counts) == pytest.approx(np.log(counts + 1e-5).std() / 10)


def test_noise_free_contrast_follows_its_formula():
    counts = np.random.default_rng(0).poisson(2.5, size=(12, 13, 15)).astype(np.uint16)
    result = imaging.read_noise_and_contrast(counts, 0.0, 0.8, np.uint64(0))
    y = np.log(counts + 1e-7)
    assert_allclose(result, np.exp(y.mean() + 0.8 * (y - y.mean())), rtol=2e-5)
    same = imaging.read_noise_and_contrast(counts, 0.0, 1.0, np.uint64(0))
    assert_allclose(same, counts + 1e-7, rtol=1e-5)


def test_read_noise_is_gaussian_and_clipped_at_zero():
    counts = np.full((50, 50, 50), 20, dtype=np.uint16)
    noise = imaging.read_noise_and_contrast(counts, 0.35, 1.0, np.uint64(5)) - 20
    assert noise.mean() == pytest.approx(0, abs=0.005) and noise.std() == pytest.approx(
        0.35, rel=0.01
    )
    dark = imaging.read_noise_and_contrast(np.zeros_like(counts), 0.35, 1.0, np.uint64(5))
    assert dark.min() >= 0 and (dark < 1e-6).mean() == pytest.approx(0.5, abs=0.01)


@given(st.lists(st.floats(2.0**-23, 60_000, width=32), min_size=1, max_size=40))
def test_logarithm_matches_numpy(values):
    x = np.array(values, dtype=np.float32)
    expected = np.log(x.astype(float))
    imaging._logarithm(x)
    assert_allclose(x, expected, rtol=3e-7, atol=3e-7)


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40))
def test_exponential_matches_numpy(values):
    y = np.array(values, dtype=np.float32)
    expected = np.exp(y.astype(float))
    imaging._exponential(y, np.float32(1.0), np.float32(0.0))
    assert_allclose(y, expected, rtol=1e-6)


def key_whose_first_word_is(word: int) -> np.uint64:
    """Invert SplitMix64's output function, so that counter 0 gives ``word``."""
    mask = 2**64 - 1

    def unshift(value: int, by: int) -> int:
        result = value
        for _ in range(64 // by + 1):
            result = value ^ (result >> by)
        return result

    z = unshift(word, 31)
    z = unshift(z * pow(0x94D049BB133111EB, -1, 2**64) & mask, 27)
    return np.uint64(unshift(z * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask, 30))


@pytest.mark.parametrize("mean", [0.5, 3.0, 20.0])
def test_the_largest_random_word_ends_in_the_tail_and_not_at_the_table_s_end(mean):
    key = key_whose_first_word_is(0xFFFFFFFF_00000000)
    counts = imaging.shot_noise(np.full(1, mean, dtype=np.float32), 1.0, key)
    assert poisson.isf(1e-6, mean) < counts[0] <= poisson.isf(2.0**-33, mean) + 1
