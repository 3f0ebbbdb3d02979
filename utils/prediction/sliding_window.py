"""Whole-volume prediction: overlapping windows through a network, blended into one probability map.

Arrays are (X, Y, Z), or (X, Y) for images, of any size; networks map (batch, 1, *space) to logits,
or to a list of logits of which the last are the prediction. Windows are taken layer by layer along
the last axis, so that no more than one layer of the map is ever held.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError

BLEND_SIGMA = 0.125  # sd of the blending weights in edges of a window, as in MONAI and nnU-Net
LEAST_WEIGHT = 1e-3  # weight in a window's corner: no voxel is left to rounding errors
BATCH_SIZE = 4  # windows at once; more gain nothing on a processor
SMALL_AREA = 64 * 64  # x times y of windows that are slow alone, see :func:`probabilities_of`
VIEW_SCALES = (0.8, 1.25)  # enlargements over which a prediction can be averaged


@dataclass(frozen=True)
class Windows:
    """How windows are laid over a volume and passed through a network."""

    edges: tuple[int, ...]  # edge of a window along each axis in voxels, at most the volume's
    overlap: float = 0.25  # share of an edge in common with the next window, 0 <= overlap < 1
    batch_size: int = BATCH_SIZE  # windows that pass the network at once, at most
    tta: tuple[str, ...] = ()  # average over views of each window: kinds of ``averaged_views``
    precision: str = "32"  # ``32`` or ``bf16``: bfloat16 where torch's autocast thinks it safe

    def starts(self, shape: tuple[int, ...]) -> list[list[int]]:
        """Return where windows begin along each axis, evenly spread from end to end.

        As few as the overlap asks for, so that no window is almost another.
        """
        starts = []
        for length, edge in zip(shape, self.edges, strict=True):
            count = math.ceil((length - edge) / max(1, int(edge * (1 - self.overlap)))) + 1
            starts.append(np.linspace(0, length - edge, count).round().astype(int).tolist())
        return starts

    def lateral(self, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
        """Return where each window of a layer lies along all axes but the last."""
        along = zip(self.starts(shape)[:-1], self.edges, strict=False)
        return list(itertools.product(*([slice(a, a + n) for a in starts] for starts, n in along)))

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of windows in a volume."""
        return int(np.prod([len(starts) for starts in self.starts(shape)]))

    def passes(self, shape: tuple[int, ...]) -> int:
        """Return how often a window passes the network: once for each view that is averaged."""
        return self.count(shape) * len(averaged_views(self.tta, len(shape)))


def predict_volume(
    model: nn.Module,
    image: np.ndarray,
    normalizer: PercentileNormalizer,
    *,
    window: int | Sequence[int],
    overlap: float = 0.25,
    batch_size: int = BATCH_SIZE,
    tta: tuple[str, ...] = (),
    precision: str = "32",
) -> np.ndarray:
    """Return the foreground probability of every voxel of ``image``.

    The whole image is normalised at once, by its own percentiles, as the patches of training were.
    Windows that overlap are blended with Gaussian weights, as a network knows least about what lies
    at a window's rim. An axis shorter than the window gets a window of its own length. The image
    and the map stay in main memory; windows alone travel to the model's device. The model is put
    into evaluation mode.

    ``image`` is (X, Y, Z) or (X, Y), raw intensities, the result float32 of its shape, 0..1;
    ``window`` is one length in voxels for all axes or one for each; the rest as in
    :class:`Windows`. Raises UserError for an image or window of other axes or of none, values that
    are not finite, and a network with several output channels.
    """
    windows = Windows(window_within(image.shape, window), overlap, batch_size, tta, precision)
    if not np.isfinite(image).all():
        raise UserError("the image holds values that are not finite (NaN or infinite)")
    low, high = normalizer.fit(image)

    def read(start: int, stop: int) -> np.ndarray:
        return normalizer.apply(image[..., start:stop], low, high)

    result = np.empty(image.shape, np.float32)
    for start, slab in predict_slabs(model, read, image.shape, windows):
        result[..., start : start + slab.shape[-1]] = slab
    return result


def predict_slabs(
    model: nn.Module,
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, ...],
    windows: Windows,
    *,
    first: int = 0,
    passed: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the probability map of a volume that need not fit into memory, slab by slab.

    Slabs, as (start, float32 (X, Y, n), 0..1), come in order from plane ``first`` to the end, and
    are those of the whole volume's map: nothing shows where one ends. A slab's memory is used
    again: it holds until the next one is asked for. Held at a time are one layer of windows (as
    wide as the volume, one window deep), its input and a batch's features.

    ``read`` returns the normalised planes ``start <= z < stop`` of a volume of ``shape``, (X, Y,
    stop - start) float32; no window is longer than the volume. ``passed`` is told the number of
    windows done after each batch, skipped ones too.
    """
    model.eval()
    starts = windows.starts(shape)
    bells = [_bell(edge, len(shape)) for edge in windows.edges]
    totals = [_covered(length, *pair) for length, *pair in zip(shape, starts, bells, strict=True)]
    weight = torch.from_numpy(functools.reduce(np.multiply.outer, bells))
    lateral = windows.lateral(shape)
    depth = windows.edges[-1]
    layer = torch.zeros((depth, *reversed(shape[:-1]))).permute(*reversed(range(len(shape))))
    lateral_total = torch.from_numpy(functools.reduce(np.multiply.outer, totals[:-1]))[..., None]
    for start, following in zip(starts[-1], [*starts[-1][1:], shape[-1]], strict=True):
        if start + depth <= first:
            passed(len(lateral))
            continue
        slab = torch.from_numpy(read(start, start + depth))
        _add_layer(model, slab, layer, weight, lateral, windows, passed)
        del slab  # else it would still be held while the next one is read
        ready = layer[..., : following - start]
        ready /= lateral_total
        ready /= torch.from_numpy(totals[-1][start:following])
        ready.clamp_(0, 1)  # a blend of ones may exceed 1 by a rounding error
        if following > first:
            fresh = max(first - start, 0)
            yield start + fresh, ready[..., fresh:].numpy()
        _move_up(layer, following - start)


def window_within(shape: tuple[int, ...], window: int | Sequence[int]) -> tuple[int, ...]:
    """Return the window's edge along each axis, no longer than the image's; UserError if bad."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"the image must have 2 or 3 axes and no empty one, not shape {shape}")
    edges = (window,) * len(shape) if isinstance(window, int) else tuple(window)
    if len(edges) != len(shape) or min(edges) < 1:
        raise UserError(
            f"window must be one length of at least 1 voxel or one for each of the {len(shape)} "
            f"axes, not {window!r}"
        )
    return tuple(min(edge, length) for edge, length in zip(edges, shape, strict=True))


def _bell(edge: int, dims: int) -> np.ndarray:
    """Return one axis' factor of a window's weights, (edge,) float32, 1 in the middle.

    It is held above the root of :data:`LEAST_WEIGHT` that makes the corners weigh that much. As the
    weights are a product of one factor an axis, so is their sum over all windows.
    """
    offset = (np.arange(edge) - (edge - 1) / 2) / (BLEND_SIGMA * edge)
    return np.maximum(np.exp(-0.5 * offset**2), LEAST_WEIGHT ** (1 / dims)).astype(np.float32)


def _covered(length: int, starts: list[int], bell: np.ndarray) -> np.ndarray:
    """Return the sum of all windows' weights along one axis, (length,) float32."""
    total = np.zeros(length, np.float32)
    for start in starts:
        total[start : start + len(bell)] += bell
    return total


def _add_layer(
    model: nn.Module,
    slab: torch.Tensor,
    layer: torch.Tensor,
    weight: torch.Tensor,
    boxes: list[tuple[slice, ...]],
    windows: Windows,
    passed: Callable[[int], object],
) -> None:
    """Pass all windows of one layer through the network and add their weighted answers to it."""
    device = next(model.parameters()).device
    views = averaged_views(windows.tta, slab.ndim)

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        return probabilities_of(model, inputs, windows.precision)

    with torch.inference_mode():
        # 9 windows, 4 at once, are 3 batches of 3: none is left alone
        for batch in np.array_split(np.arange(len(boxes)), -(-len(boxes) // windows.batch_size)):
            inputs = torch.stack([slab[boxes[k]] for k in batch])[:, None].to(device)
            total = torch.zeros_like(inputs)
            for view in views:
                total += view.answer(predict, inputs)
            answers = (total / len(views)).cpu()  # to the host, once a batch
            for k, answer in zip(batch, answers, strict=True):
                layer[boxes[k]] += answer[0] * weight
            passed(len(batch))


def _move_up(layer: torch.Tensor, planes: int) -> None:
    """Drop the first ``planes`` of the last axis, move the rest there, and fill up with zeros."""
    depth = layer.shape[-1]
    for z in range(depth - planes):
        layer[..., z] = layer[..., z + planes]
    layer[..., depth - planes :] = 0


@dataclass(frozen=True)
class View:
    """A change of windows (batch, 1, *space) in 0..1, after which answers lie where they did.

    An average over views is a better prediction, and how far they agree tells how far to trust it.
    """

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

    ``flips`` are the image and three mirror images, all that there are for 2 axes of space.
    Of the eight for 3 axes they are half, in which each axis is mirrored as often as not; the other
    half takes as long again and gained 0.002 of IoU. ``scales`` are two more: they are added up,
    not combined, so that both cost 6 passes.
    """
    views = [View()]
    if "flips" in kinds:
        views += map(View, [(0,), (1,), (0, 1)] if dims == 2 else [(0,), (1, 2), (0, 1, 2)])
    if "scales" in kinds:
        views += [View(scale=scale) for scale in VIEW_SCALES]
    return tuple(views)


def probabilities_of(model: nn.Module, inputs: torch.Tensor, precision: str) -> torch.Tensor:
    """Return the foreground probabilities of (batch, 1, *space) windows, float32, same shape.

    A lone small window gets a copy for company, since torch (ConvParams::use_mkldnn) takes a single
    float32 sample of few values from oneDNN's kernels to slow ones, which also unfold it in memory.
    Seconds on one core of an Intel Xeon, U-Nets of depth 4 on 64^3, alone and with a copy: 4
    channels 0.32 and 0.10, 8 channels 0.36 and 0.20, 16 channels on blocks of 2^3 voxels 0.24 and
    0.07 (but 16 at full resolution 0.38 and 0.68). Windows of 128^3, images and bfloat16 gain
    nothing by it.
    """
    count, kind = len(inputs), inputs.device.type
    slow = kind == "cpu" and precision == "32" and inputs.ndim == 5 and inputs.shape[-1] > 1
    if slow and count == 1 and inputs[..., 0].numel() <= SMALL_AREA:
        inputs = inputs.expand(2, *inputs.shape[1:])
    with torch.autocast(kind, torch.bfloat16, precision == "bf16"):
        logits = model(inputs)
    if isinstance(logits, (list, tuple)):
        logits = logits[-1]
    if logits.shape != inputs.shape:
        raise UserError(
            f"the network must answer windows of shape {tuple(inputs.shape)} with one channel of "
            f"logits, not with shape {tuple(logits.shape)}"
        )
    return torch.sigmoid(logits.float())[:count]
