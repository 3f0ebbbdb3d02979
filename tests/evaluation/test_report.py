"""Tables of scores as text."""

import math

import pandas as pd

from utils.evaluation.report import SCORES, comparison_lines, score_lines, worded
from utils.evaluation.statistics import means_over_volumes, paired_differences


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
