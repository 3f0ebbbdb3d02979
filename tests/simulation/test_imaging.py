import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import gaussian_filter1d, uniform_filter
from scipy.stats import chisquare, poisson

from tests.simulation.test_streams import plain_splitmix64
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
    imaging.check_cut_off(image, imaging.MOST_PHOTONS / 20.0, "the gain")  # 3000 are the most
    image[0, 1, 0] = 3_001.0
    imaging.check_cut_off(image, imaging.MOST_PHOTONS / 19.0, "the gain")
    with pytest.raises(UserError, match="0.1% of an image would be too bright"):
        imaging.check_cut_off(image, imaging.MOST_PHOTONS / 20.0, "the gain")
    image[image > 1] = 65_504.0
    imaging.check_cut_off(image, imaging.MOST_STORED, "the gain")
    image *= 2
    with pytest.raises(UserError, match="0.1% of an image would be too bright"):
        imaging.check_cut_off(image, imaging.MOST_STORED, "the gain")


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


def chances_of(table):
    """The probabilities (128,) that an alias table stands for."""
    kept = (table >> 7) / 2.0**25
    chances = kept / 128
    np.add.at(chances, table & 127, (1 - kept) / 128)
    return chances


def test_alias_tables_hold_poisson_probabilities_to_the_last_bits():
    for steps, table in enumerate(imaging._poisson_tables()):
        expected = poisson.pmf(np.arange(128), steps / 16)
        assert_allclose(chances_of(table), expected, rtol=0, atol=4 * 2.0**-32)


def test_shot_noise_matches_the_plain_twin():
    """More than a block of voxels, dark ones and ones that take several tables."""
    image = np.random.default_rng(3).exponential(2.0, size=1500).astype(np.float32)
    image[:10], image[10:20] = 0.0, np.linspace(3.1, 30.0, 10)
    counts = imaging.shot_noise(image, 10.0, np.uint64(7))
    assert counts.tolist() == [plain_count(7, i, image[i] * np.float32(10)) for i in range(1500)]


def plain_count(key, i, mean):
    block, place = divmod(i, imaging.BLOCK)
    halves = [block * imaging.BLOCK + (place + k * imaging.BLOCK) // 2 for k in (0, 1)]
    table_word, rest_word = (plain_splitmix64(key, c) >> 32 * (place % 2) for c in halves)
    whole, rest = divmod(float(mean), 1 / 16)
    u = (rest_word & 0xFFFFFFFF) / 2**32
    count = sum(u < poisson.sf(np.arange(10), rest))
    words = [(int(whole) % 512, table_word & 0xFFFFFFFF)]
    for part in range(1, int(whole) // 512 + 1):
        words.append((512, plain_splitmix64(key + part, 2**64 - 1 - i) >> 32))
    for row, word in words:
        entry = int(imaging._poisson_tables()[row, word & 127])
        count += (word if word >> 7 < entry >> 7 else entry) & 127
    return count
