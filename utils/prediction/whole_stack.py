"""A stack of any size through a network and into its outputs, slab by slab.

Arrays are (X, Y, Z) or (X, Y) as in ``utils.stacks``; slabs are ranges of the last axis, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from utils.data.normalize import PercentileNormalizer
from utils.grey_values import Limits
from utils.prediction.memory import DTYPES
from utils.prediction.sliding_window import Windows, predict_slabs
from utils.prediction.staging import open_staging
from utils.resampling import Resampling, planes_at_once
from utils.stacks import Stack, StackLayout, write_stack

MOST_PIXELS = 1024  # of a plane along an axis: of longer ones each second, third, ... is taken
LEVELS = 256  # of probabilities, where they are kept as bytes
LEAST_CHANCE = 0.05
"""Probabilities below are no sign of a column: else the empty part of a large stack would count."""
LOWEST, HIGHEST = 0.2, 0.5  # thresholds between which the best one is taken


@dataclass(frozen=True)
class Sections:
    """Three planes of a stack, across z, y and x, and of its mask; of an image the one there is."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None  # edge of a voxel in micrometres
    origin: tuple[int, ...]  # of the first voxel in the file
    middle: tuple[int, ...]  # the voxel that all planes go through
    marked: int  # voxels of the whole mask
    images: list[np.ndarray]  # grey values, 0 to 1, (X, Y), (X, Z) and (Y, Z)
    masks: list[np.ndarray]  # 0 and 1, of the same shapes


def middle_of(masks: Iterable[np.ndarray], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the median of the mask's voxels along each axis, and how many there are.

    So each plane through it meets the mask. The middle of the stack if the mask is empty.
    """
    counts = [np.zeros(length, np.int64) for length in shape]
    start = 0
    for mask in masks:
        stop = start + mask.shape[-1]
        for axis, count in enumerate(counts):
            others = tuple(k for k in range(len(shape)) if k != axis)
            part = slice(start, stop) if axis == len(shape) - 1 else slice(None)
            count[part] += np.count_nonzero(mask, axis=others)
        start = stop
    marked = int(counts[0].sum())
    if not marked:
        return tuple(length // 2 for length in shape), 0
    return tuple(int(np.searchsorted(c.cumsum(), marked / 2)) for c in counts), marked


def cut(
    slabs: Iterable[np.ndarray], shape: tuple[int, ...], middle: tuple[int, ...]
) -> list[np.ndarray]:
    """Return the planes through ``middle``, in the order of :class:`Sections`."""
    steps = [slice(None, None, -(-length // MOST_PIXELS)) for length in shape]
    whole: list[np.ndarray] = []
    parts: list[list[np.ndarray]] = []
    start = 0
    for slab in slabs:
        step = steps[-1].step
        taken = slab[..., -start % step :: step]
        if len(shape) == 2:
            parts.append([taken[steps[0]].copy()])
        else:
            x, y, z = middle
            if start <= z < start + slab.shape[-1]:
                whole = [slab[steps[0], steps[1], z - start].copy()]
            parts.append([taken[steps[0], y].copy(), taken[x, steps[1]].copy()])
        start += slab.shape[-1]
    return [*whole, *(np.concatenate(pieces, axis=-1) for pieces in zip(*parts, strict=True))]


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
    true = counts * np.where(chances < LEAST_CHANCE, 0.0, chances)
    called, hits = counts[::-1].cumsum()[::-1], true[::-1].cumsum()[::-1]
    first, last = round(LOWEST * LEVELS), round(HIGHEST * LEVELS)
    iou = hits / np.maximum(called + true.sum() - hits, 1e-9)
    # From above: where nothing is to be seen all are alike, and the mask is as at HIGHEST.
    return float(last - np.argmax(iou[first : last + 1][::-1])) / LEVELS


@dataclass(frozen=True)
class StackPrediction:
    """A stack and all that makes its probabilities."""

    model: nn.Module
    stack: Stack
    normalizer: PercentileNormalizer
    limits: Limits  # the stack's, from :func:`utils.data.normalize.measure_limits`
    shape: tuple[int, ...]  # of what the network sees: the stack's own, or that after resampling
    windows: Windows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the planes ``start <= z < stop`` of the stack as the network sees grey values."""
        planes = self.stack.read(start, stop)
        scaled = self.normalizer.apply(planes, self.limits.low, self.limits.high)
        if self.limits.missing:
            scaled[~np.isfinite(planes)] = 0
        return scaled

    def seen(self) -> Callable[[int, int], np.ndarray]:
        """Return what reads planes ``start <= z < stop`` of the network's own voxels."""
        if self.shape == self.stack.shape:
            return self.read
        there = Resampling.between(self.stack.shape, self.shape)

        def read(start: int, stop: int) -> np.ndarray:
            begin, end = there.needed(start, stop)
            return there.apply(self.read(begin, end), begin, start, stop)

        return read

    def slabs(
        self, first: int = 0, passed: Callable[[int], object] = lambda count: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, probabilities) of the stack's own planes, in order from ``first``.

        As :func:`predict_slabs`, with the stack resampled to the network's voxels and the map back.
        Voxels that are NaN or infinite have none, and all are zero where both limits are the same:
        nothing is to be seen.
        """
        for start, slab in self._mapped(first, passed):
            if self.limits.missing:
                slab[~np.isfinite(self.stack.read(start, start + slab.shape[-1]))] = 0
            yield start, slab

    def _mapped(
        self, first: int, passed: Callable[[int], object]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield what :meth:`slabs` yields, with what the network makes of missing voxels."""
        if not self.limits.high > self.limits.low:
            lateral, length = self.stack.shape[:-1], self.stack.shape[-1]
            planes = planes_at_once(4 * math.prod(lateral))
            passed(self.windows.count(self.shape))
            for start in range(first, length, planes):
                yield start, np.zeros((*lateral, min(planes, length - start)), np.float32)
            return
        there = self.model, self.seen(), self.shape, self.windows
        if self.shape == self.stack.shape:
            yield from predict_slabs(*there, first=first, passed=passed)
            return
        back = Resampling.between(self.shape, self.stack.shape)
        begin = back.needed(first, self.stack.shape[-1])[0]
        yield from back.stream(predict_slabs(*there, first=begin, passed=passed), first)

    def sections(self, masks: Callable[[], Iterable[np.ndarray]]) -> Sections:
        """Return planes of the stack, as the network sees grey values, and of its mask's slabs."""
        stack, length = self.stack, self.stack.shape[-1]
        depth = planes_at_once(4 * math.prod(stack.shape[:-1]))
        middle, marked = middle_of(masks(), stack.shape)
        seen = (self.read(z, min(z + depth, length)) for z in range(0, length, depth))
        return Sections(
            stack.shape, stack.spacing, stack.origin, middle, marked,
            cut(seen, stack.shape, middle), cut(masks(), stack.shape, middle),
        )  # fmt: skip


def write_prediction(
    prediction: StackPrediction,
    outputs: Mapping[str, Path],
    threshold: float | None,
    *,
    made_from: Mapping[str, Any],
    progress: bool = False,
    preview: bool = False,
) -> tuple[float, Sections | None]:
    """Predict a stack and write its outputs, going on where an earlier attempt stopped.

    Args:
        prediction: what makes the probabilities.
        outputs: ``mask`` and, if wanted, ``probabilities``, and where they go; beside the mask's
            name the planes that are done are kept.
        threshold: probability from which a voxel belongs to the mask; None takes
            :func:`best_threshold` of the stack.
        made_from: plain JSON that tells all that the outputs depend on; planes made from something
            else are not taken up.
        progress: show a bar over the windows, and how many planes are there already.
        preview: read the stack once more and return its planes through the middle of the mask.

    Returns the threshold and, with ``preview``, those planes.
    Raises UserError for a stack that cannot be read, or a disk that cannot be written.
    """
    stack, windows = prediction.stack, prediction.windows.count(prediction.shape)
    staged = "probabilities" if "probabilities" in outputs else "mask"

    def kept(slab: np.ndarray) -> np.ndarray:
        """Return what is staged of probabilities: themselves, or a byte a voxel."""
        if staged == "probabilities":
            return slab
        return to_levels(slab) if threshold is None else slab >= threshold

    with (
        open_staging(outputs["mask"], stack.shape, DTYPES[staged], made_from) as staging,
        tqdm(desc="predicting", total=windows, unit="window", disable=not progress) as passed,
    ):
        if staging.done and progress:
            known = f"going on after {staging.done} of {stack.shape[-1]} planes that are done"
            passed.write(known)
        if staging.done < stack.shape[-1]:
            for _, slab in prediction.slabs(staging.done, passed.update):
                staging.append(kept(slab))
        limit = threshold
        if threshold is None:
            slabs = staging.slabs()
            limit = best_threshold(slabs if staged == "mask" else map(to_levels, slabs))

        def masks() -> Iterator[np.ndarray]:
            """Yield the mask from what is staged: probabilities, their levels, or itself."""
            least = limit if staged == "probabilities" else 1
            if staged == "mask" and threshold is None:
                least = limit * LEVELS
            for slab in staging.slabs():
                yield (slab >= least).astype(np.uint8)

        slabs = {"mask": masks, "probabilities": staging.slabs}
        for name, path in outputs.items():
            write_stack(path, slabs[name](), StackLayout.like(stack, DTYPES[name]))
        return limit, prediction.sections(masks) if preview else None
