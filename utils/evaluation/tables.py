"""Scores of all volumes as one table: their statistics, as text, in files, and read from them.

A table of scores is a data frame with a row a volume, whose index is the volume's: its scores by
name, the conditions under which it was taken and the ``seconds`` of its prediction. What has no
meaning is NaN: an empty cell in CSV, null in JSON. Files are written whole or not at all.

Volumes are what statistics draw: they are independent of each other, the voxels of one are not.
Those in which a score means nothing are left out, and the results say how many were counted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from utils.checkpoints.loading import SCORE_NAMES
from utils.errors import UserError, disk_errors
from utils.evaluation.scoring import CONDITIONS, ScoredVolume, ToScore
from utils.replacing import replacing, write_json

LEVEL = 0.95  # share of the resamples that an interval holds
RESAMPLES = 10_000
METRICS, SUMMARY = "metrics.csv", "summary.json"  # table and summary in the folder of an evaluation
NOT_COMPARED = ("foreground", "baseline_iou", "sheet_baseline_iou", "iou_gain", "sheet_iou_gain")
"""What no prediction changes, as ``columns_``...; gains over it differ as the scores do."""
SCORES = {
    **SCORE_NAMES,
    "hd95_um": "HD95 (micrometres)",
    "sheet_false_positive_rate": "share of the gaps called column",
    "instance_precision_iou30": "columns: precision, IoU 0.3",
    "instance_recall_iou30": "columns: recall, IoU 0.3",
    "instance_f1_iou30": "columns: F1, IoU 0.3",
    "instance_f1_iou30_rendered": "columns: F1 (rendered), IoU 0.3",
    "instance_recall_iou30_left_out": "columns: recall of left-out ones, IoU 0.3",
    "instance_f1_iou30_interior": "columns: F1 (interior), IoU 0.3",
    "instance_f1_iou30_border": "columns: F1 (border), IoU 0.3",
    "instance_precision_iou50": "columns: precision, IoU 0.5",
    "instance_recall_iou50": "columns: recall, IoU 0.5",
    "instance_f1_iou50": "columns: F1, IoU 0.5",
    "instance_precision_line": "columns: precision by centre line",
    "instance_recall_line": "columns: recall by centre line",
    "instance_f1_line": "columns: F1 by centre line",
    "instance_pq": "columns: panoptic quality",
    "instance_false_splits": "columns: false splits a column",
    "instance_false_merges": "columns: false merges a column",
    "instance_axis_error": "columns: axis error (degrees)",
    "instance_pairs_placed": "columns: share of neighbour pairs in the lattice",
    "instance_pairs_right": "columns: neighbour pairs with the right (dp, dq)",
    "instance_pairs_right_any_basis": "columns: the same, modulo any basis",
    "instance_pairs_cut": "columns: neighbour pairs across a named cut",
    "instance_inferred_right": "columns: inferred ones that are right",
}
"""Scores whose means are listed and compared, and how."""
ENDS = {"low": "95 % from", "high": "95 % to"}  # of an interval, in words


class Interval(NamedTuple):
    """A mean over volumes and its bootstrap interval."""

    mean: float
    low: float
    high: float
    volumes: int  # volumes in which the score has a meaning; from a single one no interval follows


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return the mean of ``values`` (n,) over volumes with its percentile bootstrap interval.

    After Efron 1979: volumes are drawn with replacement :data:`RESAMPLES` times, and the interval
    holds the middle :data:`LEVEL` of the means. NaN values are left out; the mean of none is NaN,
    and so is the interval of fewer than two.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size < 2:
        mean = float(known[0]) if known.size else math.nan
        return Interval(mean, math.nan, math.nan, known.size)
    how = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile"}
    low, high = stats.bootstrap((known,), np.mean, rng=rng, **how).confidence_interval
    return Interval(float(known.mean()), float(low), float(high), known.size)


def means_over_volumes(scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return a row a score: the fields of :class:`Interval`.

    Each score's resamples come from a generator of the same seed, so that all of them see the same
    volumes drawn.
    """
    intervals = [bootstrap_mean(scores[name], np.random.default_rng(seed)) for name in scores]
    return pd.DataFrame(intervals, index=scores.columns, columns=Interval._fields)


def paired_differences(a: pd.DataFrame, b: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return how far B's scores lie above A's on the same volumes, which may be in any order.

    A row a score: the fields of :class:`Interval` of B - A over the volumes in which both have a
    meaning; the means ``a`` and ``b`` over these; in how many of them B's or A's score is the
    higher one (``b_higher``, ``a_higher``); and ``p_value`` of Wilcoxon's two-sided signed-rank
    test (NaN if no volume differs). ``seed`` is the bootstrap's.
    """
    b = b.loc[a.index]
    gaps = b - a
    return means_over_volumes(gaps, seed).assign(
        a=a.where(gaps.notna()).mean(),
        b=b.where(gaps.notna()).mean(),
        b_higher=(gaps > 0).sum(),
        a_higher=(gaps < 0).sum(),
        p_value=gaps.apply(_signed_rank_p),
    )


def rank_correlations(scores: pd.DataFrame, score: str, others: list[str]) -> pd.Series:
    """Return Spearman's rank correlation, -1..1, of the column ``score`` with each of ``others``.

    Pairs with a NaN are left out; NaN for fewer than three, or where one of them does not vary.
    """
    return scores[[score, *others]].corr("spearman", min_periods=3).loc[others, score]


def _signed_rank_p(gaps: pd.Series) -> float:
    changed = gaps[gaps.notna() & (gaps != 0)]
    return float(stats.wilcoxon(changed).pvalue) if len(changed) else math.nan


def table_of(results: Sequence[ScoredVolume]) -> pd.DataFrame:
    """Return the table of all numbers of the volumes."""
    return pd.DataFrame([result.row for result in results]).set_index("volume")


def only_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without conditions and seconds."""
    return table.drop(columns=[*CONDITIONS, "seconds", "stack"], errors="ignore")


def common_scores(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return the scores that both tables hold and that are worth comparing."""
    names = only_scores(a).columns.intersection(b.columns, sort=False)
    return [name for name in names if name not in NOT_COMPARED and not name.startswith("columns_")]


def kinds_of(table: pd.DataFrame) -> list[str]:
    """Return the kinds of columns whose numbers a table holds."""
    return [name.removeprefix("columns_") for name in table if name.startswith("columns_")]


def write_results(
    folder: Path, table: pd.DataFrame, means: pd.DataFrame, about: Mapping[str, Any]
) -> list[Path]:
    """Write metrics.csv and summary.json into ``folder``; return their paths.

    ``table`` holds all numbers of the volumes, ``means`` those of the scores over them; ``about``
    says what was scored, how and by which program, in plain JSON.
    """
    conditions = table.columns.intersection([*CONDITIONS, "foreground"], sort=False).tolist()
    correlations = rank_correlations(table, "iou", conditions)
    summary = {
        "scores": _plain_rows(means),
        "interval": {"level": LEVEL, "method": "percentile bootstrap over volumes"},
        "empty": {
            "truths": int((table["foreground"] == 0).sum()),
            "predictions": int((table["found"] == 0).sum()),
        },
        "columns": {kind: int(table[f"columns_{kind}"].sum()) for kind in kinds_of(table)},
        "rank_correlation_of_iou": _plain_rows(correlations.to_frame().T)["iou"],
        **about,
        "prediction_seconds": round(float(table["seconds"].sum()), 3),
    }
    return [_write_csv(folder / METRICS, table), write_json(folder / SUMMARY, summary)]


def write_comparison(
    folder: Path,
    a: pd.DataFrame,
    b: pd.DataFrame,
    differences: pd.DataFrame,
    about: Mapping[str, Any],
) -> list[Path]:
    """Write comparison.csv and comparison.json into ``folder``; return their paths.

    ``a`` and ``b`` are tables of the same volumes, ``differences`` their ``paired_differences``;
    ``about`` says what was compared and how, in plain JSON.
    """
    parts = {"a": a, "b": b, "difference": b - a}
    pairs = {f"{n}_{which}": part[n] for n in differences.index for which, part in parts.items()}
    rows = _plain_rows(differences)
    for row in rows.values():
        row["difference"] = {name: row.pop(name) for name in Interval._fields}
    summary = {
        "volumes": a.index.tolist(),
        "differences": rows,
        "interval": {"level": LEVEL, "method": "percentile bootstrap over volumes, of B - A"},
        "test": "Wilcoxon signed-rank, two-sided, not corrected for the number of scores",
        **about,
    }
    table = _write_csv(folder / "comparison.csv", pd.DataFrame(pairs).loc[a.index])
    return [table, write_json(folder / "comparison.json", summary)]


def _plain_rows(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the rows by their label as plain JSON: null for NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("index")


def _write_csv(path: Path, table: pd.DataFrame) -> Path:
    with replacing(path) as temporary:
        table.to_csv(temporary, lineterminator="\n")
    return path


def score_lines(means: pd.DataFrame) -> str:
    """Return means over volumes, a row a score, with their intervals."""
    columns = {"mean": "mean", **ENDS, "volumes": "volumes"}
    return _text(worded(means)[list(columns)].rename(columns=columns))


def comparison_lines(names: Sequence[str], differences: pd.DataFrame) -> str:
    """Return the means of A and B, of these ``names``, and their ``paired_differences``."""
    columns = {"a": "A", "b": "B", "mean": "B - A", **ENDS, "b_higher": "B higher in"}
    columns |= {"volumes": "volumes", "p_value": "Wilcoxon p"}
    table = worded(differences)[list(columns)].rename(columns=columns)
    table["Wilcoxon p"] = table["Wilcoxon p"].map("{:.2g}".format, na_action="ignore")
    less = "Less is better in wrong voxels, HD95 and gaps called column."
    return f"A = {names[0]}\nB = {names[1]}\n{_text(table)}\n{less}"


def worded(means: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of :data:`SCORES`, in its order and words, that have a meaning somewhere."""
    known = [name for name in SCORES if name in means.index and means.loc[name, "volumes"]]
    return means.loc[known].rename(index=SCORES)


def _text(table: pd.DataFrame) -> str:
    return table.to_string(float_format="{:.3f}".format, na_rep="-")


class EarlierScores(NamedTuple):
    """The scores of an earlier evaluation; made by :func:`read_earlier`."""

    scores: pd.DataFrame  # row a volume, whose index is the volume's
    data: Mapping[str, Any]  # what was scored, as far as the summary beside the table says it
    volumes: Sequence[int]  # their indices


def read_earlier(path: Path, volumes: int | None = None) -> EarlierScores:
    """Return the scores in a metrics.csv, and on what they were from the summary.json beside it.

    Of ``volumes`` only those with lower indices. Raises UserError if the table is missing, holds
    none of them, or one of the files is not as evaluate.py writes it.
    """
    summary = path.with_name(SUMMARY)
    with disk_errors(path):
        try:
            table = pd.read_csv(path, dtype={"volume": np.int64}).set_index("volume")
            table = table.drop(columns="stack", errors="ignore").astype(float)
            if volumes is not None:
                table = table[table.index < volumes]
            if table.empty or not table.index.is_unique or table["iou"].isna().any():
                raise ValueError("one row a volume is needed, each with its iou")
            data = json.loads(summary.read_text()).get("data") if summary.is_file() else None
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}: it or the {SUMMARY} beside it is not as evaluate.py writes it ({error})"
            ) from error
    return EarlierScores(table, data or {}, tuple(table.index))


def check_same_volumes(names: Sequence[str], sides: Sequence[EarlierScores | ToScore]) -> None:
    """Raise UserError unless A and B, of these ``names``, are about the same volumes.

    Their indices must be the same, and their seed, shape and config, or what labelled stacks they
    are, as far as that is known.
    """
    unlike = f"--compare {names[0]} {names[1]}: not the same volumes"
    (a, b), data = (set(side.volumes) for side in sides), [side.data for side in sides]
    if a != b:
        only = min(a ^ b)
        holder = "A" if only in a else "B"
        raise UserError(f"{unlike}: only {holder} has volume {only}; score both on the same")
    for name in ("seed", "shape", "config", "stacks"):
        if all(data) and data[0].get(name) != data[1].get(name):
            raise UserError(f"{unlike}: {name} of the data differs; score both on the same file")
