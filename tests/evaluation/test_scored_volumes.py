"""Scores of whole volumes by name, their means, and which volumes are shown."""

import math
from dataclasses import replace

import numpy as np
import pytest

from utils.evaluation.scored_volumes import (
    ScoredVolume,
    average,
    conditions_of,
    correlate,
    pick_shown,
    score_prediction,
    sum_columns,
)

GIVEN = {"seconds": 1.23456, "tolerance": None, "spacing": None}


def test_the_truth_scores_one_in_everything(small_volume):
    truth = small_volume.mask.astype(np.float32)
    found = score_prediction(3, small_volume, truth, **GIVEN)
    assert found.index == 3 and found.scores["iou"] == found.scores["sheet_auc"] == 1
    assert found.scores["iou_gain"] == 1 - found.scores["baseline_iou"] > 0
    assert "hd95" not in found.scores
    assert found.row["volume"] == 3 and found.row["seconds"] == 1.235
    assert found.row["gain"] == small_volume.parameters.gain
    labelled = small_volume.mask.sum(axis=(0, 1))
    assert labelled[found.z] == labelled.max()
    for shown, whole in zip(
        found.slices, (small_volume.image, small_volume.mask, truth), strict=True
    ):
        np.testing.assert_array_equal(shown, whole[..., found.z])
    worn = replace(small_volume, instances=np.zeros_like(small_volume.instances))
    surfaces = score_prediction(0, worn, truth, **{**GIVEN, "tolerance": 1.0, "spacing": (1, 1, 2)})
    assert surfaces.scores["surface_dice"] == 0 and surfaces.scores["iou"] == 0
    assert surfaces.scores["hd95_um"] > surfaces.scores["hd95"] > 0


def scored(iou, gain, foreground=0.1):
    scores = {"iou": iou, "foreground": foreground, "columns_A": 2}
    return ScoredVolume(0, scores, {"gain": gain}, 0.0, (None, None, None), 0)


def test_means_leave_out_what_has_no_meaning_and_draw_the_same_volumes():
    rows = [{"a": 1.0, "b": 1.0, "c": math.nan}, {"a": 3.0, "b": 3.0, "c": 5.0}]
    means = average(rows, seed=0)
    assert means["a"].mean == 2 and means["c"].mean == 5 and means["c"].volumes == 1
    assert means["a"] == means["b"]


def test_the_score_is_set_against_conditions():
    results = [scored(0.1, 3, 0.3), scored(0.2, 2, 0.1), scored(0.3, 1, 0.2)]
    assert conditions_of(results) == {"gain": [3, 2, 1], "foreground": [0.3, 0.1, 0.2]}
    found = correlate(results)
    assert found["gain"] == pytest.approx(-1) and found["foreground"] == pytest.approx(-0.5)
    assert sum_columns(results, "A") == 6


@pytest.mark.parametrize(
    ("ious", "words"),
    [
        ([0.5], ["only"]),
        ([0.2, 0.9], ["best", "worst"]),
        ([0.3, 0.1, 0.2, 0.5], ["best", "median", "worst"]),
        ([0.4] * 5, ["best", "second best", "median", "second worst", "worst"]),
        (
            [0.3, 0.1, 0.2, 0.5, 0.4, 0.6],
            ["best", "second best", "median", "second worst", "worst"],
        ),
    ],
)
def test_shown_volumes_are_the_extremes(ious, words):
    results = [
        ScoredVolume(index, {"iou": iou}, {}, 0.0, (None, None, None), 0)
        for index, iou in enumerate(ious)
    ]
    shown = pick_shown(results)
    assert [word for word, _ in shown] == words
    values = [result.scores["iou"] for _, result in shown]
    assert values == sorted(values, reverse=True)
    assert values[0] == max(ious) and values[-1] == min(ious)
    assert len({result.index for _, result in shown}) == len(shown)
