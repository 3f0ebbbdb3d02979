"""How far columns stand apart in a stack, from the power spectrum of its brightest parts.

Columns on a hexagonal lattice of spacing s put a ring of power at the spatial frequency
2 / (sqrt(3) s). Lengths are voxels, those of the finest axis where voxels are not cubes. Blocks are
taken where the stack is brightest: there is the sheet.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.stacks import Stack

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
