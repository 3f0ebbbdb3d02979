"""The one normaliser, shared by training, validation and prediction.

Its two numbers are fitted on a whole volume and applied to that volume's patches, never to a patch
by its own percentiles: else a patch without columns would be stretched until its noise looked like
one. Works for arrays of any dimension.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from utils.errors import UserError


@dataclass(frozen=True)
class PercentileNormalizer:
    """Maps the percentiles ``low_percent`` and ``high_percent`` of a volume to 0 and 1.

    Raises UserError unless 0 <= low_percent < high_percent <= 100.
    """

    low_percent: float = 1.0
    high_percent: float = 99.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.low_percent < self.high_percent <= 100:
            raise UserError(
                "percentiles must be 0 <= low_percent < high_percent <= 100, got "
                f"{self.low_percent} and {self.high_percent}"
            )

    def fit(self, volume: np.ndarray) -> tuple[float, float]:
        """Return the two percentiles of all voxels of ``volume``, linear between neighbours."""
        low, high = np.percentile(volume, (self.low_percent, self.high_percent))
        return float(low), float(high)

    def apply(self, array: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return ``array`` as float32 with ``low`` at 0 and ``high`` at 1, clipped to 0..1.

        A constant volume (``high`` not above ``low``) becomes zeros.
        """
        if not high > low:
            return np.zeros(array.shape, np.float32)
        scaled = np.subtract(array, np.float32(low), dtype=np.float32)
        scaled /= np.float32(high - low)
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON types; ``from_dict`` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> PercentileNormalizer:
        """Build a normaliser from :meth:`to_dict`'s result."""
        return cls(**values)
