from dataclasses import replace

import numpy as np
import pytest

from tests.columns.test_lattice import UP, disk, plane
from utils.columns.landmarks import orient
from utils.columns.lattice import fit_lattice
from utils.errors import UserError


def test_landmarks_settle_all_but_nothing_else() -> None:
    pq = disk(5)
    points, axes = plane(pq)
    lattice = fit_lattice(points, axes)
    start = int(np.flatnonzero((pq == [2, 1]).all(axis=1))[0])
    dorsal = plane(np.array([[1, 1]]))[0][0] + [0.3, -0.2, 4.0]
    oriented = orient(lattice, axes, origin=start, dorsal=dorsal, hemisphere="R")
    assert (oriented.pq == pq - pq[start]).all()
    left = orient(oriented, axes, hemisphere="L")
    assert (left.pq == oriented.pq[:, ::-1]).all()
    flipped = orient(lattice, axes, origin=start, dorsal=-dorsal, hemisphere="R")
    assert (flipped.pq == pq[start] - pq).all()
    np.testing.assert_allclose(flipped.steps, -oriented.steps, atol=1e-9)
    assert (orient(lattice, axes).pq == lattice.pq).all()


def test_landmarks_that_say_nothing_are_named() -> None:
    points, axes = plane(disk(3))
    lattice = fit_lattice(points, axes)
    with pytest.raises(UserError, match="--dorsal"):
        orient(lattice, axes, dorsal=UP)
    with pytest.raises(UserError, match="--dorsal"):
        orient(lattice, axes, dorsal=np.full(3, np.nan))
    for origin in (-1, len(points), 0):
        flagged = replace(lattice, patch=np.where(np.arange(len(points)) == 0, 0, lattice.patch))
        with pytest.raises(UserError, match="--origin"):
            orient(flagged, axes, origin=origin)


def test_a_streak_along_the_dorsal_direction_keeps_its_orientation() -> None:
    points, axes = plane(disk(4))
    streak, _ = plane(disk(2))
    both = np.concatenate([points, streak[:, [2, 0, 1]] + [150.0, 0.0, 0.0]])
    ways = np.concatenate([axes, np.tile([1.0, 0.0, 0.0], (len(streak), 1))])
    lattice = fit_lattice(both, ways)
    assert lattice.patch.max() == 2
    oriented = orient(lattice, ways, dorsal=np.array([1.0, 0.0, 0.0]))
    own = lattice.patch == 1
    assert (oriented.steps[own].mean(axis=0) @ [1, 1] / 7.0)[0] > 0.8
    np.testing.assert_array_equal(oriented.pq[~own], lattice.pq[~own])


def test_proposed_columns_and_defects_turn_with_the_lattice() -> None:
    pq = disk(4)
    kept = ~(pq == [1, 0]).all(axis=1)
    points, axes = plane(pq[kept])
    lattice = fit_lattice(points, axes)
    start = int((pq[kept] == 0).all(axis=1).argmax())
    v_step = plane(np.array([[1, 1]]))[0][0]
    oriented = orient(lattice, axes, origin=start, dorsal=v_step, hemisphere="R")
    assert oriented.inferred.pq.tolist() == [[1, 0]]
    assert orient(oriented, axes, dorsal=-v_step).inferred.pq.tolist() == [[-1, 0]]
