"""Where each voxel stands among the columns: the fields that labels and stains are painted from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ColumnFields:
    """For each voxel the nearest column's axis and the place beside it; all (X, Y, Z)."""

    owner: np.ndarray
    """uint16: 0 outside of the sheets, else k + 1 for the nearest path k, in gaps too."""
    distance: np.ndarray
    """float32: distance to the owner's path, in the owner's nearest-neighbour distances there."""
    depth: np.ndarray
    """float32: place along the owner's path, 0 at its proximal and 1 at its distal end."""
    neighbour: np.ndarray | None = None
    """uint8: 1 in a neighbouring neuropil without columns; None where there is none."""

    def instances(self, radius: float) -> np.ndarray:
        """Return uint16 (X, Y, Z): the owner up to ``radius`` spacings of its path, 0 elsewhere."""
        return np.where(self.distance <= np.float32(radius), self.owner, np.uint16(0))
