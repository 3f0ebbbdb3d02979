"""Means over volumes with bootstrap intervals, and paired differences.

Tables of scores have a row a volume and a column a score. Volumes are what is drawn: they are
independent of each other, the voxels of one are not. A score that means nothing in a volume is NaN
there; such volumes are left out, and the results say how many were counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
"""Share of the resamples that an interval holds."""
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean over volumes and its bootstrap interval."""

    mean: float
    low: float
    high: float
    volumes: int
    """Volumes in which the score has a meaning; from a single one no interval follows."""


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return the mean of ``values`` (n,) over volumes with its percentile bootstrap interval.

    After Efron 1979: volumes are drawn with replacement :data:`RESAMPLES` times, and the interval
    holds the middle :data:`LEVEL` of the means. NaN values are left out; the mean of none is NaN,
    and so is the interval of fewer than two.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size < 2:
        mean = float(known[0]) if known.size else math.nan
        return Interval(mean, math.nan, math.nan, known.size)
    drawn = stats.bootstrap(
        (known,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=rng,
    )
    low, high = drawn.confidence_interval
    return Interval(float(known.mean()), float(low), float(high), known.size)


def means_over_volumes(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return a row a score: the fields of :class:`Interval`.

    Each score's resamples come from a generator of the same seed, so that all of them see the same
    volumes drawn.
    """
    intervals = [bootstrap_mean(scores[name], np.random.default_rng(seed)) for name in scores]
    return pd.DataFrame(intervals, index=scores.columns, columns=Interval._fields)


def paired_differences(a: pd.DataFrame, b: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return how far B's scores lie above A's on the same volumes.

    Args:
        a: scores of A.
        b: scores of B, with the same columns and the same volumes, in any order.
        seed: of the bootstrap.

    Returns:
        A row a score: the fields of :class:`Interval` of B - A over the volumes in which both have
        a meaning; the means ``a`` and ``b`` over these; in how many of them B's or A's score is the
        higher one (``b_higher``, ``a_higher``); and ``p_value`` of Wilcoxon's two-sided signed-rank
        test (NaN if no volume differs).
    """
    b = b.loc[a.index]
    gaps = b - a
    return means_over_volumes(gaps, seed).assign(
        a=a.where(gaps.notna()).mean(),
        b=b.where(gaps.notna()).mean(),
        b_higher=(gaps > 0).sum(),
        a_higher=(gaps < 0).sum(),
        p_value=gaps.apply(_signed_rank_p),
    )


def _signed_rank_p(gaps: pd.Series) -> float:
    changed = gaps[gaps.notna() & (gaps != 0)]
    return float(stats.wilcoxon(changed).pvalue) if len(changed) else math.nan
