import numpy as np
import pytest

from utils.columns.lattice import Lattice, fit_lattice
from utils.errors import UserError
from utils.evaluation.columns import score_lattice, true_pairs

UP = np.array([0.0, 0.0, 1.0])


def disk(radius: int) -> np.ndarray:
    """Return the (p, q) (N, 2) within ``radius`` steps of a hexagonal lattice's origin."""
    p, q = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    return np.stack([p, q], axis=1)[np.abs(p - q) <= radius]


def plane(
    pq: np.ndarray, *, spacing: float = 7.0, stretch: float = 1.0, angle: float = 120.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return points and axes of a flat lattice whose steps meet at ``angle`` degrees."""
    turn = np.radians(angle)
    q_step = stretch * np.array([np.cos(turn), np.sin(turn), 0.0])
    points = spacing * (pq[:, :1] * [1.0, 0.0, 0.0] + pq[:, 1:] * q_step)
    return points, np.tile(UP, (len(pq), 1))


def dome(pq: np.ndarray, radii: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a lattice wrapped round the top of an ellipsoid, with the surface's normals."""
    flat, _ = plane(pq)
    arc = np.linalg.norm(flat, axis=1, keepdims=True) / 60.0
    unit = np.concatenate([flat[:, :2] * np.sinc(arc / np.pi) / 60.0, np.cos(arc)], axis=1)
    normals = unit / np.array(radii)
    return unit * radii, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def judge(lattice: Lattice, pq: np.ndarray) -> dict[str, float]:
    return score_lattice(lattice.patch, lattice.pq, pq)


@pytest.mark.parametrize(
    ("points", "axes"),
    [
        plane(disk(7)),
        dome(disk(7), (60.0, 60.0, 60.0)),
        dome(disk(7), (50.0, 80.0, 60.0)),
        plane(disk(7), angle=97.0),
        plane(disk(7), stretch=1.6, angle=110.0),
    ],
    ids=["plane", "sphere", "ellipsoid", "nearly square", "stretched"],
)
@pytest.mark.parametrize("noise", [0.0, 0.06])
def test_closed_forms_with_noise_and_gaps(
    points: np.ndarray, axes: np.ndarray, noise: float
) -> None:
    pq = disk(7)
    rng = np.random.default_rng(5)
    kept = np.sort(rng.permutation(len(pq))[: round(len(pq) * 9 / 11)])
    noisy = points + rng.normal(0, noise * 7.0, points.shape)
    lattice = fit_lattice(noisy[kept], axes[kept])
    scores = judge(lattice, pq[kept])
    assert scores["pairs_right_any_basis"] >= (0.99 if noise else 1.0)
    assert scores["pairs_placed"] >= 0.95
    assert (lattice.patch == 1).mean() >= 0.95 and not lattice.defects
    assert scores["pairs_right"] == scores["pairs_right_any_basis"]
    steps = lattice.steps[lattice.patch == 1]
    turn = np.cross(steps[:, :, 0], steps[:, :, 1])
    assert (np.einsum("nc,nc->n", turn, axes[kept][lattice.patch == 1]) > 0).all()


def test_a_whole_lattice_is_found_whole() -> None:
    pq = disk(5)
    points, axes = plane(pq)
    lattice = fit_lattice(points, axes)
    assert (lattice.patch == 1).all() and (lattice.cut == 0).all()
    assert {tuple(pair) for pair in lattice.pairs} == {tuple(pair) for pair in true_pairs(pq)}
    assert lattice.votes[0].share == 1.0 and len(lattice.inferred.pq) == 0
    np.testing.assert_allclose(lattice.residual, 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(lattice.steps, axis=1), 7.0, rtol=1e-5)
    assert (
        np.bincount(lattice.n_neighbors).tolist()
        == np.bincount(np.bincount(true_pairs(pq).ravel())).tolist()
    )


def test_the_diagonal_is_settled_at_the_clearest_depth() -> None:
    pq = disk(6)
    near_square, axes = plane(pq, angle=89.0)
    regular, _ = plane(pq, angle=118.0)
    points = near_square + np.random.default_rng(2).normal(0, 0.2, near_square.shape)
    paths = np.stack([points + 5 * UP, regular - 5 * UP], axis=1)
    assert judge(fit_lattice(points, axes), pq)["pairs_right"] < 0.5
    lattice = fit_lattice(points, axes, paths=paths)
    assert judge(lattice, pq)["pairs_right"] == 1.0
    assert lattice.votes[0].depth == 2 and lattice.votes[0].share == 1.0


def test_two_patches_are_numbered_by_size() -> None:
    big, small = disk(5), disk(3)
    points, axes = plane(big)
    others, _ = plane(small, spacing=6.0)
    both = np.concatenate([others + [0.0, 150.0, 0.0], points])
    lattice = fit_lattice(both, np.tile(UP, (len(both), 1)))
    assert (lattice.patch == np.repeat([2, 1], [len(small), len(big)])).all()
    assert len(lattice.votes) == 2
    for number, pq in ((1, big), (2, small)):
        own = lattice.patch == number
        assert score_lattice(lattice.patch[own], lattice.pq[own], pq)["pairs_right"] == 1.0


def test_a_column_off_the_lattice_fits_nowhere() -> None:
    points, axes = plane(disk(5))
    points = np.concatenate([points, [[3.5, 1.0, 0.0]]])
    lattice = fit_lattice(points, np.concatenate([axes, axes[:1]]))
    assert lattice.patch[-1] == 0 and (lattice.patch[:-1] == 1).all()
    assert np.isnan(lattice.residual[-1]) and lattice.n_neighbors[-1] == 0


def partition(lattice: Lattice) -> tuple[set[tuple[int, int]], np.ndarray]:
    return {(int(k), int(m)) for k, m in np.sort(lattice.pairs, axis=1)}, lattice.patch > 0


@pytest.mark.parametrize("change", ["turned", "mirrored", "renumbered", "axes turned round"])
def test_only_the_free_choice_depends_on_the_view(change: str) -> None:
    rng = np.random.default_rng(8)
    pq = disk(6)
    points, axes = dome(pq, (50.0, 70.0, 60.0))
    points += rng.normal(0, 0.35, points.shape)
    kept = np.sort(rng.permutation(len(pq))[:100])
    points, axes, pq = points[kept], axes[kept], pq[kept]
    before = fit_lattice(points, axes)
    order = np.arange(len(points))
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix *= np.sign(np.linalg.det(matrix)) * (-1 if change == "mirrored" else 1)
    if change == "renumbered":
        order = rng.permutation(len(points))
    elif change == "axes turned round":
        axes = -axes
    else:
        points, axes = points @ matrix.T, axes @ matrix.T
    after = fit_lattice(points[order], axes[order])
    pairs, placed = partition(before)
    back = np.sort(order[after.pairs], axis=1)
    assert {(int(k), int(m)) for k, m in back} == pairs
    assert (after.patch[np.argsort(order)] > 0).tolist() == placed.tolist()
    same = score_lattice(before.patch[order], before.pq[order], after.pq)
    assert same["pairs_right"] == 1.0
    assert after.votes == before.votes


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_too_few_points_fit_nowhere(count: int) -> None:
    points, axes = plane(disk(1)[:count])
    lattice = fit_lattice(points, axes)
    assert lattice.patch.tolist() == [0] * count and lattice.votes == ()
    assert lattice.pairs.shape == (0, 2) and lattice.pq.shape == (count, 2)
    assert len(lattice.inferred.pq) == 0


def test_points_in_a_line_or_in_one_place_fit_nowhere() -> None:
    line = np.arange(20)[:, None] * np.array([[3.0, 4.0, 0.0]])
    for points in (line, np.zeros((20, 3))):
        lattice = fit_lattice(points, np.tile(UP, (20, 1)))
        assert (lattice.patch == 0).all() and len(lattice.pairs) == 0


def test_columns_that_are_not_finite_fit_nowhere() -> None:
    pq = disk(5)
    points, axes = plane(pq)
    points[3], axes[7], axes[9] = np.nan, np.inf, 0.0
    lattice = fit_lattice(points, axes)
    bad = np.isin(np.arange(len(pq)), [3, 7, 9])
    assert ((lattice.patch == 0) == bad).all()
    assert judge(lattice, pq)["pairs_right"] == 1.0
    assert not np.isin(lattice.pairs, [3, 7, 9]).any()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(UserError, match=r"\(N, 3\)"):
        fit_lattice(np.zeros((5, 2)), np.zeros((5, 2)))
