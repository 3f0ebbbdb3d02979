import itertools

import numpy as np
import pytest

from utils.columns.diagonal import SUPERBASES, obtuse, vote


def metrics(count: int) -> np.ndarray:
    bases = np.random.default_rng(6).normal(size=(count, 3, 2))
    return np.einsum("nca,ncb->nab", bases, bases)


def test_selling_finds_the_shortest_steps_as_trying_all_does() -> None:
    every = np.array([v for v in itertools.product(range(-9, 10), repeat=2) if v != (0, 0)])
    for metric in metrics(40):
        base = obtuse(metric)
        assert abs(round(np.linalg.det(base))) == 1
        axes = np.column_stack([base, -base.sum(axis=1)])
        products = axes.T @ metric @ axes
        assert (products[np.triu_indices(3, 1)] <= 1e-9 * np.trace(products)).all()
        lengths = np.einsum("na,ab,nb->n", every, metric, every)
        assert np.diag(products).min() == pytest.approx(lengths.min())


def test_each_metric_near_the_regular_one_has_one_of_the_superbases() -> None:
    keys = {
        frozenset(map(tuple, np.column_stack([b, -b, b.sum(1), -b.sum(1)]).T)) for b in SUPERBASES
    }
    assert len(keys) == len(SUPERBASES)
    assert (np.rint(np.linalg.det(SUPERBASES)) == 1).all()


def steps(angle: float, count: int) -> np.ndarray:
    turn = np.radians(angle)
    cell = np.array([[1.0, np.cos(turn)], [0.0, np.sin(turn)], [0.0, 0.0]])
    return np.tile(cell, (count, 1, 1))


@pytest.mark.parametrize(
    "skew", [[[1, 0], [0, 1]], [[1, 1], [0, 1]], [[2, 1], [1, 1]], [[0, 1], [1, 3]]]
)
def test_the_vote_is_counted_whatever_the_basis(skew: list[list[int]]) -> None:
    bases = np.concatenate([steps(100.0, 58), steps(80.0, 42)])[None]
    base, result = vote(bases @ np.array(skew))
    assert (result.share, result.votes, result.depth) == (0.58, 100, 0)
    hexagon = np.array(skew) @ np.column_stack([base, base.sum(axis=1)])
    found = {tuple(np.sign(v[np.flatnonzero(v)[0]]) * v) for v in np.rint(hexagon).astype(int).T}
    assert found == {(1, 0), (0, 1), (1, 1)}


def test_the_clearest_depth_decides() -> None:
    unsure = np.concatenate([steps(100.0, 45), steps(80.0, 55)])
    clear = np.concatenate([steps(115.0, 70), steps(80.0, 30)])
    base, result = vote(np.stack([unsure, clear]))
    assert (result.share, result.depth) == (0.7, 1)
    assert abs(base.sum(axis=1)).tolist() in ([1, 1], [1, 0], [0, 1])
    assert vote(unsure[None])[1].share == 0.55
