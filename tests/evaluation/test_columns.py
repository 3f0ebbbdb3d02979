"""How well columns were found: by type, one by one on changed truths, and their lattice."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.columns.test_instances import STEPS
from tests.columns.test_lattice import disk
from tests.conftest import fake_volume
from utils.columns.finding import columns_of
from utils.evaluation.columns import (
    ANY_BASIS,
    TWELVE,
    Truth,
    cone_voxels,
    match_lines,
    score_columns,
    score_found,
    score_instances,
    score_lattice,
    true_pairs,
)
from utils.simulation import VolumeConfig, WideConfig, sample_rng, simulate_volume
from utils.simulation.geometry import spherical_lattice
from utils.simulation.volume import preset


@pytest.fixture(scope="module")
def tiny(tiny_config):
    return simulate_volume(tiny_config, sample_rng(5, 0))


def by_hand(found, volume):
    """Recall and covered columns of each type, column by column."""
    cones = cone_voxels(volume)
    results = {}
    for kind in range(4):
        voxels = hits = columns = covered = 0
        for k in np.flatnonzero(volume.column_type == kind):
            own = volume.instances == k + 1
            voxels, hits = voxels + own.sum(), hits + (own & found).sum()
            if own.sum() >= 0.5 * cones[k] and own.any():
                columns += 1
                covered += (own & found).sum() >= 0.5 * own.sum()
        results[kind] = (hits / voxels, columns, covered / columns if columns else math.nan)
    return results


def test_recall_is_counted_type_by_type(tiny):
    found = np.random.default_rng(0).random(tiny.instances.shape) < 0.5
    scores, expected = score_columns(found, tiny), by_hand(found, tiny)
    for name, kind in (("left_out", 0), ("A", 1), ("B", 2), ("C", 3)):
        got = [scores[f"{what}_{name}"] for what in ("recall", "columns", "covered")]
        assert got == pytest.approx(expected[kind], nan_ok=True)
    assert scores["columns_rendered"] == sum(expected[kind][1] for kind in (1, 2, 3)) > 0
    rendered = (tiny.instances > 0) & (np.append(0, tiny.column_type)[tiny.instances] > 0)
    assert scores["recall_rendered"] == pytest.approx(found[rendered].mean())


def test_what_shows_only_rendered_columns_misses_all_left_out_ones(tiny):
    left_out = np.flatnonzero(tiny.column_type == 0) + 1
    found = (tiny.instances > 0) & ~np.isin(tiny.instances, left_out)
    row = score_columns(found, tiny)
    assert row["recall_left_out"] == 0 and row["recall_rendered"] == 1
    assert row["covered_rendered"] == row["recall_A"] == row["recall_B"] == row["recall_C"] == 1


def test_a_whole_cone_holds_the_voxels_that_its_volume_says():
    fine = VolumeConfig(shape=(96, 96, 96), lattice_intervals=(10, 10))
    volume = simulate_volume(fine, sample_rng(5, 1))
    ends = volume.entry_points + volume.parameters.cone_length * volume.e_r
    reach = 1.5 * volume.parameters.cone_radius * max(1, volume.parameters.cone_taper)
    inside = np.all(
        (np.minimum(ends, volume.entry_points) > reach)
        & (np.maximum(ends, volume.entry_points) < 1 - reach),
        axis=1,
    )
    counts = np.bincount(volume.instances.ravel(), minlength=len(inside) + 1)[1:]
    assert inside.any()
    assert counts[inside] == pytest.approx(cone_voxels(volume)[inside], rel=0.05)


def test_types_that_are_not_there_have_no_recall():
    volume = fake_volume(sample_rng(0, 0))
    volume = replace(volume, column_type=np.ones_like(volume.column_type))
    scores = score_columns(volume.instances > 0, volume)
    assert math.isnan(scores["recall_left_out"]) and math.isnan(scores["covered_left_out"])
    assert scores["columns_left_out"] == 0 and scores["recall_A"] == 1


def test_columns_of_preset_wide_have_no_named_types(tiny_wide: WideConfig) -> None:
    volume = simulate_volume(tiny_wide, sample_rng(0, 0))
    scores = score_columns(volume.instances > 0, volume)
    assert scores["recall_rendered"] == scores["covered_rendered"] == 1.0
    assert scores["columns_rendered"] > 0
    for kind in "ABC":
        assert scores[f"columns_{kind}"] == 0 and np.isnan(scores[f"recall_{kind}"])


@pytest.fixture(scope="module")
def volume():
    config = VolumeConfig(shape=(64, 64, 64), lattice_intervals=(8, 8))
    return simulate_volume(config, sample_rng(5, 1))


@pytest.fixture(scope="module")
def truth(volume):
    return Truth.of(volume)


def score(truth, labels=None, paths=None, axes=None):
    labels = truth.labels if labels is None else labels
    paths, axes = (truth.paths if paths is None else paths), truth.axes if axes is None else axes
    found = score_instances(labels, paths, axes, truth)
    return {name.removeprefix("instance_"): value for name, value in found.items()}


def test_the_truth_is_right_in_all(truth):
    scores = score(truth)
    for name, value in scores.items():
        if name.startswith(("precision", "recall", "f1", "pq")):
            assert value == 1, name
        else:
            assert value == pytest.approx(0, abs=1e-5), name
    groups = truth.groups
    assert (groups["_rendered"] ^ groups["_left_out"] == groups[""]).all()
    assert (groups["_interior"] ^ groups["_border"] == groups[""]).all()
    assert all(group.any() for group in groups.values())


def test_renumbering_and_turning_axes_round_change_nothing(truth):
    order = np.random.default_rng(0).permutation(len(truth.axes))
    number = np.append(0, np.argsort(order) + 1)
    again = score(truth, number[truth.labels], truth.paths[order, ::-1], -truth.axes[order])
    assert again == pytest.approx(score(truth), abs=1e-5)


def test_left_out_columns_that_are_not_found_are_not_missed_among_rendered_ones(truth):
    left_out = np.flatnonzero(truth.groups["_left_out"]) + 1
    labels = np.where(np.isin(truth.labels, left_out), 0, truth.labels)
    paths = truth.paths.copy()
    paths[left_out - 1] += 1000
    scores = score(truth, labels, paths)
    assert scores["f1_iou50_rendered"] == scores["f1_line_rendered"] == 1
    assert scores["recall_iou50_left_out"] == scores["recall_line_left_out"] == 0
    share = len(left_out) / truth.groups[""].sum()
    assert scores["recall_iou30"] == pytest.approx(1 - share)
    assert "precision_iou30_left_out" not in scores


def test_a_split_and_a_merge_are_counted(truth):
    asked = np.flatnonzero(truth.groups[""])
    whole, n = asked[0], len(truth.axes)
    labels, paths, axes = truth.labels.astype(int), truth.paths, truth.axes
    own = np.argwhere(labels == whole + 1) @ truth.axes[whole]
    labels[tuple(np.argwhere(labels == whole + 1)[own > np.median(own)].T)] = n + 1
    split = score(truth, labels, np.append(paths, paths[:1], 0), np.append(axes, axes[:1], 0))
    assert split["false_splits"] == pytest.approx(1 / len(asked)) and split["false_merges"] == 0
    merged = np.where(truth.labels == asked[1] + 1, whole + 1, truth.labels)
    scores = score(truth, merged)
    assert scores["false_merges"] == pytest.approx(1 / len(asked)) and scores["false_splits"] == 0
    assert scores["f1_iou50"] < 1


def test_axes_and_centre_lines_that_are_off(truth):
    tilted = truth.axes + math.tan(math.radians(10)) * np.cross(truth.axes, _across(truth.axes))
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    assert score(truth, axes=tilted)["axis_error"] == pytest.approx(10)
    away = _across(truth.axes)[:, None] * truth.spacing[:, None, None]
    assert score(truth, paths=truth.paths + 0.3 * away)["f1_line"] == 1
    assert score(truth, paths=truth.paths + 0.4 * away)["f1_line"] < 0.7


def _across(axes):
    across = np.cross(axes, np.roll(np.eye(3)[np.abs(axes).argmax(axis=1)], 1, axis=1))
    return across / np.linalg.norm(across, axis=1, keepdims=True)


def test_nothing_found_has_no_precision(truth):
    scores = score(truth, np.zeros_like(truth.labels), np.empty((0, 9, 3)), np.empty((0, 3)))
    assert scores["recall_iou30"] == 0 and math.isnan(scores["precision_iou30"])
    assert math.isnan(scores["axis_error"])


def test_the_true_mask_gives_columns_and_their_lattice(volume, truth):
    found = columns_of(volume.mask.astype(np.float32), STEPS, threshold=0.5)
    scores = score_found(found, volume, truth)
    assert scores["instance_f1_iou30"] > 0.85 and scores["instance_axis_error"] < 6
    assert scores["instance_pairs_right_any_basis"] > 0.9
    assert not math.isnan(scores["instance_pairs_right"])
    nothing = columns_of(np.zeros(volume.image.shape, np.float32), STEPS, threshold=0.5)
    empty = score_found(nothing, volume, truth)
    assert empty["instance_recall_line"] == 0 and math.isnan(empty["instance_pairs_right"])


def test_the_centre_lines_of_bent_columns_are_bent_and_end_where_the_volume_does():
    config = preset("wide", shape=(48, 48, 48))
    bent = simulate_volume(config, sample_rng(3, 0))
    truth = Truth.of(bent)
    asked = truth.groups[""]
    assert asked.any()
    nodes = bent.paths[:, :, None] - 0.5  # a chord of nodes holds the points between them
    steps = np.linspace(0, 1, 50)[:, None]
    fine = (1 - steps) * nodes[:, :-1] + steps * nodes[:, 1:]
    fine = fine.reshape(len(nodes), -1, 3)
    others = truth.paths[:, :6].copy()
    for k, path in enumerate(fine):
        if not asked[k]:
            continue
        away = np.linalg.norm(truth.paths[k][:, None] - path, axis=2).min(axis=1)
        assert away.max() < 0.2
        assert np.all((truth.paths[k] >= -0.5) & (truth.paths[k] <= 47.5))
        inside = path[np.all((path >= -0.5) & (path <= 47.5), axis=1)]
        others[k] = inside[np.linspace(0, len(inside) - 1, 6).astype(int)]
    # the same lines through other nodes lie on them, however far apart nodes are
    assert score(truth, paths=others)["f1_line"] == 1
    true, own = match_lines(truth, others)
    assert np.array_equal(true[asked[true]], own[asked[true]])
    aside = _across(truth.axes)[:, None] * truth.spacing[:, None, None]
    assert score(truth, paths=others + 0.3 * aside)["f1_line"] == 1
    assert score(truth, paths=others + 0.6 * aside)["f1_line"] < 1


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
