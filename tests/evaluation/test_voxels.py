import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.evaluation.voxels import area_under_curve, score_voxels


def cube(low, high, size=10):
    mask = np.zeros((size, size, size), np.uint8)
    mask[low:high, low:high, low:high] = 1
    return mask


def test_a_perfect_prediction():
    mask, sheet = cube(3, 6), cube(2, 8)
    scores = score_voxels(mask.astype(np.float32), mask, sheet)
    assert scores["foreground"] == scores["found"] == 0.027
    perfect = (
        scores["iou"],
        scores["dice"],
        scores["precision"],
        scores["recall"],
        scores["sheet_iou"],
    )
    assert perfect == (1, 1, 1, 1, 1)
    assert scores["total_error"] == 0 and scores["sheet_auc"] == 1
    assert scores["sheet_false_positive_rate"] == 0
    assert scores["baseline_iou"] == scores["sheet_baseline_iou"] == 27 / 216


def test_scores_from_hand_counted_voxels():
    mask = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.uint8)
    sheet = np.array([0, 1, 1, 1, 1, 1, 1, 0, 0, 0], np.uint8)
    chance = np.array([0.9, 0.5, 0.6, 0.1, 0.7, 0.2, 0.3, 0.8, 0, 0], np.float32)
    scores = score_voxels(chance, mask, sheet)
    assert scores["iou"] == 3 / 6 and scores["dice"] == 6 / 9
    assert scores["precision"] == 3 / 5 and scores["recall"] == 3 / 4
    assert scores["total_error"] == 3 / 10
    assert scores["foreground"] == 0.4 and scores["found"] == 0.5
    assert scores["sheet_false_positive_rate"] == 1 / 3
    assert scores["baseline_iou"] == 3 / 7
    assert scores["sheet_iou"] == 2 / 4 and scores["sheet_baseline_iou"] == 3 / 6
    # Inside: 0.5 beats two of three, 0.6 two, 0.1 none.
    assert scores["sheet_auc"] == pytest.approx(4 / 9)


def test_the_threshold_of_predict_is_that_of_the_whole_map():
    mask = np.repeat(np.array([1, 0, 1, 0, 0], np.uint8), [30, 10, 20, 30, 10])
    chance = np.repeat(np.array([0.75, 0.75, 0.35, 0.35, 0.0], np.float32), [30, 10, 20, 30, 10])
    scores = score_voxels(chance, mask, None)
    # Expected: 30 of 57.5 from 0.5 on, 47.5 of 90 from 0.35 on.
    assert scores["iou"] == 30 / 60 and scores["iou_auto"] == 50 / 90


def test_the_sheet_itself_scores_the_baseline():
    mask, sheet = cube(3, 6), cube(2, 8)
    scores = score_voxels(sheet.astype(np.float32), mask, sheet)
    assert scores["iou"] == scores["baseline_iou"]
    assert scores["sheet_iou"] == scores["sheet_baseline_iou"]
    assert scores["sheet_auc"] == 0.5 and scores["sheet_false_positive_rate"] == 1


def test_scores_without_a_meaning_are_nan():
    nothing = np.zeros((4, 4, 4), np.uint8)
    scores = score_voxels(nothing.astype(np.float32), cube(1, 2, 4), nothing)
    undefined = (
        scores["precision"],
        scores["sheet_iou"],
        scores["sheet_baseline_iou"],
        scores["sheet_auc"],
    )
    assert all(math.isnan(score) for score in undefined)
    assert scores["recall"] == 0 and scores["iou"] == 0 and scores["baseline_iou"] == 0


def test_empty_masks_follow_the_policy():
    empty, full = np.zeros((4, 4, 4), np.uint8), cube(1, 3, 4)
    nothing = score_voxels(empty.astype(np.float32), empty, full)
    assert nothing["iou"] == nothing["dice"] == 1 and nothing["total_error"] == 0
    assert math.isnan(nothing["precision"]) and math.isnan(nothing["recall"])
    false = score_voxels(full.astype(np.float32), empty, full)
    assert false["iou"] == false["dice"] == false["precision"] == 0 and math.isnan(false["recall"])
    missed = score_voxels(empty.astype(np.float32), full, full)
    assert missed["iou"] == missed["dice"] == missed["recall"] == 0 and math.isnan(
        missed["precision"]
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans()),
        min_size=2,
        max_size=40,
    )
)
def test_area_under_curve_counts_pairs(items):
    ratings = np.array([rating for rating, _ in items], np.float32)
    mask = np.array([label for _, label in items], np.uint8)
    pairs = [(a > b) + 0.5 * (a == b) for a in ratings[mask == 1] for b in ratings[mask == 0]]
    area = area_under_curve(ratings, mask)
    if pairs:
        assert area == pytest.approx(np.mean(pairs))
    else:
        assert math.isnan(area)
