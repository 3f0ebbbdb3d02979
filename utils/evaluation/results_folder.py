"""What an evaluation or comparison leaves in its folder: tables and summaries as JSON.

Every file is written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.evaluation.column_recall import KINDS
from utils.evaluation.comparison import Compared, Rows, paired_rows
from utils.evaluation.score_table import NAME, as_csv, plain
from utils.evaluation.scored_volumes import (
    ScoredVolume,
    correlate,
    sum_columns,
)
from utils.evaluation.statistics import LEVEL, Interval, PairedDifference
from utils.replacing import replacing
from utils.storage import VolumeFile

SUMMARY = "summary.json"
"""What the summary is called in a folder of results."""


def make_folder(folder: Path) -> Path:
    """Make the folder of the results and try whether it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"--output {folder}: cannot be written ({error.strerror or error}); name another folder"
        ) from error
    return folder


def write_results(
    folder: Path,
    results: Sequence[ScoredVolume],
    means: Mapping[str, Interval],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write table and summary; return their paths.

    Args:
        folder: from :func:`make_folder`.
        results: the scored volumes.
        means: of every score.
        about: what was scored, how and by which program, plain JSON.
    """
    table, summary = folder / NAME, folder / SUMMARY
    _write_text(table, as_csv([result.row for result in results]))
    _write_json(summary, {**summarise(results, means), **about, **_time(results)})
    return [table, summary]


def summarise(results: Sequence[ScoredVolume], means: Mapping[str, Interval]) -> dict[str, Any]:
    """Return the outcome of an evaluation as plain JSON."""
    return {
        "scores": {name: _as_json(interval) for name, interval in means.items()},
        "interval": {"level": LEVEL, "method": "percentile bootstrap over volumes"},
        "empty": {
            "truths": sum(result.scores["foreground"] == 0 for result in results),
            "predictions": sum(result.scores["found"] == 0 for result in results),
        },
        "columns": {kind: sum_columns(results, kind) for kind in KINDS},
        "rank_correlation_of_iou": {name: plain(r) for name, r in correlate(results).items()},
    }


def describe_data(
    file: VolumeFile, indices: Sequence[int], trained_on: str | None
) -> dict[str, Any]:
    """Return which volumes of ``file`` were scored, as plain JSON."""
    return {
        "file": str(file.path),
        "seed": file.seed,
        "shape": list(file.shape),
        "volumes": list(indices),
        "training_file_of_this_seed": trained_on,
        "config": file.config.to_dict(),
    }


def write_comparison(
    folder: Path,
    sides: tuple[Compared, Compared],
    rows: tuple[Rows, Rows],
    differences: Mapping[str, PairedDifference],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write comparison.csv and comparison.json; return their paths.

    ``rows`` are the scores of A and of B, ``about`` says how they were compared, in plain JSON.
    """
    paths = [folder / f"comparison.{ending}" for ending in ("csv", "json")]
    a, b = rows
    _write_text(paths[0], as_csv(paired_rows(a, b, differences)))
    summary = {
        "a": sides[0].name,
        "b": sides[1].name,
        "volumes": list(a),
        "differences": {
            name: {**_as_json(d), "difference": _as_json(d.difference)}
            for name, d in differences.items()
        },
        "interval": {"level": LEVEL, "method": "percentile bootstrap over volumes, of B - A"},
        "test": "Wilcoxon signed-rank, two-sided, not corrected for the number of scores",
        "data": next((side.data for side in sides if side.data), None),
        **about,
    }
    _write_json(paths[1], summary)
    return paths


def _time(results: Sequence[ScoredVolume]) -> dict[str, float]:
    return {"prediction_seconds": round(sum(result.seconds for result in results), 3)}


def _as_json(record: Any) -> dict[str, Any]:
    """Return a record of numbers as plain JSON: null for NaN."""
    return {name: plain(value) for name, value in dataclasses.asdict(record).items()}


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
