import numpy as np
import pytest

from tests.columns.test_lattice import UP, disk, plane
from utils.columns.lattice import fit_lattice


def cone(fold: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points and axes of ``fold`` wedges of 60 degrees about a defect."""
    i, j = np.tril_indices(radius + 1)
    flat = i - j + j * np.exp(1j * np.pi / 3)  # the wedge from the real axis to 60 degrees
    flat = flat[(i > 0) & (j < i)]
    wedges = [
        np.abs(flat) * np.exp(1j * (np.angle(flat) * 6 / fold + 2 * np.pi * k / fold))
        for k in range(fold)
    ]
    z = 7.0 * np.concatenate([[0], *wedges])
    points = np.stack([z.real, z.imag, np.zeros(len(z))], axis=1)
    return points, np.tile(UP, (len(z), 1))


@pytest.mark.parametrize("fold", [5, 7])
def test_most_defects_are_named_and_placed(fold: int) -> None:
    flat, axes = cone(fold, 7)
    named = 0
    for seed in range(5):
        points = flat + np.random.default_rng(seed).normal(0, 0.3, flat.shape)
        lattice = fit_lattice(points, axes if seed % 2 else -axes)
        lengths = np.linalg.norm(points[lattice.pairs[:, 0]] - points[lattice.pairs[:, 1]], axis=1)
        assert lengths.max() < 15.0 and (lattice.patch > 0).mean() > 0.95
        assert lattice.n_neighbors.max() <= 6, "what lies across the cut is no neighbour by p, q"
        if [defect.fold for defect in lattice.defects] == [fold]:
            close = np.linalg.norm(lattice.defects[0].position) < 2 * 7.0
            named += close and bool((lattice.cut >= 0).all() and (lattice.cut == 1).any())
    assert named >= 4


def test_a_dislocation_is_named() -> None:
    pq = disk(7)
    points, axes = plane(pq)
    x, y = points[:, 0], points[:, 1]
    shift = 7.0 * np.arctan2(y - 3.0, x - 3.5) / (2 * np.pi)
    half = (x < 3.5) & (np.abs(y - 3.0) < 0.1)
    lattice = fit_lattice(points[~half] + shift[~half, None] * [1.0, 0.0, 0.0], axes[~half])
    assert [defect.fold for defect in lattice.defects] == [6]
    assert np.abs(lattice.defects[0].step).max() == 1
    assert np.linalg.norm(lattice.defects[0].position - [3.5, 3.0, 0.0]) < 20.0


def test_a_whole_lattice_and_an_empty_one_have_none() -> None:
    for points, axes in (plane(disk(4)), plane(disk(0))):
        assert fit_lattice(points, axes).defects == ()
