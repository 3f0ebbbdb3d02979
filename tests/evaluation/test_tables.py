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
    common_scores,
    make_folder,
    only_scores,
    table_of,
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
    assert set(scores) - set(means.index) == {"seconds"}
    paths = write_results(tmp_path, scores, means, {"epoch": 3})
    assert [path.name for path in paths] == ["metrics.csv", "summary.json"]
    rows = read_earlier(paths[0]).scores
    pd.testing.assert_frame_equal(rows, scores.astype(float))
    assert rows["iou"].to_dict() == {4: 1, 7: 0} and math.isnan(rows.loc[7, "precision"])
    summary = json.loads(paths[1].read_text())
    assert summary["scores"]["iou"]["mean"] == 0.5 and summary["epoch"] == 3
    assert summary["empty"] == {"truths": 0, "predictions": 1}
    assert summary["columns"]["rendered"] == rows["columns_rendered"].sum()
    assert summary["prediction_seconds"] == 3


def test_scores_in_common_are_those_that_predictions_change():
    a = table([0], foreground=0.1, iou=0.5, columns_A=3, old=1.0, hd95=2.0, seconds=1.0)
    assert common_scores(a, a.drop(columns="old")[["hd95", "iou"]]) == ["iou", "hd95"]
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
