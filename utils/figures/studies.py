"""Studies of hyperparameters: trials in their order, their curves, and the IoU over each flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.figures import canvas
from utils.figures.colours import FALSE_POSITIVE, TRAIN, TRUTH, VALID

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATE_COLOURS = {"complete": TRAIN, "pruned": "#8a8a8a", "running": TRUTH}
"""Colours of trials by their state."""


def save_study(
    trials: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    title: str = "",
    baseline: float | None = None,
) -> Path:
    """Draw a study: every trial in its order, every curve, and the IoU against each flag tried.

    Args:
        trials: one mapping a trial with ``trial`` (its number), ``state`` (complete, pruned, failed
            or running), ``iou`` (the best of its epochs, None where there is none), ``curve`` (the
            IoU of each epoch) and ``values`` (flag: value).
        path: picture to write (format by its suffix).
        title: what the study asks.
        baseline: IoU of a dashed line; None draws none.

    Raises:
        ValueError: no trial.
    """
    if not trials:
        raise UserError("no trial to draw")
    flags = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    grid = _grid_of(trials, flags)
    count = 2 + len(flags) + (grid is not None)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = canvas.new_figure(4.0 * columns, 3.3 * rows + 0.4 * bool(title))
    panels = iter(figure.subplots(rows, columns, squeeze=False).ravel())
    _draw_study_history(next(panels), trials, baseline)
    _draw_study_curves(next(panels), trials, baseline)
    if grid is not None:
        _draw_study_grid(figure, next(panels), *grid)
    for flag in flags:
        _draw_study_slice(next(panels), trials, flag, baseline)
    for unused in panels:
        unused.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11)
    return canvas.save_figure(figure, path)


def _dress(axes: Axes, title: str, x: str, y: str = "validation IoU") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    canvas.style(axes)


def _draw_baseline(axes: Axes, baseline: float | None) -> None:
    if baseline is not None:
        label = f"whole sheet {baseline:.2f}"
        axes.axhline(baseline, **canvas.REFERENCE_LINE, label=label)


def _draw_trials(
    axes: Axes, x: Sequence[float], y: Sequence[float], state: str, label: str | None = None
) -> None:
    """Draw trials of one state as dots, those of pruned ones empty."""
    colour = STATE_COLOURS[state]
    fill = "none" if state == "pruned" else colour
    axes.plot(x, y, "o", color=colour, label=label, markersize=5, mfc=fill)


def _draw_study_history(
    axes: Axes, trials: Sequence[Mapping[str, Any]], baseline: float | None
) -> None:
    """Draw each trial's IoU by its number, failed ones at the bottom, and the best so far."""
    for state in STATE_COLOURS:
        chosen = [t for t in trials if t["state"] == state and t["iou"] is not None]
        if chosen:
            numbers, ious = [t["trial"] for t in chosen], [t["iou"] for t in chosen]
            _draw_trials(axes, numbers, ious, state, label=state)
    failed = [t["trial"] for t in trials if t["state"] == "failed"]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "x", color=FALSE_POSITIVE, label="failed",
                  markersize=5, transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    complete = sorted((t["trial"], t["iou"]) for t in trials if t["state"] == "complete")
    if complete:
        numbers, ious = zip(*complete, strict=True)
        last = max(t["trial"] for t in trials)
        best = [*np.maximum.accumulate(ious), max(ious)]
        axes.step([*numbers, last], best, where="post", color=VALID, lw=1.2, label="best so far")
    _draw_baseline(axes, baseline)
    _dress(axes, "Trials", "trial")
    canvas.count_along_x(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def _draw_study_curves(
    axes: Axes, trials: Sequence[Mapping[str, Any]], baseline: float | None
) -> None:
    """Draw the IoU over the epochs of each trial; the best one stands out."""
    complete = [t for t in trials if t["state"] == "complete"]
    best = max(complete, key=lambda t: t["iou"], default=None)
    for trial in trials:
        epochs = range(1, len(trial["curve"]) + 1)
        pruned = trial["state"] == "pruned"
        axes.plot(epochs, trial["curve"], color="#b5b5b5" if pruned else TRAIN, lw=0.9,
                  alpha=0.9 if pruned else 0.55, marker="." if len(epochs) == 1 else None,
                  zorder=1 if pruned else 2)  # fmt: skip
    if best:
        epochs = range(1, len(best["curve"]) + 1)
        axes.plot(epochs, best["curve"], color=VALID, lw=1.8, zorder=3,
                  marker="." if len(epochs) == 1 else None,
                  label=f"best: trial {best['trial']}")  # fmt: skip
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    _draw_baseline(axes, baseline)
    _dress(axes, "Curves (grey: pruned)", "epoch")
    axes.set_xlim(0.5, max(1, *(len(trial["curve"]) for trial in trials)) + 0.5)
    canvas.count_along_x(axes, min_n_ticks=1)


def _draw_study_slice(
    axes: Axes, trials: Sequence[Mapping[str, Any]], flag: str, baseline: float | None
) -> None:
    """Draw the IoU of complete and pruned trials against a flag; a few values with their mean."""
    chosen = [t for t in trials if t["iou"] is not None and flag in t["values"]]
    values = [t["values"][flag] for t in chosen]
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    few = len(distinct) <= 6 or any(isinstance(v, (str, bool)) for v in distinct)
    places = {value: k for k, value in enumerate(distinct)} if few else {v: v for v in distinct}
    rng = np.random.default_rng(0)  # only to keep equal values apart
    for state in STATE_COLOURS:
        points = [(places[t["values"][flag]], t["iou"]) for t in chosen if t["state"] == state]
        if points:
            x, y = np.array(points, dtype=float).T
            spread = rng.uniform(-0.12, 0.12, len(x)) if few else 0.0
            _draw_trials(axes, x + spread, y, state)
    if few:
        for value in distinct:
            ious = [t["iou"] for t in chosen
                    if t["values"][flag] == value and t["state"] == "complete"]  # fmt: skip
            if ious:
                place = places[value]
                axes.plot([place - 0.3, place + 0.3], [np.mean(ious)] * 2, color="black", lw=1.5)
        axes.set_xticks(range(len(distinct)), [_value_text(v) for v in distinct])
        axes.set_xlim(-0.6, max(len(distinct), 1) - 0.4)
    elif distinct and min(distinct) > 0 and max(distinct) / min(distinct) >= 20:
        axes.set_xscale("log")
    _draw_baseline(axes, baseline)
    _dress(axes, flag, f"{flag} (bar: mean of complete trials)" if few else flag)


def _grid_of(
    trials: Sequence[Mapping[str, Any]], flags: Sequence[str]
) -> tuple[list[str], list[list[Any]], np.ndarray] | None:
    """Return two flags, their values and the mean IoU (rows, columns) when just two are tried.

    Seeds do not count as tried: the mean goes over them.
    """
    names = [flag for flag in flags if flag != "seed"]
    axes = [sorted({t["values"][n] for t in trials if n in t["values"]}, key=str) for n in names]
    axes = [sorted(a) if not any(isinstance(v, str) for v in a) else a for a in axes]
    if len(names) != 2 or not all(2 <= len(values) <= 8 for values in axes):
        return None
    table = np.full((len(axes[0]), len(axes[1])), np.nan)
    for row, first in enumerate(axes[0]):
        for column, second in enumerate(axes[1]):
            ious = [
                t["iou"]
                for t in trials
                if t["state"] == "complete"
                and (t["values"].get(names[0]), t["values"].get(names[1])) == (first, second)
            ]
            if ious:
                table[row, column] = np.mean(ious)
    return None if np.isnan(table).all() else (names, axes, table)


def _draw_study_grid(
    figure: Figure, axes: Axes, names: list[str], values: list[list[Any]], table: np.ndarray
) -> None:
    """Draw a table of IoU as colours and numbers; combinations without one stay empty."""
    shown = axes.imshow(table, cmap="viridis", origin="lower", aspect="auto")
    low, high = np.nanmin(table), np.nanmax(table)
    for (row, column), iou in np.ndenumerate(table):
        if np.isfinite(iou):
            dark = high > low and (iou - low) / (high - low) < 0.6
            axes.text(column, row, f"{iou:.3f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(len(values[1])), [_value_text(v) for v in values[1]])
    axes.set_yticks(range(len(values[0])), [_value_text(v) for v in values[0]])
    canvas.add_colour_bar(figure, shown, axes, 0.85)
    _dress(axes, "Mean IoU of complete trials", names[1], names[0])
    axes.grid(visible=False)


def _value_text(value: Any) -> str:
    """Return a value of a flag for a tick."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
