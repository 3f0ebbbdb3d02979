"""The probability from which a voxel belongs to a mask, where nobody names one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

LEVELS = 256
LEAST = 0.05
"""Probabilities below are no sign of a column: else the empty part of a large stack would count."""
LOWEST, HIGHEST = 0.2, 0.5


def to_levels(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities in 0..1 as uint8, in steps of 1 / :data:`LEVELS` rounded down."""
    return np.minimum(probabilities * np.float32(LEVELS), LEVELS - 1).astype(np.uint8)


def best_threshold(levels: Iterable[np.ndarray]) -> float:
    """Return the threshold of the mask whose expected IoU is highest, in LOWEST..HIGHEST.

    ``levels`` are all probabilities of a stack in pieces, from :func:`to_levels`. The expected IoU
    is that of the expected counts, each probability taken at its word, as a network that is unsure
    everywhere would call next to nothing a column at 0.5. It is highest at half of its Dice
    coefficient (Lipton et al., ECML 2014), thus never above 0.5.
    """
    counts = sum(np.bincount(piece.ravel(), minlength=LEVELS) for piece in levels)
    chances = (np.arange(LEVELS) + 0.5) / LEVELS
    true = counts * np.where(chances < LEAST, 0.0, chances)
    called, hits = counts[::-1].cumsum()[::-1], true[::-1].cumsum()[::-1]
    first, last = round(LOWEST * LEVELS), round(HIGHEST * LEVELS)
    iou = hits / np.maximum(called + true.sum() - hits, 1e-9)
    # From above: where nothing is to be seen all are alike, and the mask is as at HIGHEST.
    return float(last - np.argmax(iou[first : last + 1][::-1])) / LEVELS
