import numpy as np

from tests.columns.test_lattice import disk, dome, plane
from utils.columns.lattice import fit_lattice
from utils.columns.missing import infer_columns


def test_missing_columns_are_where_they_were() -> None:
    pq = disk(6)
    points, axes = dome(pq, (60.0, 60.0, 60.0))
    interior = np.flatnonzero(np.abs(pq).max(axis=1) < 5)
    gone = np.random.default_rng(1).permutation(interior)[:12]
    kept = np.setdiff1d(np.arange(len(pq)), gone)
    paths = np.stack([points - 4 * axes, points + 4 * axes], axis=1)
    inferred = fit_lattice(points[kept], axes[kept], paths=paths[kept]).inferred
    distance = np.linalg.norm(inferred.paths[:, :1] - points[gone][None], axis=2)
    assert len(inferred.pq) == len(gone) and distance.min(axis=0).max() < 0.2 * 7.0
    nearest = gone[distance.argmin(axis=1)]
    assert len(set(nearest)) == len(gone)
    np.testing.assert_allclose(inferred.axes, axes[nearest], atol=0.1)
    ends = inferred.paths[:, 2] - inferred.paths[:, 1]
    np.testing.assert_allclose(ends, 8 * axes[nearest], atol=1.0)


def proposed(pq: np.ndarray, patch: np.ndarray | None = None) -> list[tuple[int, ...]]:
    points, axes = plane(pq)
    patch = np.ones(len(pq), np.int32) if patch is None else patch
    inferred = infer_columns(patch, pq, points[:, None], axes)
    return [tuple(int(v) for v in site) for site in inferred.pq]


def test_which_free_sites_are_proposed() -> None:
    ring = np.array([[1, 0], [1, 1], [0, 1], [-1, 0], [-1, -1], [0, -1]])
    assert proposed(ring) == [(0, 0)]
    assert proposed(ring[:4]) == [(0, 0)], "four of six"
    assert proposed(ring[[0, 1, 3]]) == [(0, 0)], "two opposite ones, and one for the plane"
    assert proposed(ring[:3]) == [], "a border"
    assert proposed(ring[[0, 3]]) == [], "no plane can be laid through two"
    assert proposed(disk(3)) == []


def test_no_column_is_proposed_where_one_stands() -> None:
    pq = disk(2)
    middle = (pq == 0).all(axis=1)
    assert proposed(pq, np.where(middle, 0, 1)) == [], "a column that fits nowhere stands there"
    assert proposed(pq[~middle]) == [(0, 0)]


def test_patches_are_asked_apart() -> None:
    pq = disk(2)
    two = np.concatenate([pq, pq])
    points, axes = plane(two)
    points[len(pq) :] += [200.0, 0.0, 0.0]
    kept = np.setdiff1d(np.arange(len(two)), [len(pq) + int((pq == 0).all(axis=1).argmax())])
    patch = np.repeat([1, 2], len(pq))[kept]
    inferred = infer_columns(patch, two[kept], points[kept][:, None], axes[kept])
    assert inferred.patch.tolist() == [2] and inferred.n_neighbors.tolist() == [6]
    np.testing.assert_allclose(inferred.paths[0, 0], [200.0, 0.0, 0.0], atol=1e-9)
