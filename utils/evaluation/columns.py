"""How well columns were found: by type, one by one, and their places (p, q) in the lattice.

Recall by type says nothing of false voxels: a mask of the whole sheet has a recall of 1. Its
yardstick is ``sheet_false_positive_rate``, the share of the gaps between columns that was called
column as well: left-out columns that are found no more often than gaps are not found at all.

Instances are labels (X, Y, Z), 0 for background and k + 1 for row k. An instance answers to a
column if their intersection over union (IoU), or the distance of their centre lines, says so; one
to one, the best sum of all. Columns that a group leaves out are neither right nor wrong: neither
are the instances that answer to them, or that lie in them with at least half of their voxels.

Origin and orientation of a lattice are free, so the steps between neighbours are compared, under
one symmetry for each part of the lattice that one true chart and one found patch share.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from utils.columns.diagonal import HEXAGON
from utils.columns.finding import FoundColumns
from utils.columns.instances import on_faces
from utils.columns.table import measure_columns
from utils.evaluation.confusion import ratio
from utils.evaluation.stacks import LabelledVolume
from utils.simulation import SimulatedVolume, WideVolume
from utils.simulation.geometry import neighbours_among
from utils.simulation.labels import cone_volume

KINDS = {"left_out": (0,), "rendered": (1, 2, 3), "A": (1,), "B": (2,), "C": (3,)}
"""Groups of columns and the values of ``column_type`` in them; preset wide has no A, B, C."""
HALF = 0.5
"""Share of a column that must be covered for it to count as found, and of its cone that must lie
inside the volume for it to be asked for at all."""
IOUS = (0.3, 0.5)
NEAR = 0.35
"""Mean distance of centre lines up to which they are one, in spacings of the true column."""
SHARE = 0.25  # share of a column that an instance must hold to count in a false split or merge
FINE, NODES = 65, 9
"""Points of a bent path before the parts outside of the volume are cut off; of any one after."""
FEWEST_NEIGHBOURS = 5  # of a column inside the lattice: five at its defects, six elsewhere
_ENTRIES = np.indices((7,) * 4).reshape(2, 2, -1).transpose(2, 0, 1) - 3
_UNIMODULAR = _ENTRIES[np.abs(np.rint(np.linalg.det(_ENTRIES))) == 1]
ANY_BASIS = _UNIMODULAR[np.argsort(np.abs(_UNIMODULAR).sum(axis=(1, 2)), kind="stable")]
"""Changes of basis (C, 2, 2): of determinant +-1 with entries up to 3, small ones first. A lattice
that was found in one further away counts as wrong."""
TWELVE = ANY_BASIS[
    np.isin(HEXAGON @ ANY_BASIS.transpose(0, 2, 1) @ [10, 1], HEXAGON @ [10, 1]).all(axis=1)
]
"""The (12, 2, 2) symmetries that map the six neighbours onto themselves."""


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


@dataclass(frozen=True)
class Truth:
    """The N true columns of a volume as instances are compared with them.

    Lengths are voxels, of labelled stacks those of the finest axis.
    """

    labels: np.ndarray  # (X, Y, Z) integer, k + 1 inside column k
    paths: np.ndarray  # (N, NODES, 3) float64: points along the centre lines within the volume
    axes: np.ndarray  # (N, 3) float64, unit
    spacing: np.ndarray  # (N,) float64, way from mid-point to nearest mid-point
    # (N,) bool each: which columns are asked for, of those with at least half inside
    groups: dict[str, np.ndarray]

    @classmethod
    def of(cls, volume: SimulatedVolume | LabelledVolume) -> Self:
        """Return the truth of a simulated volume, whose voxels are cubes in its file, or of labels.

        Those are measured as found columns are, and all are asked for.
        """
        if isinstance(volume, LabelledVolume):
            found = measure_columns(volume.instances, volume.edges)
            asked = np.ones(len(found.axis), bool)
            return cls(volume.instances, found.paths, found.axis, _gaps(found.centre), {"": asked})
        shape, count = np.array(volume.instances.shape), len(volume.e_r)
        way = volume.e_r * shape * volume.parameters.cone_length
        start = volume.entry_points * shape - 0.5  # from the centre of voxel 0
        with np.errstate(divide="ignore", invalid="ignore"):
            walls = np.stack([-0.5 - start, shape - 0.5 - start]) / way
        first = np.clip(np.nanmax(walls.min(axis=0), axis=1), 0, 1)
        last = np.clip(np.nanmin(walls.max(axis=0), axis=1), first, 1)
        if isinstance(volume, WideVolume):
            paths = _within(volume.paths, shape)
        else:
            shares = np.linspace(first, last, NODES, axis=1)[..., None]
            paths = start[:, None] + shares * way[:, None]
        seen = np.bincount(volume.instances.ravel(), minlength=count + 1)[1:]
        asked = (seen > 0) & (seen >= HALF * cone_voxels(volume))
        degree = np.bincount(volume.lattice_neighbours.ravel(), minlength=count)
        cut = on_faces(volume.instances, count)
        inner = (degree >= FEWEST_NEIGHBOURS) & ~cut
        rendered = volume.column_type > 0
        groups = {"": asked, "_rendered": asked & rendered, "_left_out": asked & ~rendered}
        groups |= {"_interior": asked & inner, "_border": asked & ~inner}
        axes = way / np.linalg.norm(way, axis=1, keepdims=True)
        return cls(volume.instances, paths, axes, _gaps(start + way / 2), groups)


def _gaps(points: np.ndarray) -> np.ndarray:
    """Return the distances (N,) of points (N, 3) from their nearest neighbours."""
    return cKDTree(points).query(points, k=2)[0][:, 1]


def _within(paths: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return (N, NODES, 3) points, from the centre of voxel 0, along the parts of paths within."""
    points = _along(paths, FINE)
    inside = np.all((points >= 0) & (points < shape), axis=2)
    inside |= ~inside.any(axis=1, keepdims=True)
    first, last = inside.argmax(axis=1), FINE - 1 - inside[:, ::-1].argmax(axis=1)
    chosen = np.linspace(first, last, NODES, axis=1).round().astype(int)
    return np.take_along_axis(points, chosen[..., None], axis=1) - 0.5


def _along(paths: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` points (N, count, 3) along paths (N, steps, 3), evenly over their steps."""
    places = np.linspace(0, paths.shape[1] - 1, count)
    node = np.minimum(places.astype(int), paths.shape[1] - 2)
    share = (places - node)[:, None]
    return (1 - share) * paths[:, node] + share * paths[:, node + 1]


def score_found(
    found: FoundColumns, volume: SimulatedVolume | LabelledVolume, truth: Truth
) -> dict[str, float]:
    """Return the scores of the columns that were found in a volume, and of their lattice.

    Those of :func:`score_instances` and of :func:`score_lattice`, and ``inferred`` columns with the
    share that is ``inferred_right``: whose middle lies at a true column that nothing was found for.
    All names begin with ``instance_``.

    Of labels, which must tell columns apart, nobody knows the lattice; where parts are not
    annotated, columns are compared by the voxels in the others alone.
    """
    measured, lattice = found.measured, found.lattice
    labelled = isinstance(volume, LabelledVolume)
    labels = np.where(volume.known, found.labels, 0) if labelled else found.labels
    scores = score_instances(labels, measured.paths, measured.axis, truth)
    if labelled:
        whole = volume.known.all()
        return {n: v for n, v in scores.items() if whole or not ("_line" in n or "_axis" in n)}
    true, own = match_lines(truth, measured.paths)
    of_lattice = score_lattice(
        lattice.patch[own],
        lattice.pq[own],
        volume.lattice_coordinates[true],
        pairs=neighbours_among(true, volume.lattice_neighbours),
        cut=neighbours_among(own, lattice.pairs[lattice.cut > 0]),
    )
    free = np.setdiff1d(np.arange(len(truth.axes)), true)
    inferred = lattice.inferred.paths[:, 1:]
    close = _line_distances(truth, inferred)[free] < NEAR * truth.spacing[free, None]
    of_lattice["inferred"] = float(len(inferred))
    of_lattice["inferred_right"] = ratio(int(close.any(axis=0).sum()), len(inferred))
    return scores | {f"instance_{name}": value for name, value in of_lattice.items()}


def score_instances(
    labels: np.ndarray, paths: np.ndarray, axes: np.ndarray, truth: Truth
) -> dict[str, float]:
    """Return how well M found instances are the true columns; NaN for what has no meaning.

    Args:
        labels: (X, Y, Z) integer, k + 1 inside instance k.
        paths: (M, steps, 3) points along the instances' centre lines, in voxels.
        axes: (M, 3), unit, in voxels; their sign does not matter.
        truth: of the same volume.

    Returns:
        ``precision``, ``recall`` and ``f1``, with the measure (``iou30``, ``iou50``, ``line``) and
        the group of :class:`Truth` behind them: of left-out ones the recall alone, since no
        instance is meant for them; panoptic quality ``pq``; ``false_splits`` and ``false_merges``
        for each column asked for; ``axis_error``, mean degrees to the true axis in pairs of IoU
        0.3. All names begin with ``instance_``.
    """
    count, found_count = len(truth.axes), len(axes)
    both = truth.labels.astype(np.int64).ravel() * (found_count + 1) + labels.ravel()
    shared = np.bincount(both, minlength=(count + 1) * (found_count + 1))
    shared = shared.reshape(count + 1, found_count + 1)
    true_size, size = shared.sum(axis=1)[1:, None], shared.sum(axis=0)[1:]
    shared = shared[1:, 1:]
    iou = shared / np.maximum(true_size + size - shared, 1)
    pairs = {f"iou{100 * least:.0f}": _match(iou, least) for least in IOUS}
    pairs["line"] = match_lines(truth, paths)
    scores: dict[str, float] = {}
    for group, asked in truth.groups.items():
        outside = shared[~asked].sum(axis=0) >= HALF * size  # those without voxels too
        for measure, (true, found) in pairs.items():
            right, aside = int(asked[true].sum()), outside.copy()
            aside[found] = ~asked[true]
            meant, wanted = int(np.count_nonzero(~aside)), int(asked.sum())
            scores[f"recall_{measure}{group}"] = ratio(right, wanted)
            if group != "_left_out":
                scores[f"precision_{measure}{group}"] = ratio(right, meant)
                scores[f"f1_{measure}{group}"] = ratio(2 * right, meant + wanted)
            if group == "" and measure == "iou50":
                quality = float(iou[true, found][asked[true]].sum())
                scores["pq"] = ratio(2 * quality, meant + wanted)
    asked = truth.groups[""]
    held = shared[asked] >= SHARE * np.maximum(true_size[asked], 1)
    for name, axis in (("false_splits", 1), ("false_merges", 0)):
        more = np.maximum(held.sum(axis=axis) - 1, 0)
        scores[name] = ratio(int(more.sum()), len(held))
    true, found = (side[asked[pairs["iou30"][0]]] for side in pairs["iou30"])
    cosines = np.abs(np.sum(truth.axes[true] * axes[found], axis=1)).clip(0, 1)
    scores["axis_error"] = float(np.degrees(np.arccos(cosines)).mean()) if len(true) else math.nan
    return {f"instance_{name}": value for name, value in scores.items()}


def match_lines(truth: Truth, paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of columns and of paths (M, steps, 3) that are one by centre line."""
    return _match(1 - _line_distances(truth, paths) / (NEAR * truth.spacing[:, None]), 0.0)


def _line_distances(truth: Truth, paths: np.ndarray) -> np.ndarray:
    """Return the mean distance (N, M) of the centre lines, there and back, in voxels."""
    distances = np.full((len(truth.axes), len(paths)), np.inf)
    # with three points more between all neighbouring ones
    fine, fine_lines = (_along(some, 4 * some.shape[1] - 3) for some in (paths, truth.paths))
    for k, line in enumerate(truth.paths):
        away = np.linalg.norm(paths.mean(axis=1) - line.mean(axis=0), axis=1)
        close = np.flatnonzero(away <= 4 * truth.spacing[k])
        there = np.linalg.norm(line[:, None] - fine[close][:, None], axis=-1).min(axis=2)
        back = np.linalg.norm(paths[close][:, :, None] - fine_lines[k], axis=-1).min(axis=2)
        distances[k, close] = (there.mean(axis=1) + back.mean(axis=1)) / 2
    return distances


def _match(likeness: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (rows, columns), one to one, whose sum of likenesses is the greatest."""
    allowed = likeness >= least
    rows, columns = linear_sum_assignment(np.where(allowed, 1 + likeness, 0), maximize=True)
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def true_pairs(pq: np.ndarray) -> np.ndarray:
    """Return the pairs (E, 2) k < l of neighbours among (p, q) (N, 2) of one chart."""
    places = pq @ [[1, 0], [-0.5, np.sqrt(0.75)]]  # neighbours are 1 apart, all others more
    return cKDTree(places).query_pairs(1.1, output_type="ndarray")


def score_lattice(
    patch: np.ndarray,
    pq: np.ndarray,
    truth: np.ndarray,
    *,
    pairs: np.ndarray | None = None,
    cut: np.ndarray | None = None,
) -> dict[str, float]:
    """Return how many neighbour pairs among found columns have the right step.

    Args:
        patch: (N,) int, found patch of each column that was matched with a true one; 0: none.
        pq: (N, 2) int, found coordinates.
        truth: (N, 2) int true (p, q) of one chart, or (N, 3) int (face, i, j), many charts.
        pairs: (E, 2) true pairs of neighbours; None: those of the one chart.
        cut: (F, 2) pairs of neighbours that lie across a cut from a defect that was named.

    Returns:
        ``pairs``: true pairs of which both columns were found; ``pairs_placed``: share of them with
        both in one patch and not cut, which alone are judged; ``pairs_cut``: share of them that is
        cut; ``pairs_right`` and ``pairs_right_any_basis``: share of the judged ones with the right
        step, under the best of the twelve symmetries and of all bases. A pair of columns on two
        faces has no step in one chart: it is right if the found step leads to a neighbour under
        the symmetry of either face. NaN where there is nothing to judge.
    """
    chart = np.zeros(len(truth), np.int64) if truth.shape[1] == 2 else truth[:, 0].astype(np.int64)
    place, pq = truth[:, -2:].astype(np.int64), pq.astype(np.int64)
    pairs = true_pairs(place) if pairs is None else np.sort(np.asarray(pairs, np.int64), axis=1)
    n = len(truth)
    is_cut = np.zeros(len(pairs), bool)
    if cut is not None:
        is_cut = np.isin(pairs @ [n, 1], np.sort(cut, axis=1) @ [n, 1])
    joined = (patch[pairs] > 0).all(axis=1) & (patch[pairs[:, 0]] == patch[pairs[:, 1]]) & ~is_cut
    judged = pairs[joined]
    wanted, found = (x[judged[:, 1]] - x[judged[:, 0]] for x in (place, pq))
    joining = judged[chart[judged[:, 0]] == chart[judged[:, 1]]].T
    graph = coo_array((np.ones(joining.shape[1]), joining), shape=(n, n))
    part = connected_components(graph, directed=False)[1]  # of the lattice, for each column
    scores = {
        "pairs": float(len(pairs)),
        "pairs_placed": ratio(len(judged), len(pairs)),
        "pairs_cut": ratio(int(is_cut.sum()), len(pairs)),
    }
    for name, bases in (("pairs_right", TWELVE), ("pairs_right_any_basis", ANY_BASIS)):
        right = _right(part[judged], wanted, found, bases)
        scores[name] = ratio(int(right.sum()), len(judged))
    return scores


def _right(
    part: np.ndarray, wanted: np.ndarray, found: np.ndarray, bases: np.ndarray
) -> np.ndarray:
    """Return which ``found`` steps (E, 2) are the ``wanted`` ones (E, 2) in the best of ``bases``.

    ``part`` (E, 2) holds the part of both columns; each part has its own best basis.
    """
    within = part[:, 0] == part[:, 1]
    right = np.zeros(len(part), bool)
    for here in np.unique(part):
        inside = within & (part[:, 0] == here)
        agrees = (wanted[inside] @ bases.transpose(0, 2, 1) == found[inside]).all(axis=2)
        best = bases[agrees.sum(axis=1).argmax()]
        right[inside] = agrees[agrees.sum(axis=1).argmax()]
        over = ~within & (part == here).any(axis=1)
        right[over] |= (found[over][:, None] == HEXAGON @ best.T).all(axis=2).any(axis=1)
    return right
