"""Tables of scores, their statistics, and what an evaluation leaves in its folder."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from utils.errors import UserError
from utils.evaluation import tables
from utils.evaluation.scoring import score_volume
from utils.evaluation.tables import (
    SCORES,
    EarlierScores,
    bootstrap_mean,
    check_same_volumes,
    common_scores,
    comparison_lines,
    means_over_volumes,
    only_scores,
    paired_differences,
    rank_correlations,
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


def test_bootstrap_interval_covers_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(tables, "LEVEL", 0.8)
    monkeypatch.setattr(tables, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        interval = bootstrap_mean(rng.normal(0.5, 0.1, 40), rng)
        assert interval.low <= interval.mean <= interval.high
        hits += interval.low <= 0.5 <= interval.high
    assert 140 <= hits <= 178


def test_bootstrap_is_seeded_and_leaves_nan_out():
    values = np.array([0.1, np.nan, 0.4, 0.7])
    first, second = (bootstrap_mean(values, np.random.default_rng(0)) for _ in range(2))
    assert first == second
    assert first.mean == pytest.approx(0.4) and first.volumes == 3
    assert 0.1 <= first.low < first.high <= 0.7


def test_bootstrap_of_too_few_and_of_equal_values():
    rng = np.random.default_rng(0)
    one, none = bootstrap_mean(np.array([0.3]), rng), bootstrap_mean(np.array([np.nan]), rng)
    assert one.mean == 0.3 and math.isnan(one.low) and math.isnan(one.high) and one.volumes == 1
    assert math.isnan(none.mean) and none.volumes == 0
    equal = bootstrap_mean(np.full(4, 0.25), rng)
    assert (equal.low, equal.mean, equal.high) == (0.25, 0.25, 0.25)


def exact_signed_rank_p(differences):
    """Wilcoxon's two-sided p for differences of distinct sizes: all signs are tried."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    middle = ranks.sum() / 2
    seen = abs(ranks[np.asarray(differences) > 0].sum() - middle)
    sums = [sum(s) for s in itertools.product(*[(0, int(rank)) for rank in ranks])]
    return np.mean([abs(total - middle) >= seen for total in sums])


def test_means_leave_out_what_has_no_meaning_and_draw_the_same_volumes():
    scores = pd.DataFrame({"a": [1.0, 3.0], "b": [1.0, 3.0], "c": [math.nan, 5.0]})
    means = means_over_volumes(scores, seed=0)
    assert means["mean"].to_dict() == {"a": 2, "b": 2, "c": 5}
    assert means["volumes"].to_dict() == {"a": 2, "b": 2, "c": 1}
    assert means.loc["a"].equals(means.loc["b"])


def compare_paired(a, b):
    """The paired differences of one score."""
    frames = (pd.DataFrame({"score": values}, dtype=float) for values in (a, b))
    return paired_differences(*frames, seed=0).loc["score"]


def test_paired_differences_are_of_pairs():
    rng = np.random.default_rng(3)
    a = rng.random(10)
    gains = np.array([0.01, 0.02, 0.03, -0.005, 0.04, 0.05, 0.06, 0.07, -0.015, 0.08])
    found = compare_paired(a, a + gains)
    assert found["mean"] == pytest.approx(gains.mean())
    assert found["b"] - found["a"] == pytest.approx(gains.mean())
    assert 0 < found["low"] < found["high"] < 0.08  # the spread of a drops out
    assert (found["b_higher"], found["a_higher"]) == (8, 2)
    assert found["p_value"] == pytest.approx(exact_signed_rank_p(gains))


def test_pairs_with_a_gap_are_left_out():
    found = compare_paired([0.1, np.nan, 0.3, 0.4], [0.2, 0.5, np.nan, 0.3])
    assert found["volumes"] == 2
    assert found["a"] == pytest.approx(0.25) and found["b"] == pytest.approx(0.25)


def test_equal_scores_have_no_test():
    found = compare_paired([0.3, 0.5], [0.3, 0.5])
    assert (found["low"], found["high"]) == (0, 0)
    assert math.isnan(found["p_value"]) and found["a_higher"] == found["b_higher"] == 0


def test_volumes_are_paired_by_their_index():
    a = pd.DataFrame({"iou": [0.5, 0.25], "hd95": [math.nan, 3.0]}, index=[4, 2])
    b = pd.DataFrame({"iou": [0.75, 0.5], "hd95": [2.0, 9.0]}, index=[2, 4])
    found = paired_differences(a, b, seed=0)
    assert found["mean"].to_dict() == {"iou": 0.25, "hd95": -1}
    assert found.loc["iou", "b_higher"] == 1 and found.loc["iou", "a_higher"] == 0
    assert found["volumes"].to_dict() == {"iou": 2, "hd95": 1}


def test_rank_correlation_sees_order_only():
    x = np.array([1.0, 2.0, np.nan, 5.0, 9.0])
    table = pd.DataFrame({"x": x, "up": x**3, "down": -x, "flat": np.ones(5)})
    found = rank_correlations(table, "x", ["up", "down", "flat"])
    assert found["up"] == pytest.approx(1) and found["down"] == pytest.approx(-1)
    assert math.isnan(found["flat"])
    assert rank_correlations(table[:2], "x", ["up", "down"]).isna().all()


def test_rank_correlation_is_scipy_s():
    values = np.random.default_rng(0).integers(0, 5, (2, 20)).astype(float)  # with ties
    table = pd.DataFrame({"x": values[0], "y": values[1]})
    expected = stats.spearmanr(*values).statistic
    assert rank_correlations(table, "x", ["y"])["y"] == pytest.approx(expected)
