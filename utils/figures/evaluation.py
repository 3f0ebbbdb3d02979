"""Scores over volumes: by column type, over conditions, and of two predictions compared.

Scores and shares are 0..1; intervals are those of means over volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.figures import canvas
from utils.figures.colours import TRAIN, TYPE_NAMES, VALID

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from utils.evaluation.statistics import Interval

CONDITION_WORDS = {
    "gain": "gain (photons per unit; fewer: noisier)",
    "std_intensity": "spread of the columns' log intensity",
    "contrast": "contrast",
    "spacing_voxels": "column spacing (voxels)",
    "curvature": "curvature of the sheet (1 / edge)",
    "foreground": "labelled share of the volume",
}
"""What axes say of ``Conditions``; of others their own name."""
SCORE_WORDS = {
    "iou": "IoU",
    "dice": "Dice",
    "sheet_iou": "IoU inside the sheet",
    "sheet_auc": "AUC inside the sheet",
    "total_error": "total error (less is better)",
    "surface_dice": "surface Dice",
    "recall_rendered": "recall, rendered columns",
    "recall_left_out": "recall, left-out columns",
}
"""What axes say of scores; others under their own name."""


def save_column_recall(
    recalls: Mapping[str, tuple[Interval, Interval, int]],
    gaps: float,
    path: str | Path,
) -> Path:
    """Draw how much of each type of column was found, with intervals over volumes.

    Args:
        recalls: recall of the voxels, share of columns at least half covered, and number of
            columns, by kind (a key of ``column_recall.KINDS``).
        gaps: share of the gaps' voxels that was called column, drawn as the yardstick; or NaN.
        path: picture to write (format by its suffix).
    """
    words = dict(zip(("left_out", "A", "B", "C"), TYPE_NAMES, strict=True))
    figure = canvas.new_figure(6.6, 3.8)
    axes = figure.subplots()
    for place, label, colour in (
        (0, "share of the voxels found (recall)", TRAIN),
        (1, "share of the columns at least half covered", VALID),
    ):
        shares = [recall[place] for recall in recalls.values()]
        at = np.arange(len(shares)) + 0.2 * place - 0.1
        _draw_intervals(axes, at, shares, colour, label)
    axes.axhline(gaps, **canvas.REFERENCE_LINE,
                 label="share of the gaps between columns called column")  # fmt: skip
    ticks = [f"{words.get(k, k)}\n{recall[2]} columns" for k, recall in recalls.items()]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylim(0.0, 1.02)
    axes.set_ylabel("share found, mean over volumes", fontsize=9)
    canvas.style(axes)
    canvas.add_legend_below(figure)
    return canvas.save_figure(figure, path)


def _draw_intervals(
    axes: Axes,
    at: np.ndarray,
    found: Sequence[Interval],
    colour: str,
    label: str | None = None,
    *,
    lying: bool = False,
) -> None:
    """Draw means as dots over ``at`` (beside, if ``lying``), and their intervals if any as bars."""
    means = np.array([interval.mean for interval in found])
    ends = np.array([(interval.low, interval.high) for interval in found]).reshape(-1, 2).T
    places = (means, at) if lying else (at, means)
    bars = {"xerr" if lying else "yerr": np.abs(ends - means)}
    axes.errorbar(*places, **bars, fmt="o", color=colour, markersize=4, capsize=3, linewidth=1.2,
                  label=label)  # fmt: skip


def save_scores_by_condition(
    scores: Sequence[float],
    baseline: Sequence[float],
    conditions: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    name: str = "IoU",
) -> Path:
    """Draw a dot a volume: its score over each condition, three panels a row.

    A line joins the means of quarters of the volumes, where there are at least 12; titles give
    Spearman's rank correlation.

    Args:
        scores: (n,) of the prediction.
        baseline: (n,) of a mask of the whole sheet.
        conditions: (n,) values by name.
        path: picture to write (format by its suffix).
        name: what the score is called.
    """
    rows = -(-len(conditions) // 3)
    figure = canvas.new_figure(11.0, 3.1 * rows + 0.4)
    panels = figure.subplots(rows, 3, squeeze=False, sharey=True).ravel()
    for axes in panels[len(conditions) :]:
        axes.set_axis_off()
    for axes, (condition, values) in zip(panels, conditions.items(), strict=False):
        x = np.asarray(values, dtype=float)
        _draw_scores(axes, x, np.asarray(baseline, dtype=float), "#9a9a9a", "whole sheet")
        _draw_scores(axes, x, np.asarray(scores, dtype=float), TRAIN, "prediction")
        axes.set_xlabel(CONDITION_WORDS.get(condition, condition.replace("_", " ")), fontsize=9)
        axes.set_title(_correlation_words(x, np.asarray(scores, dtype=float)), fontsize=9)
        axes.set_ylim(0.0, 1.0)
        canvas.style(axes)
    for axes in panels[::3]:
        axes.set_ylabel(f"{name} of a volume", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.add_legend_below(figure, handles=handles, labels=labels, ncols=2)
    return canvas.save_figure(figure, path)


def _draw_scores(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """Draw dots, and a line through the means of quarters if they hold three volumes each."""
    axes.plot(x, y, "o", color=colour, markersize=3.5, alpha=0.7, label=label)
    if len(x) >= 12 and np.ptp(x) > 0:
        quarters = np.array_split(np.argsort(x, kind="stable"), 4)
        axes.plot([x[q].mean() for q in quarters], [y[q].mean() for q in quarters],
                  color=colour, linewidth=1.2)  # fmt: skip


def _correlation_words(x: np.ndarray, y: np.ndarray) -> str:
    from utils.evaluation.statistics import rank_correlation

    correlation = rank_correlation(x, y)
    return "" if np.isnan(correlation) else f"rank correlation {correlation:+.2f}"


def save_comparison(
    a: Sequence[float],
    b: Sequence[float],
    differences: Mapping[str, Interval],
    path: str | Path,
    *,
    names: Sequence[str] = ("A", "B"),
) -> Path:
    """Draw two sets of scores of the same volumes: B over A, and the paired differences.

    Args:
        a: (n,) IoU of A, one a volume.
        b: (n,) IoU of B.
        differences: B - A by score; those of distances (``hd95``) are left out, as they are no
            shares.
        path: picture to write (format by its suffix).
        names: what A and B are.
    """
    figure = canvas.new_figure(10.6, 4.4)
    paired, gaps = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    paired.plot([0, 1], [0, 1], **canvas.REFERENCE_LINE)
    paired.plot(a, b, "o", color=TRAIN, markersize=4, alpha=0.75)
    low, high = min(*a, *b), max(*a, *b)
    margin = 0.05 + 0.05 * (high - low)
    span = (max(0.0, low - margin), min(1.0, high + margin))
    paired.set(xlim=span, ylim=span, aspect="equal")
    for letter, name, put in zip("AB", names, (paired.set_xlabel, paired.set_ylabel), strict=True):
        short = name if len(name) <= 46 else f"...{name[-43:]}"
        put(f"IoU of {letter}: {short}", fontsize=9)
    paired.set_title(f"{len(a)} volumes; above the line B is better", fontsize=10)
    shown = {name: gap for name, gap in differences.items() if not name.startswith("hd95")}
    at = np.arange(len(shown))[::-1]
    _draw_intervals(gaps, at, list(shown.values()), VALID, lying=True)
    gaps.axvline(0.0, **canvas.REFERENCE_LINE)
    gaps.set_yticks(at, [SCORE_WORDS.get(name, name.replace("_", " ")) for name in shown])
    gaps.set_title("B - A, mean over volumes with its 95 % interval", fontsize=10)
    for axes in (paired, gaps):
        canvas.style(axes)
    return canvas.save_figure(figure, path)
