"""What a user reads at the end of an evaluation or comparison: tables of scores as text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from utils.checkpoints.pretrained import SCORE_NAMES

MOST_ROWS = 16
"""Volumes that are listed one by one."""
BESIDE_THE_SHEET = {
    "iou": "IoU",
    "baseline_iou": "whole sheet's",
    "sheet_iou": "IoU inside the sheet",
    "sheet_baseline_iou": "whole sheet's",
    "sheet_auc": "AUC there",
}
"""Scores that are listed volume by volume, and how."""
SCORES = {
    **SCORE_NAMES,
    "hd95_um": "HD95 (micrometres)",
    "sheet_false_positive_rate": "share of the gaps called column",
}
"""Scores whose means are listed, compared and drawn, and how."""


def score_lines(scores: pd.DataFrame, means: pd.DataFrame) -> str:
    """Return the prediction's scores beside the whole sheet's, and all means.

    Args:
        scores: a row a volume.
        means: over the volumes, a row a score, with its interval.
    """
    volumes = scores.head(MOST_ROWS).rename(index="volume {}".format)
    table = volumes[list(BESIDE_THE_SHEET)].rename(columns=BESIDE_THE_SHEET).rename_axis(None)
    more = len(scores) - len(volumes)
    rest = f"\nand {more} more volumes in metrics.csv" if more else ""
    columns = {"mean": "mean", "low": "95 % from", "high": "95 % to", "volumes": "volumes"}
    spread = worded(means)[list(columns)].rename(columns=columns)
    return f"{_text(table)}{rest}\n\n{_text(spread)}"


def comparison_lines(names: Sequence[str], differences: pd.DataFrame) -> str:
    """Return both sides' means, their paired differences and in how many volumes B is higher.

    Args:
        names: of A and B.
        differences: of :func:`~utils.evaluation.statistics.paired_differences`.
    """
    columns = {
        "a": "A",
        "b": "B",
        "mean": "B - A",
        "low": "95 % from",
        "high": "95 % to",
        "b_higher": "B higher in",
        "volumes": "volumes",
        "p_value": "Wilcoxon p",
    }
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
