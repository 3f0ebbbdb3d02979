"""Curves of learning: loss, IoU and rate over the epochs, and runs compared over the minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.figures import canvas
from utils.figures.colours import TRAIN, VALID

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WHOLE_SHEET_IOU = 0.44
"""IoU of a mask of the whole sheet in which columns stand: pi 0.35^2 / (sqrt(3) / 2)."""


def save_learning_curves(
    history: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    baseline: float | None = WHOLE_SHEET_IOU,
) -> Path:
    """Draw loss, IoU and learning rate over the epochs.

    Args:
        history: one mapping an epoch with ``epoch``, ``train_loss``, ``valid_loss``, ``train_iou``,
            ``valid_iou`` and ``lr``; a curve skips epochs that lack its key.
        path: picture to write (format by its suffix).
        baseline: IoU of a dashed line, that of a mask of the whole sheet; None draws none.
    """
    figure = canvas.new_figure(11.0, 3.4)
    loss, iou, rate = figure.subplots(1, 3)
    for axes, key in ((loss, "loss"), (iou, "iou")):
        _draw_curve(axes, history, f"train_{key}", "training", TRAIN)
        _draw_curve(axes, history, f"valid_{key}", "validation", VALID)
    _draw_curve(rate, history, "lr", "learning rate", "#444444")
    if baseline is not None:
        iou.axhline(baseline, **canvas.REFERENCE_LINE)
        label = f"whole sheet {baseline:.2f}"
        iou.annotate(label, (0.99, baseline), xycoords=("axes fraction", "data"), fontsize=8,
                     ha="right", va="bottom", color="#555555")  # fmt: skip
    iou.set_ylim(0.0, 1.0)
    if any(record.get("lr", 0) > 0 for record in history):
        rate.set_yscale("log")
    for axes, title in ((loss, "Loss"), (iou, "IoU"), (rate, "Learning rate")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        canvas.count_along_x(axes)
        canvas.style(axes)
    for axes in (loss, iou):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return canvas.save_figure(figure, path)


def _draw_curve(
    axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, colour: str
) -> None:
    known = [
        (r.get("epoch", i + 1), r[key]) for i, r in enumerate(history) if r.get(key) is not None
    ]
    if known:
        epochs, values = zip(*known, strict=True)
        marker = "o" if len(epochs) <= 30 else None
        axes.plot(epochs, values, color=colour, label=label, marker=marker, markersize=3, lw=1.5)


def save_learning_comparison(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    path: str | Path,
    *,
    baseline: float = WHOLE_SHEET_IOU,
) -> Path:
    """Draw the IoU on unseen volumes over the minutes of training, a curve a run.

    Args:
        curves: by a run's name its scored checkpoints: minutes, mean IoU, and the ends of the
            mean's interval (NaN for none).
        path: picture to write (format by its suffix).
        baseline: IoU of a dashed line, that of a mask of the whole sheet.
    """
    from matplotlib import colormaps

    figure = canvas.new_figure(6.6, 4.2)
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        minutes, iou, low, high = np.array(points, dtype=float).reshape(-1, 4).T
        colour = colormaps["tab10"](number % 10)
        axes.plot(minutes, iou, color=colour, marker="o", markersize=3, lw=1.5, label=name)
        axes.fill_between(minutes, low, high, color=colour, alpha=0.12, linewidth=0)
    label = f"mask of the whole sheet {baseline:.2f}"
    axes.axhline(baseline, **canvas.REFERENCE_LINE, label=label)
    axes.set_xlim(left=0.0)
    axes.set_title("IoU on whole unseen volumes, 95 % intervals over volumes", fontsize=10)
    axes.set_xlabel("minutes of training", fontsize=9)
    axes.set_ylabel("IoU, mean over volumes", fontsize=9)
    canvas.style(axes)
    axes.legend(fontsize=8, frameon=False)
    return canvas.save_figure(figure, path)
