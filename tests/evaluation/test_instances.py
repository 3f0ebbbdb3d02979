"""Scores of single columns on truths that are changed in known ways."""

import math

import numpy as np
import pytest

from tests.columns.test_instances import STEPS
from utils.columns.finding import columns_of
from utils.evaluation.instances import Truth, match_lines, score_found, score_instances
from utils.simulation import VolumeConfig, sample_rng, simulate_volume
from utils.simulation.volume import preset


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
