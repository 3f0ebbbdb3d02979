"""Tables of scores, and what an evaluation leaves in its folder."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from utils.errors import UserError
from utils.evaluation.comparison import read_earlier
from utils.evaluation.scoring import score_volume
from utils.evaluation.statistics import means_over_volumes, paired_differences
from utils.evaluation.tables import (
    SCORES,
    common_scores,
    comparison_lines,
    make_folder,
    only_scores,
    score_lines,
    table_of,
    worded,
    write_comparison,
    write_results,
)


def table(rows, **scores):
    return pd.DataFrame(scores, index=pd.Index(rows, name="volume"))


def test_a_folder_is_made_and_tried(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--output .*file: cannot be written \(File exists\)"):
        make_folder(tmp_path / "file")


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
