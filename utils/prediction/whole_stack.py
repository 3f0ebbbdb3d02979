"""A stack of any size through a network and into its outputs, slab by slab.

Arrays are (X, Y, Z) or (X, Y) as in ``utils.stacks``.
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
from utils.prediction.sections import Sections, cut, middle_of
from utils.prediction.sliding_window import Windows, predict_slabs
from utils.prediction.staging import open_staging
from utils.prediction.thresholds import LEVELS, best_threshold, to_levels
from utils.resampling import Resampling, planes_at_once
from utils.stacks import Stack, StackLayout, write_stack


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
