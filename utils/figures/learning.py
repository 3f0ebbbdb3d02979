"""Curves of learning: loss, IoU and rate over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from utils.figures import canvas

WHOLE_SHEET_IOU = 0.44
"""IoU of a mask of the whole sheet in which columns stand: pi 0.35^2 / (sqrt(3) / 2)."""


def save_learning_curves(
    history: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    baseline: float | None = WHOLE_SHEET_IOU,
) -> Path:
    """Draw loss, IoU and learning rate over the epochs of ``history``, records of ``logs.json``.

    A curve skips epochs that lack its key. ``baseline`` is the IoU of a dashed line, that of a mask
    of the whole sheet; None draws none.
    """
    figure = canvas.new_figure(11.0, 3.4)
    loss, iou, rate = figure.subplots(1, 3)
    if baseline is not None:
        iou.axhline(baseline, **canvas.REFERENCE_LINE, label=f"whole sheet {baseline:.2f}")
    for axes, key in ((loss, "loss"), (iou, "iou")):
        _draw_curve(axes, history, f"train_{key}", "training", canvas.TRAIN)
        _draw_curve(axes, history, f"valid_{key}", "validation", canvas.VALID)
        axes.legend(fontsize=8, frameon=False)
    _draw_curve(rate, history, "lr", "learning rate", "#444444")
    iou.set_ylim(0.0, 1.0)
    rate.set_yscale("log")
    for axes, title in ((loss, "Loss"), (iou, "IoU"), (rate, "Learning rate")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        canvas.count_along_x(axes)
        canvas.style(axes)
    return canvas.save_figure(figure, path)


def _draw_curve(
    axes: Axes, history: Sequence[Mapping[str, Any]], key: str, label: str, colour: str
) -> None:
    known = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
    epochs, values = np.reshape(known, (-1, 2)).T
    marker = "o" if len(epochs) <= 30 else None
    axes.plot(epochs, values, color=colour, label=label, marker=marker, markersize=3, lw=1.5)
