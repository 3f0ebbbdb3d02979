import json
import math

import pytest

from utils.errors import UserError
from utils.evaluation.comparison import (
    Compared,
    check_comparable,
    paired_rows,
    read_earlier,
    subtract,
)

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


def test_unlike_volumes_are_told_apart():
    data = {"seed": 1, "shape": [8, 8, 8], "config": {}}
    a, b = Compared("a", (0, 1), data), Compared("b", (0, 1), None)
    check_comparable(a, b)
    with pytest.raises(UserError, match=r"\(2 and 3\): only B has volume 2"):
        check_comparable(a, Compared("b", (0, 1, 2), None))
    with pytest.raises(UserError, match="--compare a b: .* shape of the data differs"):
        check_comparable(a, Compared("b", (0, 1), {**data, "shape": [9, 9, 9]}))


def test_scores_of_an_earlier_evaluation_are_found(tmp_path):
    assert read_earlier(str(tmp_path), None) is None
    (tmp_path / "metrics.csv").write_text("volume,iou\n0,0.5\n3,0.25\n")
    about, rows = read_earlier(str(tmp_path / "metrics.csv"), None)
    assert about == Compared(str(tmp_path / "metrics.csv"), (0, 3), None)
    assert rows == {0: {"iou": 0.5}, 3: {"iou": 0.25}}
    (tmp_path / "summary.json").write_text(json.dumps({"data": {"seed": 7}}))
    about, rows = read_earlier(str(tmp_path), 2)
    assert about == Compared(str(tmp_path), (0,), {"seed": 7}) and list(rows) == [0]
    with pytest.raises(UserError, match="--volumes 0: .* holds none of them"):
        read_earlier(str(tmp_path), 0)
