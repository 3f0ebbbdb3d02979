"""How much of the columns was found, type by type: left-out ones apart from rendered ones.

Recall says nothing of false voxels: a mask of the whole sheet has a recall of 1. Its yardstick is
``VolumeScores.sheet_false_positive_rate``, the share of the gaps between columns that was called
column as well: left-out columns that are found no more often than gaps are not found at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.simulation import SimulatedVolume
from utils.simulation.labels import cone_volume

KINDS = {"left_out": (0,), "rendered": (1, 2, 3), "A": (1,), "B": (2,), "C": (3,)}
"""Groups of columns and the values of ``column_type`` in them."""
HALF = 0.5
"""Share of a column that must be covered for it to count as found, and of its cone that must lie
inside the volume for it to be asked for at all."""


@dataclass(frozen=True)
class ColumnRecall:
    """How much of a group of columns was found."""

    recall: float
    """Share of the group's voxels that was found; NaN if the volume shows none."""
    columns: int
    """Columns with at least half of their cone inside the volume."""
    covered: float
    """Share of these of which at least half the voxels were found; NaN if there are none."""


def recall_by_kind(found: np.ndarray, volume: SimulatedVolume) -> dict[str, ColumnRecall]:
    """Return the recall of each group of :data:`KINDS`.

    Args:
        found: (X, Y, Z) bool, the prediction.
        volume: the truth.
    """
    count = len(volume.column_type)
    seen = np.bincount(volume.instances.ravel(), minlength=count + 1)[1:]
    hit = np.bincount(volume.instances[found], minlength=count + 1)[1:]
    asked = (seen > 0) & (seen >= HALF * cone_voxels(volume))
    return {
        name: _pool(seen, hit, asked, np.isin(volume.column_type, types))
        for name, types in KINDS.items()
    }


def flatten(recalls: dict[str, ColumnRecall]) -> dict[str, float]:
    """Return ``recall_left_out``, ``columns_left_out``, ``covered_left_out``, ... as one row."""
    return {
        f"{field}_{kind}": getattr(recall, field)
        for kind, recall in recalls.items()
        for field in ("recall", "columns", "covered")
    }


def cone_voxels(volume: SimulatedVolume) -> np.ndarray:
    """Return the voxels (N,) float that each whole cone would fill, outside the volume too."""
    parameters = volume.parameters
    size = (parameters.cone_radius, parameters.cone_length, parameters.cone_taper)
    frames = np.stack([volume.e_theta, volume.e_phi, volume.e_r], axis=2).astype(np.float64)
    cubes = np.array([cone_volume(*size, frame) for frame in frames])
    return cubes * volume.instances.size


def _pool(seen: np.ndarray, hit: np.ndarray, asked: np.ndarray, group: np.ndarray) -> ColumnRecall:
    voxels, counted = int(seen[group].sum()), group & asked
    columns = int(counted.sum())
    covered = hit[counted] >= HALF * seen[counted]
    return ColumnRecall(
        recall=float(hit[group].sum() / voxels) if voxels else float("nan"),
        columns=columns,
        covered=float(covered.mean()) if columns else float("nan"),
    )
