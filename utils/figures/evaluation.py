"""The pictures of an evaluation, and of two of them compared.

Scores and shares are 0..1; intervals are those of means over volumes. Tables of scores have a row a
volume, tables of means and differences a row a score (``utils.evaluation.tables``).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.evaluation.scoring import ScoredVolume
from utils.evaluation.tables import kinds_of, rank_correlations
from utils.figures import canvas
from utils.figures.learning import save_predictions

CONDITION_WORDS = {
    "gain": "gain (photons per unit; fewer: noisier)",
    "std_intensity": "spread of the columns' log intensity",
    "contrast": "contrast",
    "spacing_voxels": "column spacing (voxels)",
    "curvature": "curvature of the sheet (1 / edge)",
    "foreground": "labelled share of the volume",
}
"""What a score is set against, and what axes say of it."""


def save_evaluation(
    results: Sequence[ScoredVolume], scores: pd.DataFrame, means: pd.DataFrame, folder: Path
) -> list[Path]:
    """Draw the best and worst volumes, recall by column type and the score by conditions.

    Returns the paths of the pictures in ``folder``; that of columns is left out for masks that do
    not tell them apart.
    """
    shown = pick_shown(results)
    images, masks, probabilities = zip(*(result.slices for result in shown.values()), strict=True)
    titles = [
        f"rank {rank} of {len(results)}: "
        f"{result.row.get('stack') or 'volume ' + str(result.row['volume'])}, "
        f"IoU {result.row['iou']:.2f}, z\u00a0=\u00a0{result.z}"
        for rank, result in shown.items()
    ]
    planes = images, masks, probabilities
    paths = [save_predictions(*planes, folder / "predictions.png", titles=titles)]
    if kinds_of(scores):
        paths.append(save_column_recall(scores, means, folder / "columns.png"))
    return [*paths, save_scores_by_condition(scores, folder / "conditions.png")]


def pick_shown(results: Sequence[ScoredVolume]) -> dict[int, ScoredVolume]:
    """Return up to five volumes by rank, from the best IoU (rank 1) in even steps to the worst."""
    ranked = sorted(results, key=lambda result: -result.row["iou"])
    places = np.linspace(0, len(ranked) - 1, min(len(ranked), 5)).round().astype(int)
    return {int(place) + 1: ranked[place] for place in places}


def save_column_recall(scores: pd.DataFrame, means: pd.DataFrame, path: str | Path) -> Path:
    """Draw how much of each type of column was found, with intervals over volumes.

    The share of the gaps' voxels that was called column is drawn as the yardstick.
    """
    kinds = kinds_of(scores)
    words = dict(zip(("left_out", "A", "B", "C"), canvas.TYPE_NAMES, strict=True))
    figure = canvas.new_figure(6.6, 3.8)
    axes = figure.subplots()
    for shift, name, label, colour in (
        (-0.1, "recall", "share of the voxels found (recall)", canvas.TRAIN),
        (0.1, "covered", "share of the columns at least half covered", canvas.VALID),
    ):
        shares = means.loc[[f"{name}_{kind}" for kind in kinds]]
        middle = shares["mean"].to_numpy()
        ends = np.abs(shares[["low", "high"]].to_numpy().T - middle)
        look = {"fmt": "o", "color": colour, "markersize": 4, "capsize": 3, "linewidth": 1.2}
        axes.errorbar(np.arange(len(shares)) + shift, middle, ends, label=label, **look)
    if "sheet_false_positive_rate" in means.index:
        axes.axhline(means.loc["sheet_false_positive_rate", "mean"], **canvas.REFERENCE_LINE,
                     label="share of the gaps between columns called column")  # fmt: skip
    ticks = [f"{words.get(k, k)}\n{scores[f'columns_{k}'].sum():.0f} columns" for k in kinds]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylim(0.0, 1.02)
    axes.set_ylabel("share found, mean over volumes", fontsize=9)
    canvas.style(axes)
    canvas.add_legend_below(figure)
    return canvas.save_figure(figure, path)


def save_scores_by_condition(scores: pd.DataFrame, path: str | Path) -> Path:
    """Draw a dot a volume: its IoU, and that of the whole sheet, over each condition.

    Three panels a row, for those of :data:`CONDITION_WORDS` that are known; titles give Spearman's
    rank correlation.
    """
    known = [condition for condition in CONDITION_WORDS if condition in scores]
    correlations = rank_correlations(scores, "iou", known)
    columns, rows = min(3, len(known)), -(-len(known) // 3)
    figure = canvas.new_figure(1.4 + 3.2 * columns, 3.3 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, condition in zip(panels.flat, known, strict=True):
        for name, label, colour in (
            ("baseline_iou", "whole sheet", "#9a9a9a"),
            ("iou", "prediction", canvas.TRAIN),
        ):
            if name in scores:
                dots = {"color": colour, "markersize": 3.5, "alpha": 0.7, "label": label}
                axes.plot(scores[condition], scores[name], "o", **dots)
        axes.set_xlabel(CONDITION_WORDS[condition], fontsize=9)
        if not np.isnan(correlations[condition]):
            axes.set_title(f"rank correlation {correlations[condition]:+.2f}", fontsize=9)
        axes.set_ylim(0.0, 1.0)
        canvas.style(axes)
    for axes in panels[:, 0]:
        axes.set_ylabel("IoU of a volume", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.add_legend_below(figure, handles=handles, labels=labels, ncols=2)
    return canvas.save_figure(figure, path)


def save_comparison(a: pd.Series, b: pd.Series, path: str | Path, names: Sequence[str]) -> Path:
    """Draw the IoU of B over that of A, both by volume, of the same ones; ``names`` of both."""
    figure = canvas.new_figure(5.0, 4.8)
    axes = figure.subplots()
    axes.axline((a.mean(), a.mean()), slope=1.0, **canvas.REFERENCE_LINE)
    axes.plot(a, b.loc[a.index], "o", color=canvas.TRAIN, markersize=4, alpha=0.75)
    axes.set_aspect("equal", adjustable="datalim")
    for letter, name, put in zip("AB", names, (axes.set_xlabel, axes.set_ylabel), strict=True):
        short = name if len(name) <= 46 else f"...{name[-43:]}"
        put(f"IoU of {letter}: {short}", fontsize=9)
    axes.set_title(f"{len(a)} volumes; above the line B is better", fontsize=10)
    canvas.style(axes)
    return canvas.save_figure(figure, path)
