"""The one normaliser, shared by training, validation and prediction.

Its two numbers are fitted on a whole volume and applied to that volume's patches, never to a patch
by its own percentiles: else a patch without columns would be stretched until its noise looked like
one. Works for arrays of any dimension.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.grey_values import RULES, GreyCounts, Limits, find_limits
from utils.resampling import planes_at_once
from utils.stacks import Stack


@dataclass(frozen=True)
class PercentileNormalizer:
    """Maps two grey values of a volume, found by a rule of ``utils.grey_values``, to 0 and 1.

    Raises UserError unless 0 <= low_percent < high_percent <= 100, and for an unknown rule.
    """

    low_percent: float = 1.0
    high_percent: float = 99.0
    rule: str = "robust"
    """``percentiles`` takes both percentiles as they are. Checkpoints that name no rule are of the
    days of that one; on volumes as they were trained on both give the same limits."""

    def __post_init__(self) -> None:
        if not 0 <= self.low_percent < self.high_percent <= 100:
            given = f"got {self.low_percent} and {self.high_percent}"
            raise UserError(f"percentiles must be 0 <= low_percent < high_percent <= 100, {given}")
        if self.rule not in RULES:
            raise UserError(f"the rule of grey values {self.rule!r}: must be of {', '.join(RULES)}")

    def fit(self, volume: np.ndarray) -> tuple[float, float]:
        """Return the two limits of all finite voxels of ``volume``, of any real dtype."""
        limits = self.limits(lambda: [volume], volume.dtype)
        return limits.low, limits.high

    def limits(self, slabs: Callable[[], Iterable[np.ndarray]], dtype: np.dtype) -> Limits:
        """Return the limits of a stack; ``slabs`` starts a reading of it, several times."""
        counts = GreyCounts(slabs, dtype)
        return find_limits(counts, self.low_percent, self.high_percent, self.rule)

    def apply(self, array: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return ``array`` as float32 in 0..1 from ``low`` to ``high``; zeros unless low < high."""
        if not high > low:
            return np.zeros(array.shape, np.float32)
        scaled = np.subtract(array, np.float32(low), dtype=np.float32)
        scaled /= np.float32(high - low)
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        return asdict(self)


def measure_limits(stack: Stack, normalizer: PercentileNormalizer) -> Limits:
    """Return the normaliser's limits of the whole stack, read by slabs; UserError if it fails."""
    planes = planes_at_once(4 * math.prod(stack.shape[:-1]))

    def slabs() -> Iterator[np.ndarray]:
        for start in range(0, stack.shape[-1], planes):
            yield stack.read(start, min(start + planes, stack.shape[-1]))

    return normalizer.limits(slabs, stack.dtype)
