"""Means over volumes with bootstrap intervals, and paired differences between two sets of scores.

Volumes are what is drawn: they are independent of each other, the voxels of one are not. A score
that means nothing in a volume is NaN there; such volumes are left out, and the results say how many
were counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.errors import UserError

LEVEL = 0.95
"""Share of the resamples that an interval holds."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over volumes and its bootstrap interval."""

    mean: float
    low: float
    high: float
    volumes: int
    """Volumes in which the score has a meaning; from a single one no interval follows."""


@dataclass(frozen=True)
class PairedDifference:
    """How far B's scores lie above A's on the same volumes."""

    a: float
    """Mean of A over the volumes in which both have a meaning."""
    b: float
    difference: Interval
    """Of B - A."""
    b_higher: int
    """Volumes in which B's score is the higher one."""
    a_higher: int
    p_value: float
    """Wilcoxon's signed-rank test, two-sided; NaN if no volume differs."""


def bootstrap_mean(
    values: np.ndarray,
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the mean of ``values`` (n,) over volumes with its percentile bootstrap interval.

    After Efron 1979: volumes are drawn with replacement ``resamples`` times, and the interval holds
    the middle ``level`` of the means. NaN values are left out; the mean of none is NaN, and so is
    the interval of fewer than two.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size < 2:
        mean = float(known[0]) if known.size else float("nan")
        return Interval(mean, float("nan"), float("nan"), known.size)
    drawn = stats.bootstrap(
        (known,),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=rng,
    )
    low, high = drawn.confidence_interval
    return Interval(float(known.mean()), float(low), float(high), known.size)


def compare_paired(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> PairedDifference:
    """Return B - A with its bootstrap interval over volumes, and Wilcoxon's test beside it.

    Args:
        a: scores (n,), one a volume.
        b: those of the same volumes in the same order. Pairs with a NaN are left out.
        rng: of the bootstrap.

    Raises:
        ValueError: unequal shapes.
    """
    if a.shape != b.shape:
        raise UserError(f"{a.shape} scores of A and {b.shape} of B are no pairs")
    known = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[known].astype(np.float64), b[known].astype(np.float64)
    changed = (b - a)[b != a]
    return PairedDifference(
        a=float(a.mean()) if a.size else math.nan,
        b=float(b.mean()) if b.size else math.nan,
        difference=bootstrap_mean(b - a, rng),
        b_higher=int((changed > 0).sum()),
        a_higher=int((changed < 0).sum()),
        p_value=float(stats.wilcoxon(changed).pvalue) if changed.size else math.nan,
    )


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation of two (n,) arrays, -1..1.

    Pairs with a NaN are left out; NaN for fewer than three, or where one of them does not vary.
    """
    known = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[known], y[known]
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(stats.spearmanr(x, y).statistic)
