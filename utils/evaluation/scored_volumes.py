"""Volumes with all their scores, and what follows from many of them: means, extremes, correlations.

The scores of a volume are numbers by name, NaN where one has no meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.evaluation.column_recall import flatten, recall_by_kind
from utils.evaluation.conditions import describe_conditions
from utils.evaluation.confusion import THRESHOLD
from utils.evaluation.scores import score_volume
from utils.evaluation.statistics import Interval, bootstrap_mean, rank_correlation
from utils.evaluation.surfaces import score_surfaces
from utils.simulation import SimulatedVolume

SHOWN = 5
"""Volumes that are picked to be shown, where there are as many."""


@dataclass(frozen=True)
class ScoredVolume:
    """One scored volume, and the slice of it that a picture would show."""

    index: int
    scores: dict[str, float]
    conditions: dict[str, float]
    """Under what the volume was taken."""
    seconds: float
    """What prediction took."""
    slices: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Image, mask and probability (X, Y) at the z with most labelled voxels."""
    z: int

    @property
    def row(self) -> dict[str, float]:
        """All numbers of the volume, as the table holds them."""
        first = {"volume": self.index, **self.scores, **self.conditions}
        return {**first, "seconds": round(self.seconds, 3)}


def score_prediction(
    index: int,
    volume: SimulatedVolume,
    probabilities: np.ndarray,
    *,
    seconds: float,
    tolerance: float | None,
    spacing: tuple[float, ...] | None,
) -> ScoredVolume:
    """Score the prediction of one volume.

    Args:
        index: of the volume.
        volume: the truth.
        probabilities: (X, Y, Z) 0..1.
        seconds: what the prediction took.
        tolerance: of surface Dice, in voxels; None leaves the surfaces out.
        spacing: micrometres along x, y, z, if known.
    """
    z = int(np.argmax(np.count_nonzero(volume.mask, axis=(0, 1))))
    planes = (array[..., z].copy() for array in (volume.image, volume.mask, probabilities))
    return ScoredVolume(
        index=index,
        scores=all_scores(probabilities, volume, tolerance=tolerance, spacing=spacing),
        conditions=dataclasses.asdict(describe_conditions(volume)),
        seconds=seconds,
        slices=tuple(planes),
        z=z,
    )


def all_scores(
    probabilities: np.ndarray,
    volume: SimulatedVolume,
    *,
    tolerance: float | None,
    spacing: tuple[float, ...] | None,
) -> dict[str, float]:
    """Return every score of one volume by its name; arguments as in :func:`score_prediction`."""
    mask, found = volume.mask, probabilities >= THRESHOLD
    scores = dataclasses.asdict(score_volume(probabilities, mask, volume.sheet))
    scores["iou_gain"] = scores["iou"] - scores["baseline_iou"]
    scores["sheet_iou_gain"] = scores["sheet_iou"] - scores["sheet_baseline_iou"]
    if tolerance is not None:
        surfaces = score_surfaces(found, mask > 0, tolerance=tolerance, voxel_size=spacing)
        scores |= dataclasses.asdict(surfaces)
    return scores | flatten(recall_by_kind(found, volume))


def average(rows: Sequence[Mapping[str, float]], seed: int) -> dict[str, Interval]:
    """Return the mean of every score over the volumes with its interval.

    Each score's resamples come from a generator of the same seed, so that all of them see the same
    volumes drawn.
    """
    return {
        name: bootstrap_mean(np.array([row[name] for row in rows]), np.random.default_rng(seed))
        for name in rows[0]
    }


def conditions_of(results: Sequence[ScoredVolume]) -> dict[str, list[float]]:
    """Return each condition, and the labelled share, of all volumes."""
    names = results[0].conditions
    values = {name: [result.conditions[name] for result in results] for name in names}
    return {**values, "foreground": [result.scores["foreground"] for result in results]}


def correlate(results: Sequence[ScoredVolume]) -> dict[str, float]:
    """Return Spearman's correlation of the IoU with each of :func:`conditions_of`."""
    scores = np.array([result.scores["iou"] for result in results])
    return {
        name: rank_correlation(np.array(values, float), scores)
        for name, values in conditions_of(results).items()
    }


def sum_columns(results: Sequence[ScoredVolume], kind: str) -> int:
    """Return how many columns of a kind all volumes hold together."""
    return int(sum(result.scores[f"columns_{kind}"] for result in results))


def pick_shown(results: Sequence[ScoredVolume]) -> list[tuple[str, ScoredVolume]]:
    """Return the volumes with the best, the median and the worst IoU, each once, and what it is."""
    ranked = sorted(results, key=lambda result: -result.scores["iou"])
    words = ["best", "second best", "median", "second worst", "worst"]
    if len(ranked) >= SHOWN:
        middle = ranked[len(ranked) // 2]
        return list(zip(words, [*ranked[:2], middle, *ranked[-2:]], strict=True))
    if len(ranked) < 3:
        return list(zip(("best", "worst") if len(ranked) == 2 else ("only",), ranked, strict=True))
    return [("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])]
