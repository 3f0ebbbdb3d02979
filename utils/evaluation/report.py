"""What a user reads at the end of an evaluation or comparison: tables of scores as text."""

from collections.abc import Sequence

import pandas as pd

from utils.checkpoints.pretrained import SCORE_NAMES

SCORES = {
    **SCORE_NAMES,
    "hd95_um": "HD95 (micrometres)",
    "covered_labelled": "labelled columns at least half covered",
    "sheet_false_positive_rate": "share of the gaps called column",
    "instance_f1_iou30": "columns: F1, IoU 0.3",
    "instance_f1_iou30_rendered": "columns: F1 (rendered), IoU 0.3",
    "instance_recall_iou30_left_out": "columns: recall of left-out ones, IoU 0.3",
    "instance_f1_iou30_interior": "columns: F1 (interior), IoU 0.3",
    "instance_f1_iou30_border": "columns: F1 (border), IoU 0.3",
    "instance_f1_iou50": "columns: F1, IoU 0.5",
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


def score_lines(means: pd.DataFrame) -> str:
    """Return means over volumes, a row a score, with their intervals."""
    columns = {"mean": "mean", "low": "95 % from", "high": "95 % to", "volumes": "volumes"}
    return _text(worded(means)[list(columns)].rename(columns=columns))


def comparison_lines(names: Sequence[str], differences: pd.DataFrame) -> str:
    """Return the means of A and B, of these ``names``, and their paired ``differences``.

    Those are of :func:`~utils.evaluation.statistics.paired_differences`.
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
