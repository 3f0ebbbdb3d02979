"""Percentiles of a stack that need not fit into memory, exact and in one or two readings.

The bits of a number of 16 bits, put into the numbers' order, index a histogram of 65536 counts; a
float32 is two such halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError

BINS = 1 << 16


def fit_slabs(
    normalizer: PercentileNormalizer, slabs: Callable[[], Iterator[np.ndarray]], dtype: np.dtype
) -> tuple[float, float]:
    """Return what ``normalizer.fit`` would return for all slabs at once.

    Args:
        normalizer: the rule.
        slabs: starts a reading of the stack from its beginning; called once, twice for float32.
        dtype: of the slabs: whole numbers of 8 or 16 bits, float16 or float32.

    Raises:
        UserError: if a value is NaN or infinite.
    """
    counts = _count(slabs(), lambda keys: _upper(keys, dtype), dtype)
    size = int(counts.sum())
    shares = np.array([normalizer.low_percent, normalizer.high_percent]) / 100
    positions = shares * (size - 1)
    ranks = np.unique(np.concatenate([np.floor(positions), np.ceil(positions)]).astype(np.int64))
    values = _ordered(ranks, counts, slabs, dtype)
    low, high = np.interp(positions, ranks, values)
    return float(low), float(high)


def _ordered(
    ranks: np.ndarray,
    counts: np.ndarray,
    slabs: Callable[[], Iterator[np.ndarray]],
    dtype: np.dtype,
) -> np.ndarray:
    """Return the values of these ranks (0 is the smallest), float64, from the histogram."""
    cumulative = np.cumsum(counts)
    bins = np.searchsorted(cumulative, ranks, side="right")
    if dtype.itemsize < 4:
        return _values(bins, dtype)
    wanted = np.unique(bins)
    lower = np.zeros((len(wanted), BINS), np.int64)
    for slab in slabs():
        keys = _keys(slab)
        tops = keys >> 16
        for row, top in enumerate(wanted):
            lower[row] += np.bincount(keys[tops == top] & 0xFFFF, minlength=BINS)
    below = cumulative[bins] - counts[bins]
    rows = np.searchsorted(wanted, bins)
    ends = [
        np.searchsorted(np.cumsum(lower[row]), rank, side="right")
        for row, rank in zip(rows, ranks - below, strict=True)
    ]
    return _values(bins * BINS + np.array(ends), dtype)


def _count(
    slabs: Iterator[np.ndarray], bin_of: Callable[[np.ndarray], np.ndarray], dtype: np.dtype
) -> np.ndarray:
    counts = np.zeros(BINS, np.int64)
    for slab in slabs:
        if dtype.kind == "f" and not np.isfinite(slab).all():
            raise UserError("holds values that are not finite (NaN or infinite)")
        counts += np.bincount(bin_of(_keys(slab)), minlength=BINS)
    return counts


def _upper(keys: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return keys >> 16 if dtype.itemsize == 4 else keys


def _keys(slab: np.ndarray) -> np.ndarray:
    """Return unsigned whole numbers in the order of the values, flat, in no order of their own."""
    flat = slab.ravel(order="K")
    if flat.dtype.kind == "u":
        return flat
    if flat.dtype.kind == "i":
        return flat.astype(np.int32) + (1 << (8 * flat.itemsize - 1))
    flat = flat + flat.dtype.type(0)  # without negative zeros
    bits = flat.view(f"u{flat.itemsize}")
    sign = bits.dtype.type(1 << (8 * flat.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def _values(keys: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the values of these keys as float64: the inverse of :func:`_keys`."""
    if dtype.kind == "u":
        return keys.astype(np.float64)
    top = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind == "i":
        return (keys - top).astype(np.float64)
    bits = np.where(keys >= top, keys - top, 2 * top - 1 - keys)
    return bits.astype(f"u{dtype.itemsize}").view(dtype).astype(np.float64)
