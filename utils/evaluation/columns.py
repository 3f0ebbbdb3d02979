"""How much of the columns was found, type by type: left-out ones apart from rendered ones.

Recall says nothing of false voxels: a mask of the whole sheet has a recall of 1. Its yardstick is
``sheet_false_positive_rate``, the share of the gaps between columns that was called
column as well: left-out columns that are found no more often than gaps are not found at all.
"""

import numpy as np

from utils.evaluation.confusion import ratio
from utils.evaluation.labelled import LabelledVolume
from utils.simulation import SimulatedVolume, WideVolume
from utils.simulation.labels import cone_volume

KINDS = {"left_out": (0,), "rendered": (1, 2, 3), "A": (1,), "B": (2,), "C": (3,)}
"""Groups of columns and the values of ``column_type`` in them; preset wide has no A, B, C."""
HALF = 0.5
"""Share of a column that must be covered for it to count as found, and of its cone that must lie
inside the volume for it to be asked for at all."""


def score_columns(found: np.ndarray, volume: SimulatedVolume | LabelledVolume) -> dict[str, float]:
    """Return how much of each group of :data:`KINDS` was ``found``, (X, Y, Z) bool.

    For each kind ``recall_KIND``, the share of the group's voxels that was found (NaN if the volume
    shows none); ``columns_KIND``, the number of columns with at least half of their cone inside the
    volume, however little of a labelled one there may be; and ``covered_KIND``, the share of these
    of which at least half the voxels were found (NaN if there are none). Columns of labels are all
    of the group ``labelled``, or of none if they are not told apart.
    """
    labelled = isinstance(volume, LabelledVolume)
    count = int(volume.instances.max()) if labelled else len(volume.column_type)
    seen = np.bincount(volume.instances.ravel(), minlength=count + 1)[1:]
    hit = np.bincount(volume.instances[found], minlength=count + 1)[1:]
    asked = seen > 0
    if labelled:
        groups = {"labelled": asked} if volume.told_apart else {}
    else:
        asked &= seen >= HALF * cone_voxels(volume)
        unnamed = "ABC" if isinstance(volume, WideVolume) else ""
        types = volume.column_type
        groups = {k: np.isin(types, own) & (k not in unnamed) for k, own in KINDS.items()}
    covered = hit >= HALF * seen
    scores: dict[str, float] = {}
    for kind, group in groups.items():
        counted = group & asked
        scores[f"recall_{kind}"] = ratio(int(hit[group].sum()), int(seen[group].sum()))
        scores[f"columns_{kind}"] = int(counted.sum())
        scores[f"covered_{kind}"] = ratio(int(covered[counted].sum()), int(counted.sum()))
    return scores


def cone_voxels(volume: SimulatedVolume) -> np.ndarray:
    """Return the voxels (N,) float that each whole cone would fill, outside the volume too."""
    parameters = volume.parameters
    size = (parameters.cone_radius, parameters.cone_length, parameters.cone_taper)
    frames = np.stack([volume.e_theta, volume.e_phi, volume.e_r], axis=2).astype(np.float64)
    return cone_volume(*size, frames) * volume.instances.size
