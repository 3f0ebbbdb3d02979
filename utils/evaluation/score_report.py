"""What a user reads at the end of an evaluation or comparison: lines of text from the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from utils.evaluation.statistics import Interval, PairedDifference

MOST_ROWS = 16
"""Volumes that are listed one by one."""
LOWER_IS_BETTER = ("total_error", "hd95", "hd95_um", "sheet_false_positive_rate")
COMPARED = (
    "iou",
    "sheet_iou",
    "sheet_auc",
    "dice",
    "precision",
    "recall",
    "total_error",
    "surface_dice",
    "hd95",
    "recall_rendered",
    "recall_left_out",
)
"""Scores that a comparison lists and draws, where both sides have them."""


def score_lines(
    rows: Mapping[int, Mapping[str, float]], means: Mapping[str, Interval]
) -> list[str]:
    """Return the prediction's scores beside the whole sheet's.

    Args:
        rows: scores of each volume by its index.
        means: of every score.
    """
    lines = [
        "               IoU, whole volume       IoU, inside the sheet       AUC there",
        "           predicted  whole sheet    predicted  whole sheet    predicted",
        *(_table_row(f"volume {index}", rows[index]) for index in list(rows)[:MOST_ROWS]),
    ]
    if len(rows) > MOST_ROWS:
        lines.append(f"and {len(rows) - MOST_ROWS} more volumes in metrics.csv")
    if len(rows) > 1:
        for label, key in (("mean", "mean"), ("95 % from", "low"), ("95 % to", "high")):
            lines.append(_table_row(label, {name: getattr(means[name], key) for name in means}))
    rest = ("dice", "precision", "recall", "total_error")
    words = [f"{name.replace('_', ' ')} {_shorten(means[name].mean)}" for name in rest]
    lines.append(f"prediction: {', '.join(words)}")
    lines.extend(_surface_lines(means))
    lines.extend(_column_lines(rows, means))
    gain = means["iou_gain"]
    spread = "" if math.isnan(gain.low) else f" (95 %: {_spread(gain)})"
    lines.append(f"IoU of the prediction minus that of the whole sheet: {gain.mean:+.3f}{spread}")
    return lines


def comparison_lines(
    names: Sequence[str], differences: Mapping[str, PairedDifference]
) -> list[str]:
    """Return both sides' means, their paired differences and how often B is the better one."""
    lines = [f"{letter} = {name}" for letter, name in zip("AB", names, strict=True)]
    head = ("score", "A", "B", "B - A", "95 % interval", "B better in", "Wilcoxon p")
    lines.append("{:<18}{:>8}{:>9}{:>9}{:>20}{:>14}{:>12}".format(*head))
    return lines + [
        _comparison_row(name, differences[name]) for name in COMPARED if name in differences
    ]


def _surface_lines(means: Mapping[str, Interval]) -> list[str]:
    """Return a line on the surfaces; none with --no_surface."""
    if "hd95" not in means:
        return []
    line = f"surfaces: HD95 {means['hd95'].mean:.2f} voxels"
    if not math.isnan(means["hd95_um"].mean):
        line += f" ({means['hd95_um'].mean:.3g} um)"
    return [f"{line}, surface Dice {_shorten(means['surface_dice'].mean)}"]


def _column_lines(
    rows: Mapping[int, Mapping[str, float]], means: Mapping[str, Interval]
) -> list[str]:
    """Return two lines on rendered and left-out columns, and the gaps as their yardstick."""
    lines = []
    for kind, name in (("rendered", "rendered columns"), ("left_out", "left-out columns")):
        count = int(sum(row[f"columns_{kind}"] for row in rows.values()))
        lines.append(
            f"{name}: recall {_shorten(means[f'recall_{kind}'].mean)}; "
            f"{_shorten(means[f'covered_{kind}'].mean)} of them at least half covered ({count} "
            "that lie at least half inside)"
        )
    gaps = _shorten(means["sheet_false_positive_rate"].mean)
    return [*lines, f"gaps between columns: {gaps} of their voxels called column"]


def _table_row(label: str, scores: Mapping[str, float]) -> str:
    columns = ("iou", "baseline_iou", "sheet_iou", "sheet_baseline_iou", "sheet_auc")
    cells = [_shorten(scores[name]) for name in columns]
    widths = (9, 13, 13, 13, 13)
    return f"{label:<11}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))


def _comparison_row(name: str, found: PairedDifference) -> str:
    gap = found.difference
    better = found.a_higher if name in LOWER_IS_BETTER else found.b_higher
    p = "-" if math.isnan(found.p_value) else f"{found.p_value:.2g}"
    difference = "-" if math.isnan(gap.mean) else f"{gap.mean:+.3f}"
    return (
        f"{name.replace('_', ' '):<18}{_shorten(found.a):>8}{_shorten(found.b):>9}"
        f"{difference:>9}{_spread(gap):>20}{f'{better} of {gap.volumes}':>14}{p:>12}"
    )


def _spread(interval: Interval) -> str:
    return "-" if math.isnan(interval.low) else f"{interval.low:+.3f} to {interval.high:+.3f}"


def _shorten(score: float) -> str:
    """Return ``score`` with three decimals, a dash where it is NaN."""
    return "-" if math.isnan(score) else f"{score:.3f}"
