import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.prediction.intensities import fit_slabs

DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.float16, np.float32)


def slabs_of(values, step):
    return lambda: (values[..., k : k + step] for k in range(0, values.shape[-1], step))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 300),
    step=st.integers(1, 40),
    spread=st.sampled_from([1, 30, 1000]),
    percents=st.tuples(st.floats(0, 49), st.floats(51, 100)),
    seed=st.integers(0, 99),
)
def test_percentiles_are_those_of_the_whole(dtype, size, step, spread, percents, seed):
    values = np.random.default_rng(seed).normal(size=(2, 3, size)) * spread
    if np.dtype(dtype).kind != "f":
        values = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = values.astype(dtype)
    normalizer = PercentileNormalizer(*percents)
    got = fit_slabs(normalizer, slabs_of(values, step), values.dtype)
    expected = normalizer.fit(values.astype(np.float64))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_negative_zeros_and_infinities():
    values = np.array([[-0.0, 0.0, -1.0, 1.0, 0.0]], np.float32)
    normalizer = PercentileNormalizer(0, 100)
    assert fit_slabs(normalizer, slabs_of(values, 2), values.dtype) == (-1.0, 1.0)
    for bad in (np.nan, np.inf, -np.inf):
        values[0, 3] = bad
        with pytest.raises(UserError, match="not finite"):
            fit_slabs(normalizer, slabs_of(values, 2), values.dtype)
