"""The normaliser: known values, clipping, constant volumes, the way into a checkpoint."""

import json

import numpy as np
import pytest

from utils.data import PercentileNormalizer


def test_the_percentiles_of_a_ramp() -> None:
    ramp, rule = np.arange(101.0), "percentiles"
    assert PercentileNormalizer(rule=rule).fit(ramp) == (1.0, 99.0)
    assert PercentileNormalizer(10, 50, rule).fit(ramp.reshape(1, 101)) == (10.0, 50.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float64])
def test_low_becomes_zero_high_becomes_one_and_beyond_is_clipped(dtype: type) -> None:
    array = np.array([0, 10, 20, 30, 40, 250], dtype)
    scaled = PercentileNormalizer().apply(array, 10, 30)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1, 1])
    assert array[0] == 0 and array[-1] == 250


def test_a_patch_is_scaled_like_its_volume() -> None:
    volume = np.random.default_rng(0).gamma(2, 3, (20, 20, 20)).astype(np.float32)
    normalizer = PercentileNormalizer()
    low, high = normalizer.fit(volume)
    part = (slice(3, 9), slice(0, 5), slice(11, 20))
    whole = normalizer.apply(volume, low, high)
    np.testing.assert_array_equal(normalizer.apply(volume[part], low, high), whole[part])


def test_a_constant_volume_becomes_zeros() -> None:
    volume = np.full((4, 4), 7, np.uint16)
    normalizer = PercentileNormalizer()
    scaled = normalizer.apply(volume, *normalizer.fit(volume))
    assert scaled.dtype == np.float32 and scaled.shape == (4, 4) and not scaled.any()


def test_it_travels_through_json() -> None:
    normalizer = PercentileNormalizer(0.5, 99.9, "percentiles")
    assert PercentileNormalizer(**json.loads(json.dumps(normalizer.to_dict()))) == normalizer


@pytest.mark.parametrize(("low", "high"), [(-1, 50), (50, 50), (60, 50), (1, 101)])
def test_percentiles_outside_their_range_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low_percent < high_percent"):
        PercentileNormalizer(low, high)


def test_checkpoints_that_name_no_rule_have_the_robust_one() -> None:
    old = {"low_percent": 1.0, "high_percent": 99.0}
    assert PercentileNormalizer(**old) == PercentileNormalizer(rule="robust")
    with pytest.raises(ValueError, match="must be of robust, percentiles"):
        PercentileNormalizer(rule="other")
