"""Percentiles of a stack that need not fit into memory, exact and in one or two readings.

Whole numbers of 8 or 16 bits index a histogram. The bits of a float32, put into the numbers' order,
are two halves that index one each: the upper halves are counted in a first reading, the lower ones
of those that matter in a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError

BINS = 1 << 16
SIGN = np.uint32(1 << 31)


def fit_slabs(
    normalizer: PercentileNormalizer, slabs: Callable[[], Iterator[np.ndarray]], dtype: np.dtype
) -> tuple[float, float]:
    """Return what ``normalizer.fit`` would return for all slabs at once.

    Args:
        normalizer: the rule.
        slabs: starts a reading of the stack from its beginning; called once, twice for floats.
        dtype: of the slabs: whole numbers of 8 or 16 bits, float16 or float32.

    Raises:
        UserError: if a value is NaN or infinite.
    """
    counts = np.zeros(BINS, np.int64)
    for slab in slabs():
        if dtype.kind == "f" and not np.isfinite(slab).all():
            raise UserError("holds values that are not finite (NaN or infinite)")
        keys = _float_keys(slab) >> 16 if dtype.kind == "f" else _whole_keys(slab)
        counts += np.bincount(keys, minlength=BINS)
    shares = np.array([normalizer.low_percent, normalizer.high_percent]) / 100
    positions = shares * (counts.sum() - 1)
    ranks = np.unique(np.concatenate([np.floor(positions), np.ceil(positions)]).astype(np.int64))
    bins, within = _places(counts, ranks)
    if dtype.kind == "f":
        values = _refined(slabs, bins, within)
    else:
        values = (bins + np.iinfo(dtype).min).astype(np.float64)
    low, high = np.interp(positions, ranks, values)
    return float(low), float(high)


def _places(counts: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bins that hold the values of these ranks, and their ranks there, both from 0."""
    cumulative = np.cumsum(counts)
    bins = np.searchsorted(cumulative, ranks, side="right")
    return bins, ranks - (cumulative[bins] - counts[bins])


def _refined(
    slabs: Callable[[], Iterator[np.ndarray]], bins: np.ndarray, within: np.ndarray
) -> np.ndarray:
    """Return the floats, as float64, that have these ranks ``within`` the bins of their halves."""
    lower = {upper: np.zeros(BINS, np.int64) for upper in bins}
    for slab in slabs():
        keys = _float_keys(slab)
        uppers = keys >> 16
        for upper, counts in lower.items():
            counts += np.bincount(keys[uppers == upper] & 0xFFFF, minlength=BINS)
    ends = [_places(lower[upper], rank)[0] for upper, rank in zip(bins, within, strict=True)]
    keys = (bins * BINS + np.array(ends)).astype(np.uint32)
    bits = np.where(keys & SIGN, keys ^ SIGN, ~keys)  # the inverse of _float_keys
    return bits.view(np.float32).astype(np.float64)


def _whole_keys(slab: np.ndarray) -> np.ndarray:
    """Return whole numbers from 0 on in the order of the values, flat, in no order of their own."""
    flat = slab.ravel(order="K")
    return flat if flat.dtype.kind == "u" else flat.astype(np.int32) - np.iinfo(flat.dtype).min


def _float_keys(slab: np.ndarray) -> np.ndarray:
    """Return unsigned whole numbers in the order of the values, flat, in no order of their own."""
    flat = slab.ravel(order="K").astype(np.float32) + np.float32(0)  # without negative zeros
    bits = flat.view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)
