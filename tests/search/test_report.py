"""Rows, tables and means of a study."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from scipy import stats

from utils.search.definition import Choice, StudyDefinition
from utils.search.report import (
    best_first,
    format_replicates,
    format_table,
    format_trials,
    replicates,
    write_csv,
    write_summary,
)


def row(number: int, iou: float | None, state: str = "complete", **values) -> dict:
    return {
        **{"trial": number, "state": state, "iou": iou, "epoch": iou and 2, "epochs": 3},
        **{"minutes": 1.5, "parameters": 1234, "values": values, "curve": [iou] * 3},
        **{"reason": "too many parameters" if state == "failed" else "done", "directory": "x"},
    }


ROWS = [
    row(0, 0.40, depth=2, seed=0, resblocks=True),
    row(1, 0.50, depth=3, seed=0, resblocks=True),
    row(2, None, "failed", depth=4, seed=0, resblocks=True),
    row(3, 0.44, depth=2, seed=1, resblocks=True),
    row(4, 0.45, "pruned", depth=3, seed=1, resblocks=True),
    row(5, 0.42, depth=2, seed=2, resblocks=True),
]


def test_the_best_comes_first_and_failures_last() -> None:
    assert [r["trial"] for r in best_first(ROWS)] == [1, 3, 5, 0, 4, 2]
    lines = format_trials(ROWS).splitlines()
    assert lines[0].split()[:3] == ["trial", "state", "IoU"]
    assert lines[1].split() == [
        "0001",
        "complete",
        "0.5000",
        "2/3",
        "1.5",
        "1,234",
        "3",
        "0",
        "true",
    ]
    assert lines[-1].endswith("too many parameters")


def test_csv_holds_every_row_in_full(tmp_path: Path) -> None:
    with write_csv(ROWS, tmp_path / "trials.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(r["iou"]) if r["iou"] else None for r in read] == [r["iou"] for r in ROWS]
    assert read[0]["resblocks"] == "true" and read[4]["state"] == "pruned"


def test_means_over_seeds_count_complete_trials_only() -> None:
    three, one = sorted(replicates(ROWS), key=lambda r: -r["n"])
    assert three["values"] == {"depth": 2, "resblocks": True} and three["n"] == 3
    values = [0.40, 0.44, 0.42]
    bounds = stats.t.interval(0.95, 2, loc=0.42, scale=stats.sem(values))
    assert (three["low"], three["high"]) == pytest.approx(bounds)
    assert three["mean"] == pytest.approx(0.42)
    assert (one["n"], one["low"], one["high"]) == (1, None, None)
    assert [r["n"] for r in replicates(ROWS)] == [1, 3]  # the best mean first
    text = format_replicates(replicates(ROWS))
    assert "0.3703 to 0.4697" in text and len(text.splitlines()) == 3
    assert replicates([row(0, 0.4, depth=2)]) == []


def test_summary_names_the_best(tmp_path: Path) -> None:
    definition = StudyDefinition(
        "tiny", "Why?", "s.py", "grid", "none", None, {"epochs": 3}, {"depth": Choice((2, 3))}
    )
    path = write_summary(definition, ROWS, replicates(ROWS), tmp_path / "summary.json")
    content = json.loads(path.read_text())
    assert content["best"]["trial"] == 1 and len(content["trials"]) == 6
    assert content["search"] == {"depth": {"values": [2, 3]}}
    failed = write_summary(definition, ROWS[2:3], [], tmp_path / "failed.json")
    assert json.loads(failed.read_text())["best"] is None


def test_tables_are_aligned() -> None:
    assert format_table(["a", "long"], [["xyz", "1"]]) == "a    long\nxyz  1"
