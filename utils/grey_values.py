"""Which grey values of a stack become 0 and 1: one rule for storage, training and prediction.

The rule ``robust``, by default with the percentiles 1 and 99:

1. Voxels at the top value, as saturated debris leaves them, count as at most one in ten thousand,
   unless the rest is all of one value.
2. The upper limit is the upper percentile of the voxels that count, but where few stand above the
   noise a higher one: where a share s of the voxels does, at most 0.001 + 4.5 s^2 lie beyond it, so
   that the fewer they are, the more of them stay below. Above the noise is what exceeds the median
   by three spreads; a spread is the distance of the median from the 16th percentile, or 0.7 times
   that from the 75th, whichever is larger.
3. The lower limit is their lower percentile, but where few voxels stand above the noise it moves
   towards the noise's end, since it is the darkest voxel among columns that is to become 0: from
   s = 0.045 on downwards, and all the way at 0.015, if the upper limit is four times as far beyond
   the noise's end as that is from the median, and less of the way if it is nearer.
4. Debris that is bright but not all at the top value (behind a registration, with a halo, beside
   one hot pixel) sets no limit where much stands above the noise: if the upper limit lies more than
   4.5 times as far above the median as percentile 95, it moves to 1.8 times, all the way from 6 on.

The rule ``percentiles`` takes both percentiles as they are. Both are order statistics (linear
between two neighbours), so that v -> a v + b moves the limits likewise. Voxels that are NaN or
infinite, outside of a registered field of view, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

RULES = ("robust", "percentiles")
TOP_SHARE = 1e-4  # share of all voxels that may count at the top value
SPREADS = 3.0
UPPER_SPREAD = 0.7
LEAST_BEYOND = 1e-3  # least share of voxels beyond the upper limit: hot pixels alone set no limit
MORE_BEYOND = 4.5
"""With the square of the share above the noise. On 64 default volumes that is 0.047 or more, and
the upper limit the percentile 99, from 0.045 on."""
SPARSE, SPARSEST = 0.045, 0.015
"""Shares above the noise where the lower limit begins to rise, and where it is at its end."""
CLEAR = 4.0
"""How far beyond the noise's end the upper limit lies, in that end's distances from the median, if
what stands there is signal for sure. In noise alone it lies near that end."""
MANY = 0.06  # share above the noise from which percentile 95 is one of what stands there
FAR, FARTHEST = 4.5, 6.0
"""Upper limit over percentile 95, both above the median, where debris begins to be left out. On 64
default volumes the ratio is at most 4.04."""
USUAL = 1.8  # the median of that ratio over the same volumes
SATURATED = 0.01  # share of voxels at the top value from which :meth:`Limits.warnings` tells of it
NEAR_NOISE = 1.15  # distances of the noise's end from the median: an upper limit so near is noise
PATTERNS = 1 << 16
PIECE = 1 << 17


@dataclass(frozen=True)
class Limits:
    """The grey values that become 0 and 1, and what is to be known of them."""

    low: float
    high: float
    median: float
    noise_end: float  # where what stands above the noise begins
    top: float  # the largest value
    share_at_top: float  # of all finite voxels
    missing: int  # voxels that are NaN or infinite
    far: bool  # voxels far brighter than the rest, as of debris, were left out of the upper limit

    def warnings(self) -> list[str]:
        """Return what a person should know of these grey values, in words; often nothing."""
        found = []
        if self.share_at_top >= SATURATED and self.top > self.low:
            found.append(
                f"{100 * self.share_at_top:.1f} % of the voxels stand at the top value "
                f"{self.top:g}: what is saturated shows no columns"
            )
        if self.far:
            found.append(
                "a few voxels are far brighter than the rest, as debris is, and set no limit: what "
                f"is above {self.high:.4g} counts as equally bright; --percentiles LOW,HIGH sets "
                "others"
            )
        if self.low < self.high <= self.median + NEAR_NOISE * (self.noise_end - self.median):
            found.append(
                f"nothing stands out: the grey value that becomes 1, {self.high:.4g}, lies near "
                f"the noise (median {self.median:.4g}); --crop to where the columns are, or "
                "--percentiles LOW,HIGH, sets others"
            )
        return found


def find_limits(counts: GreyCounts, low_percent: float, high_percent: float, rule: str) -> Limits:
    """Return the limits of counted voxels by one of :data:`RULES`; all NaN where none is finite.

    ``low_percent`` and ``high_percent`` lie in 0..100.
    """
    total = counts.total
    if not total:
        nan = float("nan")
        return Limits(nan, nan, nan, nan, nan, 0.0, counts.missing, False)
    top, at_top = counts.top()
    robust = rule == "robust"
    left_out = max(0, at_top - 1 - int(TOP_SHARE * total)) if robust else 0
    percents = np.array([low_percent, 16, 50, 75, 95, high_percent])
    far = False
    for last in (total - 1 - left_out, total - 1):
        low, lower, median, upper, bright, high = counts.values(percents / 100 * last)
        noise_end = median + SPREADS * max(median - lower, UPPER_SPREAD * (upper - median))
        if robust:
            standing = max(0, counts.above(noise_end) - (total - 1 - last))
            beyond = (LEAST_BEYOND + MORE_BEYOND * (standing / total) ** 2) * last
            if beyond < (1 - high_percent / 100) * last:
                # a whole number: a value that is there, also of two-valued stacks
                high = counts.values(np.array([last - np.floor(beyond)]))[0]
            sparse = (SPARSE - standing / total) / (SPARSE - SPARSEST)
            clear = (high - noise_end) / (CLEAR * (noise_end - median) or 1)
            usual = bright - median
            far = standing >= MANY * total and high - median > FAR * usual
            if far:
                share = min(1.0, ((high - median) / usual - FAR) / (FARTHEST - FAR))
                high = median + usual * (FAR + share * (USUAL - FAR))
            low += max(0.0, noise_end - low) * np.clip(sparse, 0, 1) * np.clip(clear, 0, 1)
        if high > low:
            break
    numbers = (float(x) for x in (low, high, median, noise_end, top))
    return Limits(*numbers, at_top / total, counts.missing, bool(far))


class GreyCounts:
    """Exact order statistics of voxels that need not fit into memory.

    Voxels are counted by keys, unsigned numbers in their order. Those of 8 or 16 bits take one
    reading. Others are taken as float32: the upper halves of their keys are counted first, the
    lower halves of those that matter in a second reading, and in a third and fourth where few
    voxels stand above the noise.

    Args:
        slabs: starts a reading of all voxels, as arrays of any shape.
        dtype: of the slabs: real numbers.
    """

    def __init__(self, slabs: Callable[[], Iterable[np.ndarray]], dtype: np.dtype) -> None:
        self._slabs = slabs
        short = {"f": np.float16, "i": np.int16}.get(dtype.kind, np.uint16)
        self._dtype = np.dtype(np.float32 if dtype.itemsize > 2 else short)
        self._shift = 8 * self._dtype.itemsize - 16
        self._lower: dict[int, np.ndarray] = {}
        counts = np.zeros(PATTERNS, np.int64)
        for keys in self._all_keys():
            counts += np.bincount(keys >> self._shift, minlength=PATTERNS)
        self.missing = 0
        if self._dtype.kind == "f":  # infinities and NaN have the outermost keys
            outermost = 128 if self._shift else 1024
            self.missing = int(counts[:outermost].sum() + counts[-outermost:].sum())
            counts[:outermost] = counts[-outermost:] = 0
        self._cumulative = np.cumsum(counts)
        self.total = int(self._cumulative[-1])

    def values(self, positions: np.ndarray) -> np.ndarray:
        """Return the values (float64) at places 0..total - 1 of the sorted voxels, interpolated."""
        ranks = np.unique(np.concatenate([np.floor(positions), np.ceil(positions)]).astype(int))
        keys = np.searchsorted(self._cumulative, ranks, side="right")
        if self._shift:
            self._refine(keys)
            within = ranks - np.where(keys > 0, self._cumulative[keys - 1], 0)
            lower = [
                np.searchsorted(np.cumsum(self._lower[key]), rank, side="right")
                for key, rank in zip(keys.tolist(), within, strict=True)
            ]
            keys = keys << self._shift | np.array(lower)
        numbers = self._numbers(keys).astype(np.float64) + 0.0  # no negative zeros
        return np.interp(positions, ranks, numbers)

    def top(self) -> tuple[float, int]:
        """Return the largest value and how many voxels have it."""
        value = float(self.values(np.array([self.total - 1]))[0])
        return value, self.above(float(np.nextafter(value, -np.inf)))

    def above(self, value: float) -> int:
        """Return how many voxels are larger than ``value``."""
        if self._dtype.kind == "f":
            with np.errstate(over="ignore"):
                number = np.array([value], self._dtype)
                if float(number[0]) > value:  # rounded up: the next smaller number is as good
                    number = np.nextafter(number, -np.inf)
        else:
            info = np.iinfo(self._dtype)
            if value < info.min:
                return self.total
            number = np.array([min(np.floor(value), info.max)], self._dtype)
        key = int(self._keys(number)[0])
        upper = key >> self._shift
        larger = self.total - int(self._cumulative[upper])
        if self._shift:
            self._refine(np.array([upper]))
            larger += int(self._lower[upper][key % PATTERNS + 1 :].sum())
        return larger

    def _refine(self, uppers: np.ndarray) -> None:
        """Count, in one reading, the lower halves of the keys that have these upper halves."""
        new = set(uppers.tolist()) - self._lower.keys()
        if new:
            self._lower |= {upper: np.zeros(PATTERNS, np.int64) for upper in new}
            for keys in self._all_keys():
                halves = keys >> self._shift
                for upper in new:
                    lower = keys[halves == upper] % PATTERNS
                    self._lower[upper] += np.bincount(lower, minlength=PATTERNS)

    def _all_keys(self) -> Iterator[np.ndarray]:
        """Yield the keys of all voxels, flat, in any order, a few at a time to save memory."""
        for slab in self._slabs():
            flat = slab.ravel(order="K")
            for start in range(0, flat.size, PIECE):
                yield self._keys(flat[start : start + PIECE].astype(self._dtype, copy=False))

    def _keys(self, numbers: np.ndarray) -> np.ndarray:
        """Return unsigned numbers in the order of ``numbers``."""
        bits = numbers.view(f"u{self._dtype.itemsize}")
        if self._dtype.kind == "u":
            return bits
        sign = bits.dtype.type(1 << self._shift + 15)
        if self._dtype.kind == "i":
            return bits ^ sign
        negative = numbers.view(f"i{self._dtype.itemsize}") >> (self._shift + 15)  # 0 or all ones
        return bits ^ (negative.view(bits.dtype) | sign)

    def _numbers(self, keys: np.ndarray) -> np.ndarray:
        """Return the numbers that have these keys."""
        sign = 1 << self._shift + 15
        if self._dtype.kind == "f":
            keys = np.where(keys < sign, ~keys, keys ^ sign)
        elif self._dtype.kind == "i":
            keys = keys ^ sign
        return keys.astype(f"u{self._dtype.itemsize}").view(self._dtype)
