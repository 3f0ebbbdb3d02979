"""Origin and orientation of a lattice from landmarks; without them both are free.

The lattice has twelve symmetries, six where hemisphere and depth are known. In fly connectomics
v = p + q runs dorsal, and (p x q) . distal is +1 in the right medulla, -1 in the left (Zhao et al.,
Nature 2025).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from utils.columns.defects import TURN
from utils.columns.lattice import Lattice
from utils.errors import UserError

SWAP = np.array([[0, 1], [1, 0]])
"""p for q: the other hand."""
LEAST_ACROSS = 0.2
"""Sine of the angle between the dorsal direction and the columns, below which it says nothing."""


def orient(
    lattice: Lattice,
    axes: np.ndarray,
    *,
    origin: int | None = None,
    dorsal: np.ndarray | None = None,
    hemisphere: str | None = None,
) -> Lattice:
    """Return the lattice with landmarks as its origin and orientation, each patch by itself.

    Args:
        lattice: as it was found.
        axes: (N, 3) unit, towards distal, which ``hemisphere`` relies on.
        origin: row of the column that becomes (0, 0); in the other patches nothing moves.
        dorsal: (3,) direction in micrometre space along which p + q shall run.
        hemisphere: "L" or "R"; None: the hand stays as it was found.

    Raises:
        UserError: an origin without a place, or a direction that says nothing in the largest patch;
            in others, as on a streak along it, the orientation stays as it was found.
    """
    if origin is not None and not (0 <= origin < len(lattice.patch) and lattice.patch[origin]):
        raise UserError("--origin: this column has no place in the lattice; name another one")
    pq, steps, inferred = lattice.pq.copy(), lattice.steps.copy(), lattice.inferred.pq.copy()
    defects = list(lattice.defects)
    for number in range(1, len(lattice.votes) + 1):
        own, theirs = lattice.patch == number, lattice.inferred.patch == number
        symmetry = _symmetry(steps[own], axes[own], dorsal, hemisphere, must=number == 1)
        shift = np.zeros(2, np.int32)
        if origin is not None and own[origin]:
            shift = pq[origin]
        pq[own] = (pq[own] - shift) @ symmetry.T
        inferred[theirs] = (inferred[theirs] - shift) @ symmetry.T
        steps[own] = steps[own] @ np.linalg.inv(symmetry)
        for k, defect in enumerate(defects):
            if defect.patch == number:
                p, q = (int(v) for v in symmetry @ defect.step)
                defects[k] = replace(defect, step=(p, q))
    return replace(
        lattice,
        pq=pq,
        steps=steps,
        defects=tuple(defects),
        inferred=replace(lattice.inferred, pq=inferred),
    )


def _symmetry(
    steps: np.ndarray,
    axes: np.ndarray,
    dorsal: np.ndarray | None,
    hemisphere: str | None,
    *,
    must: bool,
) -> np.ndarray:
    """Return the (2, 2) matrix, one of twelve, that brings a patch's labels to the landmarks.

    Where ``dorsal`` says nothing, and it ``must``, UserError.
    """
    hand = np.sign(np.einsum("nc,nc->n", np.cross(steps[:, :, 0], steps[:, :, 1]), axes)).sum()
    wanted = {"R": hand < 0, "L": hand > 0, None: False}[hemisphere]
    first = SWAP if wanted else np.eye(2, dtype=int)
    if dorsal is None:
        return first
    up = np.asarray(dorsal, float)
    axis = axes.mean(axis=0)
    across = np.linalg.norm(np.cross(up, axis))
    if not across > LEAST_ACROSS * np.linalg.norm(up) * np.linalg.norm(axis):
        if not must:
            return first
        raise UserError(
            f"--dorsal {','.join(f'{v:g}' for v in up)}: must be a direction across the columns, "
            "which run along " + ",".join(f"{v:.2f}" for v in axis)
        )
    turned = [np.linalg.matrix_power(TURN, k) @ first for k in range(6)]
    mean = steps.mean(axis=0)
    return max(turned, key=lambda matrix: up @ mean @ np.linalg.inv(matrix) @ [1, 1])
