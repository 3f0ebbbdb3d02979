"""Order statistics that are counted, and the rule for the grey values that become 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from utils.grey_values import GreyCounts, Limits, find_limits
from utils.simulation import VolumeConfig, sample_rng, simulate_volume

DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.float16, np.float32)


def slabs_of(values: np.ndarray, step: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (values[..., k : k + step] for k in range(0, values.shape[-1], step))


def limits(values: np.ndarray, rule: str = "robust", low: float = 1, high: float = 99) -> Limits:
    return find_limits(GreyCounts(lambda: [values], values.dtype), low, high, rule)


def noisy(seed: int = 0) -> np.ndarray:
    """Return a dark stack of noise, mean 1000 and spread 30."""
    return np.random.default_rng(seed).normal(1000, 30, (60, 60, 60)).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 300),
    step=st.integers(1, 40),
    spread=st.sampled_from([1, 30, 1000]),
    percents=st.tuples(st.floats(0, 49), st.floats(51, 100)),
    seed=st.integers(0, 99),
)
def test_percentiles_are_those_of_the_whole(
    dtype: Any, size: int, step: int, spread: float, percents: tuple[float, float], seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(2, 3, size)) * spread
    if np.dtype(dtype).kind != "f":
        values = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = values.astype(dtype)
    counts = GreyCounts(slabs_of(values, step), values.dtype)
    found = find_limits(counts, *percents, "percentiles")
    expected = np.percentile(values.astype(np.float64), percents)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9, atol=1e-9)
    assert found.top == values.max() and found.share_at_top == np.mean(values == values.max())
    for value in (*expected, float(values.max()), float(values.min()) - 1, 0.0):
        assert counts.above(float(value)) == (values.astype(np.float64) > value).sum()


def test_negative_zeros_and_voxels_that_are_not_finite() -> None:
    for dtype in (np.float16, np.float32):
        values = np.array([-0.0, 0.0, -1.0, 1.0, np.nan, np.inf, -np.inf, 0.0], dtype)
        found = limits(values, "percentiles", 0, 100)
        assert (found.low, found.high, found.missing) == (-1.0, 1.0, 3)
        assert np.isnan(limits(np.full(5, np.nan, dtype)).high)


def test_default_volumes_keep_their_percentiles() -> None:
    for index in range(64):
        image = simulate_volume(VolumeConfig(), sample_rng(9999, index)).image
        found = limits(image)
        expected = np.percentile(image, (1, 99))
        np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-6, atol=1e-6)
        assert not found.warnings()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A default volume, as bright as of twelve bits; not to be changed."""
    return simulate_volume(VolumeConfig(), sample_rng(1, 0)).image * 20


@pytest.mark.parametrize("share", [0.012, 0.02, 0.05])
def test_saturated_debris_changes_little(image: np.ndarray, share: float) -> None:
    clean = np.clip(image, 0, 4094).astype(np.uint16)
    dirty = clean.copy()
    rng = np.random.default_rng(0)
    dirty.ravel()[rng.choice(dirty.size, int(share * dirty.size), replace=False)] = 4095
    before, after = limits(clean), limits(dirty)
    assert after.high == pytest.approx(before.high, rel=0.05)
    assert limits(dirty, "percentiles").high > 2 * before.high or share < 0.015
    assert any("stand at the top value 4095" in words for words in after.warnings())


@pytest.mark.parametrize("share", [0.012, 0.02, 0.03])
@pytest.mark.parametrize("kind", ["spread", "hot pixel", "smoothed"])
def test_debris_below_the_top_value_changes_little(
    image: np.ndarray, share: float, kind: str
) -> None:
    clean = np.clip(image, 0, 4094).astype(np.float32)
    rng = np.random.default_rng(0)
    dirty = clean.copy()
    start = tuple(rng.integers(0, 128 - 40, 3))
    box = tuple(slice(a, a + int(128 * share ** (1 / 3))) for a in start)
    dirty[box] = rng.uniform(60000, 65535, dirty[box].shape) if kind == "spread" else 60000
    if kind == "hot pixel":
        dirty[0, 0, 0] = 65535
    if kind == "smoothed":
        dirty = ndimage.gaussian_filter(dirty, 0.6)
        clean = ndimage.gaussian_filter(clean, 0.6)
    before, after = limits(clean), limits(dirty)
    ratio = (after.high - after.median) / (before.high - before.median)
    assert 0.6 < ratio < 2.3
    assert not before.warnings() and (after.warnings() or ratio < 1.5)


@pytest.mark.parametrize("share", [0.003, 0.0075, 0.015, 0.05])
def test_sparse_columns_stand_out_of_the_noise(share: float) -> None:
    values = noisy()
    count = int(share * values.size)
    values.ravel()[:count] += np.random.default_rng(1).uniform(500, 1500, count)
    found = limits(values)
    assert found.high > 1500 and not found.warnings()
    assert (found.low > found.noise_end - 1) == (share < 0.015)
    normalised = (values.ravel()[count:] - found.low) / (found.high - found.low)
    assert np.mean(normalised > 0.5) < 0.01


def test_noise_alone_is_told() -> None:
    found = limits(noisy())
    assert "lies near the noise" in found.warnings()[0]
    assert found.low < found.median, "noise is not stretched over the whole range"


def test_hot_pixels_alone_set_no_limit() -> None:
    values = noisy()
    values.ravel()[:20] = 60000
    assert limits(values).high < 1200


def test_more_columns_give_no_jump() -> None:
    """From none to a tenth of the stack, no limit leaps over much of the columns' range."""
    values, lows, highs = noisy(), [], []
    bright = np.random.default_rng(2).uniform(1100, 2000, values.size).astype(np.float32)
    for count in np.geomspace(50, values.size / 10, 60).astype(int):
        some = values.copy()
        some.ravel()[:count] = bright[:count]
        found = limits(some)
        lows.append(found.low)
        highs.append(found.high)
    assert np.abs(np.diff(lows)).max() < 120
    assert np.abs(np.diff(highs)).max() < 120
    assert highs[-1] > 1800


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(scale=st.sampled_from([2.0, 0.25, 64.0]), shift=st.sampled_from([0.0, -1024.0, 4096.0]))
def test_limits_move_with_the_grey_values(scale: float, shift: float) -> None:
    values = np.round(noisy())
    values.ravel()[:1000] += 700
    before, after = limits(values), limits((values * scale + shift).astype(np.float32))
    np.testing.assert_allclose(after.low, before.low * scale + shift, rtol=1e-4)
    np.testing.assert_allclose(after.high, before.high * scale + shift, rtol=1e-4)


@pytest.mark.parametrize("share", [0.003, 0.2, 0.9])
def test_a_stack_of_two_values_is_seen(share: float) -> None:
    values = np.zeros(100_000, np.uint8)
    values[: int(share * values.size)] = 255
    found = limits(values)
    assert (found.low, found.high) == (0, 255)
