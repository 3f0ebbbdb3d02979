import math

import pytest

from utils.prediction.comparison import paired_rows, subtract

A = {
    4: {"iou": 0.5, "gain": 10, "columns_A": 3, "old": 1.0, "hd95": math.nan},
    2: {"iou": 0.25, "gain": 20, "columns_A": 5, "old": 1.0, "hd95": 3.0},
}
B = {
    2: {"iou": 0.75, "gain": 20, "columns_A": 5, "hd95": 2.0},
    4: {"iou": 0.5, "gain": 10, "columns_A": 3, "hd95": 9.0},
}


def test_volumes_are_paired_by_their_index_and_scores_by_their_name():
    differences = subtract(A, B, seed=0)
    assert set(differences) == {"iou", "hd95"}
    assert differences["iou"].difference.mean == pytest.approx(0.25)
    assert differences["iou"].b_higher == 1 and differences["iou"].a_higher == 0
    assert differences["hd95"].difference.volumes == 1
    assert differences["hd95"].difference.mean == -1


def test_rows_hold_both_scores():
    rows = paired_rows(A, B, ["iou", "hd95"])
    assert [row["volume"] for row in rows] == [4, 2]
    assert (rows[1]["iou_a"], rows[1]["iou_b"], rows[1]["iou_difference"]) == (0.25, 0.75, 0.5)
    assert math.isnan(rows[0]["hd95_difference"])
