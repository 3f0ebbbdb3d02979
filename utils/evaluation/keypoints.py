"""Column centres from a heat map, and how well they match the true ones.

Points are (n, 2) or (n, 3) in pixels: the first pixel reaches from 0 to 1, its centre is at 0.5.
"""

import operator
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from skimage.feature import peak_local_max

TOLERANCE = 4.0
"""A peak this near to a centre, in pixels, finds it: the radius of the smallest columns."""


@dataclass(frozen=True)
class KeypointScores:
    """Matches over any number of images; ``+`` pools two of them."""

    matched: int = 0  # pairs of a peak and a centre; each is in one pair at the most
    peaks: int = 0
    centres: int = 0
    distance_sum: float = 0.0  # over the pairs, in pixels

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, astuple(self), astuple(other)))

    def metrics(self) -> dict[str, float | None]:
        """Return precision, recall (0..1) and mean distance (pixels); None where there is none."""
        return {
            "precision": self.matched / self.peaks if self.peaks else None,
            "recall": self.matched / self.centres if self.centres else None,
            "mean_distance": self.distance_sum / self.matched if self.matched else None,
        }


def find_peaks(heat_map: np.ndarray) -> np.ndarray:
    """Return the peaks (n, ndim) float64, in pixels, of a heat map of two or three axes.

    They are at least 0.3 high in a map of probabilities, and 4 pixels apart. A Gaussian blur of one
    pixel turns the plateaus of a confident network into single peaks first.
    """
    smooth = gaussian_filter(heat_map.astype(np.float64), sigma=1.0)
    return 0.5 + peak_local_max(smooth, min_distance=4, threshold_abs=0.3, exclude_border=False)


def match_points(
    peaks: np.ndarray, centres: np.ndarray, tolerance: float = TOLERANCE
) -> KeypointScores:
    """Pair peaks (n, d) and centres (m, d) that are at most ``tolerance`` pixels apart.

    As many pairs as possible, and of all such choices the one with the smallest sum of distances.
    """
    distance = np.linalg.norm(peaks[:, None] - centres[None], axis=2)
    # One pair too far apart costs more than all the others together can save.
    too_far = tolerance * (min(distance.shape, default=0) + 1)
    rows, columns = linear_sum_assignment(np.where(distance <= tolerance, distance, too_far))
    found = distance[rows, columns]
    found = found[found <= tolerance]
    return KeypointScores(len(found), len(peaks), len(centres), float(found.sum()))
