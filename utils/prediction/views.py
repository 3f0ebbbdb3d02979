"""Windows seen in other ways, mirrored or changed a little, and the network's answers put back.

An average over views is a better prediction, and how far they agree tells how far to trust it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch.nn import functional

SCALES = (0.8, 1.25)  # enlargements over which a prediction can be averaged


@dataclass(frozen=True)
class View:
    """A change of windows (batch, 1, *space) in 0..1, after which answers lie where they did."""

    flipped: tuple[int, ...] = ()  # axes of space that are mirrored, from 0
    scale: float = 1.0  # windows are enlarged so much, and the answers back; linear between voxels
    power: float = 1.0  # of the grey values
    noise: float = 0.0  # sd of Gaussian noise that is added; the grey values stay in 0..1

    def answer(
        self,
        predict: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        rng: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return ``predict`` of the changed windows, turned back; ``rng`` (CPU) makes the noise."""
        axes = [axis + 2 for axis in self.flipped]
        changed = inputs.flip(axes) if axes else inputs
        if self.power != 1:
            changed = changed**self.power
        if self.noise:
            drawn = torch.randn(changed.shape, generator=rng).to(changed.device)
            changed = (changed + self.noise * drawn).clamp(0, 1)
        edges = list(inputs.shape[2:])
        if self.scale != 1:
            changed = _resized(changed, [max(1, round(self.scale * edge)) for edge in edges])
        answers = predict(changed)
        if self.scale != 1:
            answers = _resized(answers, edges)
        return answers.flip(axes) if axes else answers


def _resized(windows: torch.Tensor, edges: list[int]) -> torch.Tensor:
    mode = "trilinear" if len(edges) == 3 else "bilinear"
    return functional.interpolate(windows, edges, mode=mode)


def averaged_views(kinds: Collection[str], dims: int) -> tuple[View, ...]:
    """Return the views over which is averaged, the unchanged one first.

    ``flips`` are all mirror images (4 for 2 axes of space, 8 for 3), ``scales`` are two more: they
    are added up, not combined, so that both cost 10 passes.
    """
    views = [View()]
    if "flips" in kinds:
        axes = range(dims)
        views += [View(f) for n in range(1, dims + 1) for f in itertools.combinations(axes, n)]
    if "scales" in kinds:
        views += [View(scale=scale) for scale in SCALES]
    return tuple(views)
