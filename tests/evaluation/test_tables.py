"""Tables of scores, and what an evaluation leaves in its folder."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from utils.errors import UserError
from utils.evaluation.scoring import score_volume
from utils.evaluation.statistics import means_over_volumes, paired_differences
from utils.evaluation.tables import (
    SCORES,
    EarlierScores,
    check_same_volumes,
    common_scores,
    comparison_lines,
    only_scores,
    read_earlier,
    score_lines,
    table_of,
    worded,
    write_comparison,
    write_results,
)


def table(rows, **scores):
    return pd.DataFrame(scores, index=pd.Index(rows, name="volume"))


def test_table_and_summary_hold_what_was_scored(tmp_path, small_volume):
    nothing = np.zeros(small_volume.image.shape, np.float32)
    given = {"seconds": 1.5, "tolerance": None, "spacing": None}
    results = [
        score_volume(index, small_volume, prediction, **given)
        for index, prediction in ((4, small_volume.mask.astype(np.float32)), (7, nothing))
    ]
    scores = table_of(results)
    means = means_over_volumes(only_scores(scores), seed=0)
    assert {"gain", "curvature", "seconds"} == set(scores) - set(means.index) - {
        *("std_intensity", "contrast", "spacing_voxels")
    }
    paths = write_results(tmp_path, scores, means, {"epoch": 3})
    assert [path.name for path in paths] == ["metrics.csv", "summary.json"]
    rows = read_earlier(paths[0]).scores
    pd.testing.assert_frame_equal(rows, scores.astype(float))
    assert rows["iou"].to_dict() == {4: 1, 7: 0} and math.isnan(rows.loc[7, "precision"])
    summary = json.loads(paths[1].read_text())
    assert summary["scores"]["iou"]["mean"] == 0.5 and summary["epoch"] == 3
    assert summary["empty"] == {"truths": 0, "predictions": 1}
    assert summary["columns"]["rendered"] == rows["columns_rendered"].sum()
    assert summary["rank_correlation_of_iou"]["gain"] is None  # of two volumes there is none
    assert summary["prediction_seconds"] == 3


def test_scores_in_common_are_those_that_predictions_change():
    a = table([0], foreground=0.1, iou=0.5, gain=10, columns_A=3, old=1.0, hd95=2.0, seconds=1.0)
    assert common_scores(a, a.drop(columns="old")[["hd95", "iou", "gain"]]) == ["iou", "hd95"]
    assert common_scores(a, a) == ["iou", "old", "hd95"]


def test_a_comparison_holds_both_scores(tmp_path):
    a = table([4, 2], iou=[0.3, 0.25], hd95=[math.nan, 3.0])
    b = table([2, 4], iou=[0.75, 0.5], hd95=[2.0, 9.0])
    differences = paired_differences(a, b, seed=0)
    paths = write_comparison(tmp_path, a, b, differences, {"a": "first", "b": "second"})
    summary = json.loads(paths[1].read_text())
    assert (summary["a"], summary["b"], summary["volumes"]) == ("first", "second", [4, 2])
    found = summary["differences"]["iou"]
    assert found["difference"]["mean"] == pytest.approx(0.35) and found["b_higher"] == 2
    assert set(found) == {"a", "b", "difference", "b_higher", "a_higher", "p_value"}
    assert paths[0].read_text().splitlines() == [
        "volume,iou_a,iou_b,iou_difference,hd95_a,hd95_b,hd95_difference",
        "4,0.3,0.5,0.2,,9.0,",
        "2,0.25,0.75,0.5,3.0,2.0,-1.0",
    ]


def means_of(volumes, **changes):
    """Means over volumes whose every score is a half, unless ``changes`` say otherwise."""
    table = pd.DataFrame([dict.fromkeys(SCORES, 0.5) | changes] * volumes)
    return means_over_volumes(table, seed=0)


def test_means_are_listed_with_their_intervals():
    lines = score_lines(means_of(19, iou_gain=0.25)).splitlines()
    (gain,) = (line for line in lines if line.startswith("the difference"))
    assert gain.split()[-4:] == ["0.250", "0.250", "0.250", "19"]


def test_what_has_no_meaning_is_a_dash_or_left_out():
    text = score_lines(means_of(1, covered_left_out=math.nan))
    rows = {line[:9].strip(): line.split() for line in text.splitlines()}
    assert rows["precision"][1:] == ["0.500", "-", "-", "1"]
    assert "nan" not in text and SCORES["covered_left_out"] not in text


def test_a_comparison_lists_what_both_have():
    names = ["hd95", "iou", "columns_A"]
    a, b = (
        pd.DataFrame({name: values for name in names})
        for values in ([1.0, 2.0, 3.0], [0.5, 2.5, 2.0])
    )
    differences = paired_differences(a, b, seed=0)
    assert list(worded(differences).index) == [SCORES["iou"], SCORES["hd95"]]
    text = comparison_lines(("x", "y"), differences)
    assert text.splitlines()[:2] == ["A = x", "B = y"]
    (row,) = (line for line in text.splitlines() if line.startswith("IoU"))
    assert row.split()[3:6] == ["2.000", "1.667", "-0.333"] and row.split()[8:10] == ["1", "3"]


def test_equal_scores_have_no_p_value():
    table = pd.DataFrame({"iou": [0.5, 0.75]})
    text = comparison_lines(("x", "y"), paired_differences(table, table, seed=0))
    (row,) = (line for line in text.splitlines() if line.startswith("IoU"))
    assert row.split()[-1] == "-" and "nan" not in text


def test_unlike_volumes_are_told_apart():
    data = {"seed": 1, "shape": [8, 8, 8], "config": {}}
    other = {**data, "shape": [9, 9, 9]}

    def check(volumes, data):
        sides = [EarlierScores(pd.DataFrame(), *pair) for pair in zip(data, volumes, strict=True)]
        check_same_volumes("ab", sides)

    check([(0, 1), (1, 0)], [data, {}])
    with pytest.raises(UserError, match="only B has volume 2"):
        check([(0, 1), (0, 1, 2)], [data, {}])
    with pytest.raises(UserError, match="--compare a b: .* shape of the data differs"):
        check([(0, 1), (0, 1)], [data, other])


def test_scores_of_an_earlier_evaluation_are_found(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("volume,iou\n0,0.5\n3,0.25\n")
    found = read_earlier(path)
    assert not found.data and found.volumes == (0, 3)
    pd.testing.assert_frame_equal(
        found.scores, pd.DataFrame({"iou": [0.5, 0.25]}, index=pd.Index([0, 3], name="volume"))
    )
    (tmp_path / "summary.json").write_text(json.dumps({"data": {"seed": 7}}))
    found = read_earlier(path, 2)
    assert found.data == {"seed": 7} and found.volumes == (0,)
    with pytest.raises(UserError, match="metrics.csv: .*one row a volume"):
        read_earlier(path, 0)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_summary_that_is_none_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text("volume,iou\n0,0.5\n")
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match="summary.json .* is not as evaluate.py writes it"):
        read_earlier(tmp_path / "metrics.csv")


def test_a_number_comes_back_as_it_was(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("volume,iou,hd95\n3,0.30000000000000004,\n0,1.0,2.5\n")
    found = read_earlier(path).scores
    assert list(found.index) == [3, 0] and found.loc[3, "iou"] == 0.1 + 0.2
    assert math.isnan(found.loc[3, "hd95"]) and found.loc[0].to_dict() == {"iou": 1, "hd95": 2.5}


@pytest.mark.parametrize(
    "text", ["", "volume,iou\n", "name,iou\n1,0.5\n", "volume,iou\nx,0.5\n",
             "volume,iou\n1,high\n", "volume,iou\n1\n", "volume,iou\n1,0.5,3\n",
             "volume,iou\n1.5,0.5\n", "volume,iou\n1,0.5\n1,0.6\n",
             "volume,dice\n1,0.5\n", "\x00\xff"]
)  # fmt: skip
def test_what_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="metrics.csv"):
        read_earlier(path)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_earlier(tmp_path / "metrics.csv")
