import math

import pandas as pd

from utils.evaluation.report import (
    COMPARED,
    MOST_ROWS,
    compared_scores,
    comparison_lines,
    score_lines,
)
from utils.evaluation.statistics import means_over_volumes, paired_differences

NAMES = (
    "iou",
    "baseline_iou",
    "sheet_iou",
    "sheet_baseline_iou",
    "sheet_auc",
    "dice",
    "precision",
    "recall",
    "total_error",
    "iou_gain",
    "sheet_false_positive_rate",
    *(f"{what}_{kind}" for what in ("recall", "covered") for kind in ("rendered", "left_out")),
)


def scored(volumes, **changes):
    """Table and means of volumes whose every score is a half, unless ``changes`` say otherwise."""
    row = dict.fromkeys(NAMES, 0.5) | {"columns_rendered": 9, "columns_left_out": 2} | changes
    table = pd.DataFrame([row] * volumes)
    return table, means_over_volumes(table, seed=0)


def test_volumes_beyond_the_first_are_only_counted():
    lines = score_lines(*scored(MOST_ROWS + 3, iou_gain=0.25))
    assert sum(line.startswith("volume ") for line in lines) == MOST_ROWS
    assert "and 3 more volumes in metrics.csv" in lines
    assert lines[-1].endswith("+0.250 (95 %: +0.250 to +0.250)")
    assert any(line.startswith("mean") for line in lines)


def test_what_has_no_meaning_is_a_dash():
    text = "\n".join(score_lines(*scored(1, sheet_auc=math.nan, covered_left_out=math.nan)))
    assert "- of them at least half covered (2 that" in text and "nan" not in text
    assert "mean" not in text and "surfaces" not in text


def test_surfaces_are_told_in_the_units_that_are_known():
    plain = "\n".join(score_lines(*scored(2, hd95=4.0, hd95_um=math.nan, surface_dice=0.75)))
    assert "HD95 4.00 voxels, surface Dice 0.750" in plain
    known = "\n".join(score_lines(*scored(2, hd95=4.0, hd95_um=1.5, surface_dice=0.75)))
    assert "HD95 4.00 voxels (1.5 um)" in known


def test_less_is_better_for_errors_and_distances():
    names = ["hd95", "iou", "columns_A"]
    a, b = (
        pd.DataFrame({name: values for name in names})
        for values in ([1.0, 2.0, 3.0], [0.5, 2.5, 2.0])
    )
    shown = compared_scores(paired_differences(a, b, seed=0))
    lines = comparison_lines(("x", "y"), shown)
    assert lines[:2] == ["A = x", "B = y"]
    rows = {line[:18].strip(): line for line in lines[3:]}
    assert list(rows) == [name for name in COMPARED if name in ("iou", "hd95")]
    assert "2 of 3" in rows["hd95"] and "1 of 3" in rows["iou"]
    assert "-0.333" in rows["iou"]
