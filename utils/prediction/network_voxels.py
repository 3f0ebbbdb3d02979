"""The voxels that a network sees of a stack: cubes, as fine as the columns of its training ask.

How far columns stand apart in a stack is told by the power spectrum of its brightest parts: there
is the sheet. Columns on a hexagonal lattice of spacing s put a ring of power at the spatial
frequency 2 / (sqrt(3) s). Lengths are voxels, those of the finest axis where voxels are not cubes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.resampling import cube_factors, scaled_shape
from utils.stacks import Stack

SAME_VOXEL = 0.02  # difference of voxel edges that is not worth resampling
TRIED_SCALES = (0.5, 0.63, 0.8, 1.0, 1.25, 1.6)  # where the spacing is not certain
ENLARGED = 0.05
"""By how much more masks of an enlarged stack must agree to be taken.

They are smoother, and agree more whatever they are worth. Of 16 wide and medulla volumes three were
enlarged 1.25 times for 0.01 to 0.03 more, and gained 0.01 of IoU; a stack of coarse noise along z,
for 0.02 more, lost 0.2."""
SAME_SPACING = 1.35
"""Quotient of the stack's spacing and training's up to which voxels stay as they are.

Volumes of the default preset spread so far about their median, and a network knows all of them:
scales of 1.16 to 1.34, which brought their columns to the median, lost ``columns3d_reference`` 0.00
to 0.15 of IoU. The estimate's error is up to 15 %."""
EDGE = 48  # of the blocks in voxels: a few columns across, where the sheet is nearly flat
BLOCKS = 12  # the brightest blocks that are looked at
SMOOTHED = 8.0  # standard deviation in voxels of the blur that is taken off first
BANDS = 64  # bands of frequency, equal steps of their logarithm
FINEST, COARSEST = 2.5, 22.0
"""Spacings that can be told, in voxels: the sampling's limit and about half a block."""
TREND = 2  # degree of the polynomial, in logarithms, to which the power would fall without columns
LATTICE = 2 / np.sqrt(3)  # spacing times frequency of the ring of a hexagonal lattice
MIDDLES = np.geomspace(LATTICE / COARSEST, LATTICE / FINEST, BANDS)  # of each band, per voxel
CALIBRATION = 1.11
"""Spacing by the ring's frequency over the mean distance of a column to its nearest neighbour.

The lattice widens outward and is stretched. Measured on the first 24 volumes of the default
validation set: median 1.11, the middle 68 % between 1.07 and 1.16.
"""
LEAST_PROMINENCE, WIDEST_INTERVAL = 2.2, 1.3
"""What an estimate takes to be used: the ring stands out, and all blocks speak of the same.

Eleven of twelve other validation volumes pass, all of them within 15 % of the truth; noise, blurred
noise and scattered blobs reach a prominence of 2.0.
"""
LEAST_SURE = 3.5  # finer spacings, in voxels, are never sure: resampling leaves such rings
LEAST_BLOCKS = 3  # parts of the stack that it takes to agree
MARGIN = 4  # bands at either end in which nothing can stand out of its surroundings


def network_shape(
    stack: Stack,
    scale: float | str,
    trained_spacing: float,
    *,
    by_planes: bool,
    agreement: Callable[[tuple[int, ...]], float] | None = None,
) -> tuple[tuple[int, ...], list[str]]:
    """Return the shape in which the network sees the stack, and lines that say why.

    Args:
        stack: read once if ``scale`` is ``auto``.
        scale: factor by which all axes are enlarged, or ``auto``: so that columns stand as far
            apart as in training, if masks agree more then. Where the stack does not show how far
            they do, the one of :data:`TRIED_SCALES` with the largest agreement; 1 where none has
            any.
        trained_spacing: their distance there, in voxels.
        by_planes: leave the last axis as it is, planes are predicted one by one.
        agreement: of masks in a shape with those of mirrored windows; NaN if none is to be had.

    Raises UserError for an enlargement that cannot be meant.
    """
    reasons = []
    if scale == "auto":
        scale, found = 1.0, "voxels as they are: spacings are not measured for planes one by one"
        if not by_planes:
            scale, found = _measure_scale(stack, trained_spacing, agreement)
        reasons.append(f"scale: {found}")
    if by_planes:
        reasons.append("note: a 2D network on a stack: each plane along z is predicted by itself")
    if not stack.place.tells_ratio and len(stack.shape) == 3:
        unknown = "note: the voxel size is unknown, so voxels are taken for cubes; see --voxel_size"
        reasons.append(unknown)
    return scaled_shape(stack.shape, _factors(stack, float(scale), by_planes)), reasons


def check_enlargement(stack: Stack, scale: float | str, *, by_planes: bool) -> None:
    """Raise UserError for voxels that cannot be made cubes; reads nothing of the stack."""
    _factors(stack, 1.0 if scale == "auto" else float(scale), by_planes)


def _factors(stack: Stack, scale: float, by_planes: bool) -> tuple[float, ...]:
    """Return how much each axis is enlarged: to cubes of the finest edge, times ``scale``."""
    axes = len(stack.shape) - by_planes
    factors = cube_factors(stack.edges[:axes], scale)[:axes]
    factors = tuple(1.0 if abs(f - 1) <= SAME_VOXEL else f for f in factors)
    return (*factors, 1.0) if by_planes else factors


def _measure_scale(
    stack: Stack, trained: float, agreement: Callable[[tuple[int, ...]], float] | None
) -> tuple[float, str]:
    """Return the scale for a network that knows ``trained`` voxels from column to column, and why.

    A network may know other distances as well as its typical one: ``columns3d`` lost 0.10 of IoU on
    six default volumes to scales of 0.6 to 0.9 that brought their columns there. So even a certain
    spacing is tried beside voxels as they are, where agreement can be had.
    """
    found = estimate_spacing(stack)
    sure = found is not None and found.sure
    factor, known = 1.0, "no certain column spacing is seen"
    if sure and found is not None:
        factor = trained / found.spacing
        known = f"{found.describe()}; the network knows {trained:.1f}"
        if 1 / SAME_SPACING <= factor <= SAME_SPACING:
            return 1.0, f"{known}: near enough, voxels as they are"
    elif found is not None:
        known += f" (best guess: {found.describe()})"
    chosen, why = factor, ""
    tried = (1.0, factor) if sure else TRIED_SCALES
    if agreement is not None:
        shapes = {s: scaled_shape(stack.shape, _factors(stack, s, by_planes=False)) for s in tried}
        values = {s: agreement(shape) for s, shape in shapes.items()}
        if not np.isnan(list(values.values())).all():
            worth = {s: np.nan_to_num(values[s], nan=-1.0) - ENLARGED * (s > 1) for s in tried}
            chosen = max(tried, key=lambda s: (worth[s], s == 1))
            others = ", ".join(f"{values[s]:.2f} at {s:.2f}" for s in tried if s != chosen)
            why = (
                ", where masks agree best with those of mirrored windows "
                f"(IoU {values[chosen]:.2f}; {others})"
            )
    what = "voxels as they are" if chosen == 1 else f"enlarged {chosen:.2f} times"
    advice = f"--scale {trained:.1f} divided by the distance of neighbouring columns in voxels"
    return chosen, f"{known}: {what}{why}" + f"; if you know it, give {advice}" * (not sure)


@dataclass(frozen=True)
class SpacingEstimate:
    """What the spectrum says; in voxels of the finest axis."""

    spacing: float  # mean distance of a column to its nearest neighbour
    low: float
    high: float  # where 16 and 84 % of the estimates from blocks drawn anew lie
    prominence: float  # how far the ring stands out of the spectrum, in sd of the rest
    blocks: int  # how many parts of the stack were looked at

    @property
    def sure(self) -> bool:
        """Whether this is more than noise."""
        narrow = self.high <= WIDEST_INTERVAL * self.low
        clear = narrow and self.prominence >= LEAST_PROMINENCE
        return self.blocks >= LEAST_BLOCKS and clear and self.spacing >= LEAST_SURE

    def describe(self) -> str:
        """Return a few words for the user."""
        return (
            f"columns {self.spacing:.1f} voxels apart (68 % between {self.low:.1f} and "
            f"{self.high:.1f}, ring {self.prominence:.1f} sd above the rest, {self.blocks} blocks)"
        )


def estimate_spacing(stack: Stack) -> SpacingEstimate | None:
    """Return the column spacing of a stack, read once; None where there is nothing to look at."""
    steps = tuple(np.array(stack.edges) / min(stack.edges))
    spectra = [_spectrum(block, steps) for block in _brightest(stack)]
    table = np.array([spectrum for spectrum in spectra if spectrum is not None])
    if not len(table):
        return None
    known = np.isfinite(table).all(axis=0) & (table > 0).all(axis=0)
    if np.count_nonzero(known) < BANDS // 2:
        return None
    bands = MIDDLES[known]
    table = table[:, known]
    position, prominence = _peak(bands, table.mean(axis=0))
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(table), size=(200, len(table)))
    others = [_peak(bands, table[rows].mean(axis=0))[0] for rows in drawn]
    low, high = np.quantile(others, [0.16, 0.84])
    spacings = LATTICE / CALIBRATION / np.array([position, high, low])
    return SpacingEstimate(*map(float, spacings), prominence, len(table))


def _brightest(stack: Stack) -> Iterator[np.ndarray]:
    """Yield the brightest blocks, float32, of at most :data:`EDGE` voxels along each axis."""
    edges = tuple(min(EDGE, length) for length in stack.shape)
    starts = [
        sorted({*range(0, length - edge + 1, max(1, edge // 2)), length - edge})
        for length, edge in zip(stack.shape, edges, strict=True)
    ]
    best: list[tuple[float, tuple[int, ...], np.ndarray]] = []
    for last in starts[-1]:
        slab = stack.read(last, last + edges[-1])
        if slab.dtype.kind == "f":  # outside of a registered field of view there is nothing
            slab = np.where(np.isfinite(slab), slab, np.float32(0))
        for corner in itertools.product(*starts[:-1]):
            box = tuple(slice(a, a + n) for a, n in zip(corner, edges, strict=False))
            brightness = float(slab[box].mean(dtype=np.float64))
            if len(best) < BLOCKS or brightness > best[-1][0]:
                best.append((brightness, (*corner, last), slab[box].astype(np.float32)))
                best = sorted(best, key=lambda entry: (-entry[0], entry[1]))[:BLOCKS]
    yield from (block for _, _, block in best)


def _spectrum(block: np.ndarray, steps: tuple[float, ...]) -> np.ndarray | None:
    """Return the mean power of each band, of mean 1 (NaN where unknown); None for a flat block."""
    if not block.max() > block.min():
        return None
    values = np.log1p(np.maximum(block, 0) / max(float(np.median(block)), 1e-6))
    bells = [np.hanning(length + 2)[1:-1] for length in block.shape]
    window = functools.reduce(np.multiply.outer, bells)
    coarse = ndimage.gaussian_filter(values, [SMOOTHED / step for step in steps], mode="nearest")
    values = values - coarse  # the sheet's own shape would leak into the rings
    values = (values - np.average(values, weights=window)) * window
    finer = [2 * n for n in block.shape]  # else a low band's power hangs on its few directions
    power = np.abs(np.fft.rfftn(values, finer, range(values.ndim))) ** 2
    axes = [np.fft.fftfreq(n) / step for n, step in zip(finer, steps, strict=True)]
    axes[-1] = np.fft.rfftfreq(finer[-1]) / steps[-1]
    vectors = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    length = np.linalg.norm(vectors, axis=-1)
    seen = (length >= LATTICE / COARSEST) & (length < LATTICE / FINEST)
    if not power[seen].sum() > 0:
        return None
    length, power = length[seen], power[seen]
    slope = np.polyfit(np.log(length), np.log(power + 1e-12 * power.max()), 1)[0]
    power = power * length**-slope  # level, else a band's power hangs on which frequencies it holds
    band = np.searchsorted(np.sqrt(MIDDLES[1:] * MIDDLES[:-1]), length)
    counts = np.bincount(band, minlength=BANDS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(band, power, BANDS) / counts
    return means / np.nanmean(means)


def _peak(bands: np.ndarray, power: np.ndarray) -> tuple[float, float]:
    """Return the frequency that stands out most, and by how many standard deviations.

    Only a maximum counts: the rise of the spectrum towards either end is not one.
    """
    x, y = np.log(bands), np.log(power)
    residual = y - np.polyval(np.polyfit(x, y, TREND), x)
    smooth = np.convolve(np.pad(residual, 2, mode="edge"), np.array([1, 2, 3, 2, 1]) / 9, "valid")
    inner = slice(MARGIN, len(smooth) - MARGIN)
    above = (smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])
    tops = [k for k in np.flatnonzero(above) + 1 if inner.start <= k < inner.stop]
    if not tops:
        return float(bands[len(bands) // 2]), 0.0
    best = max(tops, key=lambda k: smooth[k])
    rest = np.abs(np.arange(len(bands)) - best) > MARGIN
    return float(bands[best]), float(smooth[best] / max(np.std(residual[rest]), 1e-12))
