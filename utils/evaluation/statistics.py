"""Means over volumes with bootstrap intervals, paired differences and rank correlations.

Tables of scores have a row a volume and a column a score. Volumes are what is drawn: they are
independent of each other, the voxels of one are not. A score that means nothing in a volume is NaN
there; such volumes are left out, and the results say how many were counted.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95  # share of the resamples that an interval holds
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean over volumes and its bootstrap interval."""

    mean: float
    low: float
    high: float
    volumes: int  # volumes in which the score has a meaning; from a single one no interval follows


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
    how = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile"}
    low, high = stats.bootstrap((known,), np.mean, rng=rng, **how).confidence_interval
    return Interval(float(known.mean()), float(low), float(high), known.size)


def means_over_volumes(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return a row a score: the fields of :class:`Interval`.

    Each score's resamples come from a generator of the same seed, so that all of them see the same
    volumes drawn.
    """
    intervals = [bootstrap_mean(scores[name], np.random.default_rng(seed)) for name in scores]
    return pd.DataFrame(intervals, index=scores.columns, columns=Interval._fields)


def paired_differences(a: pd.DataFrame, b: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return how far B's scores lie above A's on the same volumes, which may be in any order.

    A row a score: the fields of :class:`Interval` of B - A over the volumes in which both have a
    meaning; the means ``a`` and ``b`` over these; in how many of them B's or A's score is the
    higher one (``b_higher``, ``a_higher``); and ``p_value`` of Wilcoxon's two-sided signed-rank
    test (NaN if no volume differs). ``seed`` is the bootstrap's.
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


def rank_correlations(scores: pd.DataFrame, score: str, others: list[str]) -> pd.Series:
    """Return Spearman's rank correlation, -1..1, of the column ``score`` with each of ``others``.

    Pairs with a NaN are left out; NaN for fewer than three, or where one of them does not vary.
    """
    return scores[[score, *others]].corr("spearman", min_periods=3).loc[others, score]


def _signed_rank_p(gaps: pd.Series) -> float:
    changed = gaps[gaps.notna() & (gaps != 0)]
    return float(stats.wilcoxon(changed).pvalue) if len(changed) else math.nan
