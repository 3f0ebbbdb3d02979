import itertools

import numpy as np
import pytest

from tests.columns.test_lattice import disk
from utils.evaluation.lattice import ANY_BASIS, TWELVE, score_lattice, true_pairs
from utils.simulation.geometry import spherical_lattice

SIX = {(1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)}


def test_the_twelve_symmetries_keep_the_six_neighbours() -> None:
    assert len(TWELVE) == 12
    for matrix in TWELVE:
        assert {tuple(matrix @ step) for step in SIX} == SIX
    assert sum({tuple(m @ step) for step in SIX} == SIX for m in ANY_BASIS) == 12
    assert (np.abs(np.rint(np.linalg.det(ANY_BASIS))) == 1).all()


def test_true_pairs_are_those_of_comparing_all() -> None:
    rng = np.random.default_rng(3)
    pq = rng.permutation(disk(4))[:40]
    slow = {
        (k, m) for k, m in itertools.combinations(range(len(pq)), 2) if tuple(pq[m] - pq[k]) in SIX
    }
    assert {tuple(pair) for pair in true_pairs(pq).tolist()} == slow
    assert true_pairs(pq[:0]).shape == (0, 2)


@pytest.mark.parametrize("matrix", TWELVE[::3])
def test_origin_and_orientation_are_free(matrix: np.ndarray) -> None:
    pq = disk(4)
    scores = score_lattice(np.ones(len(pq), int), pq @ matrix.T + [5, -3], pq)
    assert scores["pairs_right"] == scores["pairs_right_any_basis"] == 1.0
    assert (scores["pairs_placed"], scores["pairs_cut"]) == (1.0, 0.0)
    assert scores["pairs"] == len(true_pairs(pq))


def test_the_wrong_diagonal_is_wrong_modulo_the_twelve_alone() -> None:
    pq = disk(5)
    scores = score_lattice(np.ones(len(pq), int), pq @ np.array([[1, 0], [0, -1]]), pq)
    assert scores["pairs_right_any_basis"] == 1.0
    assert scores["pairs_right"] == pytest.approx(1 / 3, abs=0.02), "one axis of three"
    finer = score_lattice(np.ones(len(pq), int), 2 * pq, pq)
    assert finer["pairs_right_any_basis"] == 0.0


def test_one_wrong_column_costs_its_pairs() -> None:
    pq = disk(4)
    found, patch = pq.copy(), np.ones(len(pq), int)
    centre = int((pq == 0).all(axis=1).argmax())
    found[centre] = [40, 40]
    count = len(true_pairs(pq))
    assert score_lattice(patch, found, pq)["pairs_right"] == pytest.approx(1 - 6 / count)
    patch[centre] = 0
    scores = score_lattice(patch, found, pq)
    assert scores["pairs_right"] == 1.0
    assert scores["pairs_placed"] == pytest.approx(1 - 6 / count)


def test_each_patch_has_its_own_symmetry_and_pairs_between_are_not_joined() -> None:
    pq = disk(4)
    patch = np.where(pq[:, 0] < 0, 1, 2)
    found = np.where(patch[:, None] == 1, pq @ TWELVE[5].T, pq @ TWELVE[9].T + 7)
    scores = score_lattice(patch, found, pq)
    assert scores["pairs_right"] == 1.0
    pairs = true_pairs(pq)
    between = (patch[pairs[:, 0]] != patch[pairs[:, 1]]).mean()
    assert scores["pairs_placed"] == pytest.approx(1 - between)


def test_faces_of_the_sphere_have_charts_of_their_own() -> None:
    lattice = spherical_lattice(5)
    truth, pairs = lattice.coordinates, lattice.neighbours
    patch = np.ones(len(truth), int)
    crossing = truth[pairs[:, 0], 0] != truth[pairs[:, 1], 0]
    within = score_lattice(patch, truth[:, 1:], truth, pairs=pairs[~crossing])
    assert within["pairs_right"] == 1.0
    turned = np.stack([TWELVE[f % 12] @ ij for f, *ij in truth])
    assert score_lattice(patch, turned, truth, pairs=pairs[~crossing])["pairs_right"] == 1.0
    every = score_lattice(patch, truth[:, 1:], truth, pairs=pairs)
    assert every["pairs_right"] < 1.0, "steps from face to face mean nothing here"
    cut = score_lattice(patch, truth[:, 1:], truth, pairs=pairs, cut=pairs[crossing][:, ::-1])
    assert cut["pairs_right"] == 1.0
    assert cut["pairs_cut"] == pytest.approx(crossing.mean())


def test_a_cut_parts_a_chart() -> None:
    pq = disk(4)
    pairs = true_pairs(pq)
    side = pq[:, 0] < 0
    found = np.where(side[:, None], pq @ TWELVE[4].T, pq)
    crossing = side[pairs[:, 0]] != side[pairs[:, 1]]
    patch = np.ones(len(pq), int)
    assert score_lattice(patch, found, pq)["pairs_right"] < 0.8
    scores = score_lattice(patch, found, pq, cut=pairs[crossing])
    assert scores["pairs_right"] == 1.0


def test_nothing_to_judge_is_nan() -> None:
    pq = disk(2)
    scores = score_lattice(np.zeros(len(pq), int), pq, pq)
    assert np.isnan(scores["pairs_right"]) and scores["pairs_placed"] == 0.0
    empty = score_lattice(np.zeros(0, int), pq[:0], pq[:0])
    assert empty["pairs"] == 0 and np.isnan(empty["pairs_placed"])
