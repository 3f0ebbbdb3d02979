"""Pictures: learning curves, predictions, and stills of simulated volumes and images.

The only module that imports matplotlib, without pyplot (the Agg canvas); animations are drawn in
utils/animations.py. Slices of volumes show x to the right and y upwards; lengths are voxels, or
pixels in 2D. Fluorescence is blue, masks are red. Every picture is written whole or not at all.
matplotlib is imported by the first figure, so that importing this module and
``python -m utils.figures --help`` cost nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.flags import voxel_ranges
from utils.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from utils.prediction.statistics import Interval
    from utils.simulation import SimulatedVolume

WHOLE_SHEET_IOU = 0.44
"""IoU of a mask of the whole sheet in which columns stand: pi 0.35^2 / (sqrt(3) / 2)."""
BLUE_RAMP = ((0.0, 0.0, 0.0), (0.03, 0.16, 0.62), (0.22, 0.55, 1.0), (0.86, 0.96, 1.0))
"""Fluorescence from dark to bright, equal steps apart."""
MASK_RED = (0.93, 0.18, 0.16)
TRAIN, VALID, TRUTH = "#3b6fb6", "#d1495b", "#ffb000"
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#3ddc84", "#ff4d4d", "#4da3ff"
TYPE_NAMES = ("left out", "A (dense)", "B (clumped)", "C (ring)")
"""Names of column types 0..3."""
TYPE_COLOURS = ("#8a8a8a", "#3b6fb6", "#e08e0b", "#2a9d5c")
STUDY_MARKS = (("complete", TRAIN, "o"), ("pruned", "#8a8a8a", "o"), ("running", TRUTH, "o"))
"""State of a trial, its colour and marker."""
LATTICE_GREY, NEURITE_VIOLET = "#777777", "#9a7fd1"


# Shared pieces ----------------------------------------------------------------------------------


def _new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of ``width`` x ``height`` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def _save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write ``figure`` whole or not at all; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    return path


def scale_to_display(image: np.ndarray, low: float = 1.0, high: float = 99.0) -> np.ndarray:
    """Return ``image`` clipped and scaled to 0..1 between two percentiles of it, float32."""
    bottom, top = np.percentile(image, [low, high])
    if top <= bottom:
        return np.zeros(image.shape, dtype=np.float32)
    return np.clip((image - bottom) / (top - bottom), 0.0, 1.0).astype(np.float32)


def blue(brightness: np.ndarray) -> np.ndarray:
    """Return the fluorescence colours (..., 3) float32 in 0..1 of ``brightness`` (...) in 0..1."""
    steps = np.linspace(0.0, 1.0, len(BLUE_RAMP))
    channels = [np.interp(brightness, steps, channel) for channel in np.transpose(BLUE_RAMP)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _blue_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("fluorescence", BLUE_RAMP)


def densest_slice(mask: np.ndarray) -> int:
    """Return the z of ``mask`` (X, Y, Z) with most labelled voxels (the first of several)."""
    return int(np.argmax(np.count_nonzero(mask, axis=(0, 1))))


def _show(axes: Axes, image: np.ndarray, **options: Any) -> Any:
    """Draw ``image`` (X, Y) or (X, Y, 3) with x to the right and y upwards."""
    shown = axes.imshow(
        np.swapaxes(image, 0, 1), origin="lower", interpolation="nearest", **options
    )
    axes.tick_params(labelsize=7)
    return shown


def _outline(axes: Axes, mask: np.ndarray, colour: str, width: float = 0.8) -> None:
    """Draw the outline of ``mask`` (X, Y); an empty or full one has none."""
    if mask.any() and not mask.all():
        axes.contour(mask.T.astype(float), levels=[0.5], colors=[colour], linewidths=width)


# Training and prediction ------------------------------------------------------------------------


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
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(11.0, 3.4)
    loss, iou, rate = figure.subplots(1, 3)
    for axes, key in ((loss, "loss"), (iou, "iou")):
        _draw_curve(axes, history, f"train_{key}", "training", TRAIN)
        _draw_curve(axes, history, f"valid_{key}", "validation", VALID)
    _draw_curve(rate, history, "lr", "learning rate", "#444444")
    if baseline is not None:
        iou.axhline(baseline, color="#777777", linestyle="--", linewidth=1)
        label = f"whole sheet {baseline:.2f}"
        iou.annotate(label, (0.99, baseline), xycoords=("axes fraction", "data"), fontsize=8,
                     ha="right", va="bottom", color="#555555")  # fmt: skip
    iou.set_ylim(0.0, 1.0)
    if any(record.get("lr", 0) > 0 for record in history):
        rate.set_yscale("log")
    for axes, title in ((loss, "Loss"), (iou, "IoU"), (rate, "Learning rate")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in (loss, iou):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return _save_figure(figure, path)


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

    figure = _new_figure(6.6, 4.2)
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        minutes, iou, low, high = np.array(points, dtype=float).reshape(-1, 4).T
        colour = colormaps["tab10"](number % 10)
        axes.plot(minutes, iou, color=colour, marker="o", markersize=3, lw=1.5, label=name)
        axes.fill_between(minutes, low, high, color=colour, alpha=0.12, linewidth=0)
    label = f"mask of the whole sheet {baseline:.2f}"
    axes.axhline(baseline, color="#777777", linestyle="--", linewidth=1, label=label)
    axes.set_xlim(left=0.0)
    axes.set_title("IoU on whole unseen volumes, 95 % intervals over volumes", fontsize=10)
    axes.set_xlabel("minutes of training", fontsize=9)
    axes.set_ylabel("IoU, mean over volumes", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    return _save_figure(figure, path)


def save_predictions(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    path: str | Path,
    titles: Sequence[str] | None = None,
    *,
    slices: Sequence[int] | None = None,
) -> Path:
    """Draw a row a sample: image, truth on the image, probability, and where the two differ.

    Args:
        images: (X, Y) or (X, Y, Z) arrays, scaled between their own 1st and 99th percentile.
        masks: truth of the same shapes, 0/1.
        probabilities: of the same shapes, 0..1; the overlay cuts them at 0.5.
        path: picture to write (format by its suffix).
        titles: a name for each row.
        slices: z of each row; by default that with most labelled voxels. The row says it.

    Raises:
        ValueError: nothing to draw, or the lists or shapes do not match.
    """
    if not images or not len(images) == len(masks) == len(probabilities):
        raise ValueError(
            f"{len(images)} images, {len(masks)} masks and {len(probabilities)} probabilities: "
            "as many of each are needed, and at least one"
        )
    count = len(images)
    figure = _new_figure(11.4, 2.9 * count + 0.5)
    grid = figure.subplots(count, 4, squeeze=False)
    for row in range(count):
        title = titles[row] if titles else f"sample {row + 1}"
        z = slices[row] if slices is not None else None
        planes = _planes(images[row], masks[row], probabilities[row], z)
        shown = _draw_prediction_row(grid[row], planes[:3], f"{title}{planes[3]}")
        bar = figure.colorbar(shown, ax=grid[row, 2], shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=7)
    _add_overlay_legend(figure)
    return _save_figure(figure, path)


def _planes(
    image: np.ndarray, mask: np.ndarray, probability: np.ndarray, z: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Return scaled image, mask and probability of one slice, and words that say which."""
    if not image.shape == mask.shape == probability.shape or image.ndim not in (2, 3):
        raise ValueError(
            f"image {image.shape}, mask {mask.shape}, probability {probability.shape}: "
            "equal shapes of two or three axes are needed"
        )
    image = scale_to_display(image)
    if image.ndim == 2:
        return image, mask, probability, ""
    z = densest_slice(mask) if z is None else z
    return image[..., z], mask[..., z], probability[..., z], f", z = {z} of {image.shape[2]}"


def _draw_prediction_row(
    row: Sequence[Axes], planes: tuple[np.ndarray, np.ndarray, np.ndarray], title: str
) -> Any:
    """Draw the four panels of a sample; returns the probability's mappable for its colour bar."""
    image, mask, probability = planes
    picture, truth, chance, overlay = row
    _show(picture, image, cmap=_blue_map(), vmin=0, vmax=1)
    _show(truth, image, cmap=_blue_map(), vmin=0, vmax=1)
    _outline(truth, mask, TRUTH)
    shown = _show(chance, probability, cmap="magma", vmin=0, vmax=1)
    _show(overlay, _compare(image, mask, probability))
    predicted, true = probability >= 0.5, mask >= 0.5
    union = np.count_nonzero(predicted | true)
    iou = np.count_nonzero(predicted & true) / union if union else 1.0
    words = ("fluorescence", "truth", "probability", f"prediction, IoU in the slice {iou:.2f}")
    for axes, word in zip(row, words, strict=True):
        axes.set_title(word, fontsize=9)
    lines = [*textwrap.wrap(title, 36), "y (voxels)"]
    picture.set_ylabel("\n".join(lines), fontsize=8)
    for axes in row:
        axes.set_xlabel("x (voxels)", fontsize=7)
    return shown


def _compare(image: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return (X, Y, 3): the grey image with true and false positives and false negatives on it."""
    from matplotlib.colors import to_rgb

    predicted, true = probability >= 0.5, mask >= 0.5
    colours = np.repeat(image[..., None] * 0.75, 3, axis=2)
    for where, colour in (
        (predicted & true, TRUE_POSITIVE),
        (predicted & ~true, FALSE_POSITIVE),
        (~predicted & true, FALSE_NEGATIVE),
    ):
        colours[where] = 0.45 * colours[where] + 0.55 * np.array(to_rgb(colour))
    return colours


def comparison_strip(image: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return fluorescence, truth, probability and their comparison side by side, as one picture.

    Args:
        image: (X, Y) or (X, Y, Z), scaled between its own 1st and 99th percentile.
        mask: truth of the same shape, 0/1.
        probability: of the same shape, 0..1; the comparison cuts it at 0.5.

    Returns:
        (Y, 4 X + gaps, 3) uint8, x to the right and y upwards; of a volume the slice with most
        labelled voxels.
    """
    image, mask, probability, _ = _planes(image, mask, probability, None)
    grey = [np.repeat(plane[..., None], 3, axis=2) for plane in (mask, probability)]
    panels = [blue(image), *grey, _compare(image, mask, probability)]
    gap = np.ones((max(1, image.shape[0] // 32), image.shape[1], 3))
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    strip = np.swapaxes(np.concatenate(parts), 0, 1)[::-1]
    return np.round(255 * np.clip(strip, 0.0, 1.0)).astype(np.uint8)


def _add_overlay_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Patch(color=TRUE_POSITIVE, label="found (true positive)"),
            Patch(color=FALSE_POSITIVE, label="false positive"),
            Patch(color=FALSE_NEGATIVE, label="missed (false negative)"),
            Patch(facecolor="none", edgecolor=TRUTH, label="outline of the truth"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )


# Scores over volumes ------------------------------------------------------------------------------


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
    figure = _new_figure(6.6, 3.8)
    axes = figure.subplots()
    for place, label, colour in (
        (0, "share of the voxels found (recall)", TRAIN),
        (1, "share of the columns at least half covered", VALID),
    ):
        shares = [recall[place] for recall in recalls.values()]
        at = np.arange(len(shares)) + 0.2 * place - 0.1
        _draw_intervals(axes, at, shares, colour, label)
    axes.axhline(gaps, color="#777777", linestyle="--", linewidth=1,
                 label="share of the gaps between columns called column")  # fmt: skip
    ticks = [f"{words.get(k, k)}\n{recall[2]} columns" for k, recall in recalls.items()]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_ylim(0.0, 1.02)
    axes.set_ylabel("share found, mean over volumes", fontsize=9)
    _style_scores(axes)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return _save_figure(figure, path)


def _draw_intervals(
    axes: Axes, at: np.ndarray, found: Sequence[Interval], colour: str, label: str
) -> None:
    """Draw means as dots over ``at`` and their intervals as bars, where there are any."""
    means = np.array([interval.mean for interval in found])
    ends = np.array([(interval.low, interval.high) for interval in found]).T
    axes.errorbar(at, means, yerr=np.abs(ends - means), fmt="o", color=colour, markersize=4,
                  capsize=3, linewidth=1.2, label=label)  # fmt: skip


def _style_scores(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


CONDITION_WORDS = {
    "gain": "gain (photons per unit; fewer: noisier)",
    "std_intensity": "spread of the columns' log intensity",
    "contrast": "contrast",
    "spacing_voxels": "column spacing (voxels)",
    "curvature": "curvature of the sheet (1 / edge)",
    "foreground": "labelled share of the volume",
}
"""What axes say of ``Conditions`` and scores."""


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
    figure = _new_figure(11.0, 3.1 * rows + 0.4)
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
        _style_scores(axes)
    for axes in panels[::3]:
        axes.set_ylabel(f"{name} of a volume", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return _save_figure(figure, path)


def _draw_scores(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """Draw dots, and a line through the means of quarters if they hold three volumes each."""
    axes.plot(x, y, "o", color=colour, markersize=3.5, alpha=0.7, label=label)
    if len(x) >= 12 and np.ptp(x) > 0:
        quarters = np.array_split(np.argsort(x, kind="stable"), 4)
        axes.plot([x[q].mean() for q in quarters], [y[q].mean() for q in quarters],
                  color=colour, linewidth=1.2)  # fmt: skip


def _correlation_words(x: np.ndarray, y: np.ndarray) -> str:
    from utils.prediction.statistics import rank_correlation

    correlation = rank_correlation(x, y)
    return "" if np.isnan(correlation) else f"rank correlation {correlation:+.2f}"


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
    figure = _new_figure(10.6, 4.4)
    paired, gaps = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    paired.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1)
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
    means = np.array([gap.mean for gap in shown.values()])
    ends = np.array([(gap.low, gap.high) for gap in shown.values()]).reshape(-1, 2).T
    gaps.errorbar(means, at, xerr=np.abs(ends - means), fmt="o", color=VALID, markersize=4,
                  capsize=3, linewidth=1.2)  # fmt: skip
    gaps.axvline(0.0, color="#777777", linestyle="--", linewidth=1)
    gaps.set_yticks(at, [SCORE_WORDS.get(name, name.replace("_", " ")) for name in shown])
    gaps.set_title("B - A, mean over volumes with its 95 % interval", fontsize=10)
    for axes in (paired, gaps):
        _style_scores(axes)
    return _save_figure(figure, path)


# Studies of hyperparameters -----------------------------------------------------------------------


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
        raise ValueError("no trial to draw")
    flags = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    grid = _grid_of(trials, flags)
    count = 2 + len(flags) + (grid is not None)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = _new_figure(4.0 * columns, 3.3 * rows + 0.4 * bool(title))
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
    return _save_figure(figure, path)


def _dress(axes: Axes, title: str, x: str, y: str = "validation IoU") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _draw_baseline(axes: Axes, baseline: float | None) -> None:
    if baseline is not None:
        label = f"whole sheet {baseline:.2f}"
        axes.axhline(baseline, color="#777777", linestyle="--", linewidth=1, label=label)


def _draw_study_history(
    axes: Axes, trials: Sequence[Mapping[str, Any]], baseline: float | None
) -> None:
    """Draw each trial's IoU by its number, failed ones at the bottom, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    for state, colour, marker in STUDY_MARKS:
        chosen = [t for t in trials if t["state"] == state and t["iou"] is not None]
        if chosen:
            numbers, ious = [t["trial"] for t in chosen], [t["iou"] for t in chosen]
            axes.plot(numbers, ious, marker, color=colour, label=state, markersize=5, mfc="none" if
                      state == "pruned" else colour)  # fmt: skip
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)


def _draw_study_curves(
    axes: Axes, trials: Sequence[Mapping[str, Any]], baseline: float | None
) -> None:
    """Draw the IoU over the epochs of each trial; the best one stands out."""
    from matplotlib.ticker import MaxNLocator

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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


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
    for state, colour, marker in STUDY_MARKS:
        points = [(places[t["values"][flag]], t["iou"]) for t in chosen if t["state"] == state]
        if points:
            x, y = np.array(points, dtype=float).T
            spread = rng.uniform(-0.12, 0.12, len(x)) if few else 0.0
            axes.plot(x + spread, y, marker, color=colour, markersize=5, mfc="none" if
                      state == "pruned" else colour)  # fmt: skip
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
    bar = figure.colorbar(shown, ax=axes, shrink=0.85, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    _dress(axes, "Mean IoU of complete trials", names[1], names[0])
    axes.grid(visible=False)


def _value_text(value: Any) -> str:
    """Return a value of a flag for a tick."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# Stills of simulated samples ----------------------------------------------------------------------


def save_column_types(
    volume: SimulatedVolume, path: str | Path, *, columns: Sequence[int] | None = None
) -> Path:
    """Draw a column of each type, left-out one included: cut along its axis and across its middle.

    Args:
        volume: sample that holds all four types; a fine one (256 voxels an edge) shows most.
        path: picture to write (format by its suffix).
        columns: index of a column for A, B, C and left out; by default those that lie deepest
            inside the cube.

    Raises:
        ValueError: the sample lacks a type.
    """
    order = (1, 2, 3, 0)
    if columns is None:
        columns = [_innermost_column(volume, kind) for kind in order]
    image = scale_to_display(volume.image, 1.0, 99.7)
    figure = _new_figure(9.6, 6.4)
    grid = figure.subplots(2, len(order), height_ratios=(1.45, 1.0))
    for column, kind, (along, across) in zip(columns, order, grid.T, strict=True):
        _draw_column_cuts(along, across, volume, image, column)
        along.set_title(TYPE_NAMES[kind], fontsize=11, color=TYPE_COLOURS[kind])
    grid[0, 0].set_ylabel("along the axis (voxels)", fontsize=9)
    grid[1, 0].set_ylabel("across (voxels)", fontsize=9)
    figure.supxlabel(
        "distance from the axis (voxels); dashed: the label's cone; 0 along the axis: entry point",
        fontsize=9,
    )
    return _save_figure(figure, path)


def _innermost_column(volume: SimulatedVolume, kind: int) -> int:
    """Return the column of a type whose cone stays farthest from the cube's faces."""
    of_kind = np.flatnonzero(volume.column_type == kind)
    if not len(of_kind):
        raise ValueError(f"the sample has no column of type {TYPE_NAMES[kind]}")
    ends = volume.entry_points + volume.parameters.cone_length * volume.e_r
    points = np.stack([volume.entry_points, ends])
    margin = np.minimum(points, 1.0 - points).min(axis=(0, 2))
    return int(of_kind[np.argmax(margin[of_kind])])


def _draw_column_cuts(
    along: Axes, across: Axes, volume: SimulatedVolume, image: np.ndarray, column: int
) -> None:
    """Draw ``image`` on the plane of a column's axis and e_phi, and on one across its middle."""
    edge, parameters = image.shape[0], volume.parameters
    axis = volume.e_r[column].astype(float)
    length = parameters.cone_length * float(np.linalg.norm(axis)) * edge
    axis /= np.linalg.norm(axis)
    side = volume.e_phi[column] - volume.e_phi[column] @ axis * axis
    side /= np.linalg.norm(side)
    radius = parameters.cone_radius * float(np.linalg.norm(volume.e_phi[column])) * edge
    outer = parameters.cone_taper * radius
    spacing = parameters.spacing * edge
    half, low, high = 1.1 * spacing, -0.5 * spacing, 2.7 * spacing
    entry = volume.entry_points[column]
    options = {"cmap": _blue_map(), "vmin": 0, "vmax": 1}
    cut = _plane(image, entry, (side, axis), (-half, half), (low, high))
    _show(along, cut, extent=(-half, half, low, high), **options)
    outline = np.array([[-radius, 0], [radius, 0], [outer, length], [-outer, length], [-radius, 0]])
    along.plot(*outline.T, color=TRUTH, linestyle="--", linewidth=1.2)
    middle = entry + axis * length / 2 / edge
    cut = _plane(image, middle, (side, np.cross(axis, side)), (-half, half), (-half, half))
    _show(across, cut, extent=(-half, half, -half, half), **options)
    turn = np.linspace(0.0, 2.0 * np.pi, 100)
    mean = (radius + outer) / 2
    across.plot(mean * np.cos(turn), mean * np.sin(turn), color=TRUTH, linestyle="--", lw=1.2)


def _plane(
    image: np.ndarray,
    origin: np.ndarray,
    directions: tuple[np.ndarray, np.ndarray],
    first: tuple[float, float],
    second: tuple[float, float],
) -> np.ndarray:
    """Return ``image`` on a plane, four samples a voxel, 0 outside the volume.

    Args:
        image: (X, Y, Z).
        origin: (3,) in cube units.
        directions: two unit vectors (3,).
        first: range along the first direction from the origin, in voxels.
        second: range along the second direction.
    """
    from scipy import ndimage

    u = np.arange(first[0], first[1], 0.25) + 0.125
    v = np.arange(second[0], second[1], 0.25) + 0.125
    start = origin * np.array(image.shape) - 0.5
    at = (
        start[:, None, None]
        + directions[0][:, None, None] * u[:, None]
        + directions[1][:, None, None] * v
    )
    return ndimage.map_coordinates(image, at, order=1, mode="constant")


def save_samples_panel(
    volumes: Sequence[SimulatedVolume], path: str | Path, titles: Sequence[str] | None = None
) -> Path:
    """Draw samples, two a row: the slice with most labels and its outline, and the projection.

    Args:
        volumes: samples to show.
        path: picture to write (format by its suffix).
        titles: a name for each sample.
    """
    rows = -(-len(volumes) // 2)
    figure = _new_figure(11.4, 2.75 * rows + 0.3)
    grid = figure.subplots(rows, 4, squeeze=False)
    for pair in grid.reshape(-1, 2)[len(volumes) :]:
        for axes in pair:
            axes.set_axis_off()
    for k, (volume, pair) in enumerate(zip(volumes, grid.reshape(-1, 2), strict=False)):
        image, mask = scale_to_display(volume.image), volume.mask
        z = densest_slice(mask)
        _show(pair[0], image[..., z], cmap=_blue_map(), vmin=0, vmax=1)
        _outline(pair[0], mask[..., z], TRUTH, 0.6)
        bright = scale_to_display(volume.image.max(axis=2), 1.0, 99.5)
        _show(pair[1], bright, cmap=_blue_map(), vmin=0, vmax=1)
        name = titles[k] if titles else f"sample {k}"
        pair[0].set_title(f"{name}: z = {z}, outline of the mask", fontsize=8)
        count = len(np.unique(volume.instances)) - 1
        pair[1].set_title(f"maximum along z, {count} columns seen", fontsize=8)
    figure.supxlabel("x (voxels)", fontsize=8)
    figure.supylabel("y (voxels)", fontsize=8)
    return _save_figure(figure, path)


def draw_image_sample(
    image: np.ndarray, mask: np.ndarray, centres: np.ndarray, title: str = ""
) -> Image.Image:
    """Return a picture of a 2D sample: image, mask, and centres and outlines on the image.

    Args:
        image: (X, Y), 0..1.
        mask: (X, Y), 0/1.
        centres: (n, 2) in pixels; the first pixel reaches from 0 to 1.
        title: words at the top.
    """
    from PIL import Image

    figure = _new_figure(10.0, 3.7)
    plain, labels, both = figure.subplots(1, 3)
    for axes in (plain, both):
        _show_pixels(axes, image, cmap=_blue_map(), vmin=0, vmax=1)
    _show_pixels(labels, mask, cmap=_red_map(), vmin=0, vmax=1)
    _draw_centres(both, mask, centres)
    for axes, words in zip((plain, labels, both), ("image", "mask", "centres"), strict=True):
        axes.set_title(words, fontsize=10)
        axes.set_xlabel("x (pixels)", fontsize=8)
    plain.set_ylabel("y (pixels)", fontsize=8)
    figure.suptitle(title, fontsize=10)
    memory = io.BytesIO()
    figure.savefig(memory, dpi=70)
    with Image.open(memory) as picture:
        return picture.convert("RGB")


def save_image_samples(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    centres: Sequence[np.ndarray],
    path: str | Path,
) -> Path:
    """Draw 2D samples, four a row, each as its image beside it with outlines and centres.

    Arguments are lists of those of :func:`draw_image_sample`; ``path`` is the picture to write.
    """
    rows = -(-len(images) // 4)
    figure = _new_figure(12.0, 1.6 * rows)
    pairs = figure.subplots(rows, 8, squeeze=False).reshape(-1, 2)
    for axes in pairs.ravel():
        axes.set_axis_off()
    for image, mask, points, pair in zip(images, masks, centres, pairs, strict=False):
        for axes in pair:
            _show_pixels(axes, image, cmap=_blue_map(), vmin=0, vmax=1)
        _draw_centres(pair[1], mask, points)
    return _save_figure(figure, path, dpi=75)


def _show_pixels(axes: Axes, image: np.ndarray, **options: Any) -> None:
    """Show ``image`` (X, Y) on axes in pixels: the first reaches from 0 to 1."""
    _show(axes, image, extent=(0, image.shape[0], 0, image.shape[1]), **options)


def _draw_centres(axes: Axes, mask: np.ndarray, centres: np.ndarray) -> None:
    x, y = (np.arange(edge) + 0.5 for edge in mask.shape)
    axes.contour(x, y, mask.T, levels=[0.5], colors=[TRUTH], linewidths=0.6)
    axes.plot(*centres.T, ".", color="white", markersize=2.5)


def _red_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("mask", ((0.0, 0.0, 0.0), MASK_RED))


def save_geometry(volume: SimulatedVolume, path: str | Path, *, title: str = "") -> Path:
    """Draw the geometry in 3D from two sides: lattice, columns by type, neurites, the cube.

    Args:
        volume: sample to show.
        path: picture to write (format by its suffix).
        title: words at the top, such as the sample's name.
    """
    from matplotlib.lines import Line2D

    figure = _new_figure(11.4, 5.9)
    for k, azimuth in enumerate((-60.0, 30.0)):
        axes = figure.add_subplot(1, 2, k + 1, projection="3d")
        _draw_geometry(axes, volume)
        axes.view_init(elev=22.0, azim=azimuth)
    figure.suptitle(
        f"{title}{': ' if title else ''}{len(volume.entry_points)} columns, "
        f"spacing {volume.parameters.spacing:.3f} of the cube's edge",
        fontsize=10,
    )
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=name)
        for name, colour in zip(TYPE_NAMES, TYPE_COLOURS, strict=True)
    ]
    handles.append(Line2D([], [], color=LATTICE_GREY, label="lattice neighbours"))
    handles.append(Line2D([], [], color=NEURITE_VIOLET, linewidth=0.6, label="neurites"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return _save_figure(figure, path)


def _draw_geometry(axes: Any, volume: SimulatedVolume) -> None:
    """Draw lattice edges, column axes, entry points, neurites and the unit cube."""
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    entry = volume.entry_points
    ends = entry + volume.parameters.cone_length * volume.e_r
    for lines, colours, width in (
        (entry[volume.lattice_neighbours], LATTICE_GREY, 0.7),
        (_neurite_curves(volume.control_points), NEURITE_VIOLET, 0.25),
        (np.stack([entry, ends], axis=1), [TYPE_COLOURS[k] for k in volume.column_type], 2.2),
        (_cube_edges(), "#333333", 0.8),
    ):
        if len(lines):
            collection = Line3DCollection(lines, colors=colours, linewidths=width, axlim_clip=True)
            axes.add_collection3d(collection)
    axes.scatter(*entry.T, c=[TYPE_COLOURS[k] for k in volume.column_type], s=5, depthshade=False)
    axes.set(
        xlim=(-0.2, 1.2), ylim=(-0.2, 1.2), zlim=(-0.2, 1.2), xlabel="x", ylabel="y", zlabel="z"
    )
    axes.set_box_aspect((1, 1, 1))
    axes.tick_params(labelsize=7)


def _neurite_curves(control_points: np.ndarray, steps: int = 40) -> np.ndarray:
    """Return the neurites' (N, T, 3) points of ``control_points`` (4, N, 3)."""
    from utils.simulation.neurites import evaluate_curves

    return evaluate_curves(control_points, np.linspace(0.0, 1.0, steps))


def _cube_edges() -> np.ndarray:
    """Return the (12, 2, 3) edges of the unit cube."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    pairs = [(a, b) for a in range(8) for b in range(a) if abs(corners[a] - corners[b]).sum() == 1]
    return corners[np.array(pairs)]


# Stacks from a microscope -------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlay:
    """One plane of a stack and what a network found in it."""

    image: np.ndarray
    """(X, Y) grey values."""
    mask: np.ndarray
    """(X, Y) 0/1."""
    title: str
    image_note: str = ""
    """Words below the image."""
    mask_note: str = ""
    """Words below the image with the mask."""


def save_overlays(
    rows: Sequence[Sequence[Overlay]],
    path: str | Path,
    *,
    spacing: tuple[float, float] | None = None,
    step: float = 1.0,
    caption: str = "",
) -> Path:
    """Draw planes, each beside itself with the mask on it, and a scale bar; y downwards as in Fiji.

    Args:
        rows: overlays from left to right; as many in each row.
        path: picture to write (format by its suffix).
        spacing: edge of a voxel along x and y in micrometres; None counts in voxels.
        step: voxels a pixel of the image, at least 1: larger ones show the image coarser than it
            is, for data that must not be passed on. The mask is drawn as it is.
        caption: words below.

    Raises:
        ValueError: no planes, rows of different lengths, a mask of another shape than its image,
            or a step below 1.
    """
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError("at least one plane, and as many in each row, are needed")
    if not step >= 1:
        raise ValueError(f"step {step}: must be at least 1 voxel a pixel")
    for overlay in (overlay for row in rows for overlay in row):
        if overlay.image.shape != overlay.mask.shape:
            raise ValueError(
                f"{overlay.title}: image {overlay.image.shape} and mask {overlay.mask.shape} differ"
            )
    figure = _new_figure(5.2 * len(rows[0]), 2.6 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), 2 * len(rows[0]), squeeze=False)
    for row, places in zip(rows, grid, strict=True):
        for k, overlay in enumerate(row):
            _draw_overlay(places[2 * k : 2 * k + 2], overlay, spacing, step)
    if caption:
        figure.supxlabel("\n".join(textwrap.wrap(caption, int(62 * len(rows[0])))), fontsize=8)
    return _save_figure(figure, path)


def _draw_overlay(
    places: Sequence[Axes], overlay: Overlay, spacing: tuple[float, float] | None, step: float
) -> None:
    """Draw the image, and the image in grey with the mask in red."""
    from utils.prediction.resampling import Resampling, scaled_shape

    image = overlay.image.astype(np.float32)
    shape = scaled_shape(image.shape, (1 / step, 1 / step))
    if shape != image.shape:
        image = Resampling.between(image.shape, shape).apply(image, 0, 0, shape[1])
    image = scale_to_display(image, 1.0, 99.5)
    edges = spacing or (1.0, 1.0)
    width, height = (n * edge for n, edge in zip(overlay.image.shape, edges, strict=True))
    placed = {"origin": "upper", "extent": (0, width, height, 0)}
    smooth = "nearest" if step == 1 else "bicubic"
    colours = np.zeros((*overlay.mask.shape, 4), np.float32)
    colours[overlay.mask > 0] = (*MASK_RED, 0.55)
    plain, marked = places
    plain.imshow(image.T, cmap=_blue_map(), vmin=0, vmax=1, interpolation=smooth, **placed)
    marked.imshow(image.T, cmap="gray", vmin=0, vmax=1.2, interpolation=smooth, **placed)
    marked.imshow(colours.swapaxes(0, 1), interpolation="nearest", **placed)
    plain.set_title(overlay.title, fontsize=9)
    marked.set_title("prediction", fontsize=9)
    plain.set_xlabel(overlay.image_note, fontsize=8)
    marked.set_xlabel(overlay.mask_note, fontsize=8)
    for axes in places:
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    _draw_scale_bar(plain, width, height, "voxels" if spacing is None else "\u00b5m")


def _draw_scale_bar(axes: Axes, width: float, height: float, unit: str) -> None:
    """Draw a bar of a round length, at most a quarter of the width."""
    power = 10.0 ** np.floor(np.log10(width / 4))
    length = power * max(k for k in (1, 2, 5) if k * power <= width / 4)
    x, y = width * 0.95, height * 0.95
    axes.plot([x - length, x], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.text(x - length / 2, y - height * 0.02, f"{length:g} {unit}", color="white", fontsize=8,
              ha="center", va="bottom")  # fmt: skip


# Command line -----------------------------------------------------------------------------------


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m utils.figures",
        description="Draw simulated samples, named by seed and index, or a microscope's stack.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what, edge, index in (
        ("demo", "slice_demo_3.gif, 3d_demo_3.gif and 3d_demo_20.gif: samples 3 and 20", 128, None),
        ("columns", "column_types.png: a column of each type, cut open", 256, 3),
        ("samples", "samples.png: slices and projections of the first samples", 128, None),
        ("geometry", "geometry.png: columns, lattice and neurites in 3D", 128, 3),
        ("samples-2d", "samples_2d.png: the first 2D samples", None, None),
    ):
        command = commands.add_parser(name, help=what, description=f"Writes {what}.")
        command.add_argument(
            "--directory", type=Path, default=Path("assets"), help="folder to write to"
        )
        command.add_argument("--seed", type=int, default=0, help="seed of the samples")
        if edge is not None:
            command.add_argument("--voxels", type=int, default=edge, help="edge of the cube")
        if index is not None:
            command.add_argument("--index", type=int, default=index, help="index of the sample")
        if name.startswith("samples"):
            count = 16 if name == "samples-2d" else 8
            command.add_argument("--count", type=int, default=count, help="number of samples")
    _add_stack_command(commands)
    return parser.parse_args(arguments)


def _add_stack_command(commands: Any) -> None:
    command = commands.add_parser(
        "stack",
        help="planes of a stack and of masks that predict.py made of it",
        description="Draws planes of a stack from a microscope with masks of predict.py on them.",
    )
    add = command.add_argument
    add("--input", required=True, help="the stack that was predicted")
    add("--mask", required=True, nargs="+", help="its masks, each a row of the picture")
    add("--output", required=True, type=Path, help="picture to write")
    add("--crop", nargs="+", type=voxel_ranges, metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="the box that each mask was made of, as given to predict.py")  # fmt: skip
    add("--z", required=True, nargs="+", type=int, help="planes, in voxels of the stack from 0")
    add("--channel", type=int, help="channel of the stack, as given to predict.py")
    add("--step", type=float, default=1.0, help="voxels a pixel; above 1 the image is coarsened")
    add("--caption", default="", help="words below the picture")


def _describe_wave(plane: np.ndarray) -> str:
    from utils.prediction.column_spacing import strongest_wave

    wave = strongest_wave(plane)
    return "no period" if wave is None else f"strongest {wave.describe()}"


def _draw_stack(options: argparse.Namespace) -> Path:
    """Read the planes of the stack and its masks, and draw them."""
    from utils.prediction.cropping import crop_stack
    from utils.prediction.microscope_files import open_stack

    boxes = options.crop or [((None, None),) * 3] * len(options.mask)
    if len(boxes) != len(options.mask):
        raise ValueError(f"--crop: {len(boxes)} boxes for {len(options.mask)} masks; one each")
    rows = []
    with open_stack(options.input, channel=options.channel) as stack:
        for box, name in zip(boxes, options.mask, strict=True):
            start = box[0][0] or 0
            part = crop_stack(stack, box)
            with open_stack(name) as mask:
                if mask.shape != part.shape:
                    raise ValueError(f"{name}: {mask.shape} voxels, but its box has {part.shape}")
                wrong = [z for z in options.z if not 0 <= z - start < part.shape[-1]]
                if wrong:
                    raise ValueError(f"--z {wrong[0]}: not in the box of {name}, {box[0]}")
                label = f"{Path(name).stem}, " if len(boxes) > 1 else ""
                planes = [[s.read(z - start, z - start + 1)[..., 0] for s in (part, mask)]
                          for z in options.z]  # fmt: skip
                rows.append([
                    Overlay(*pair, f"{label}z = {z}", *map(_describe_wave, pair))
                    for pair, z in zip(planes, options.z, strict=True)
                ])  # fmt: skip
        spacing = stack.spacing and stack.spacing[:2]
    return save_overlays(
        rows, options.output, spacing=spacing, step=options.step, caption=options.caption
    )


def _draw_assets(options: argparse.Namespace) -> list[Path]:
    """Draw what a subcommand asks for; returns the pictures."""
    if options.command == "stack":
        return [_draw_stack(options)]
    from utils.animations import save_3d_gif, save_slice_gif
    from utils.simulation import VolumeConfig, sample_rng, simulate_volume

    if options.command == "samples-2d":
        return [_draw_image_samples(options)]
    shape, folder = (options.voxels,) * 3, options.directory
    config = VolumeConfig(shape=shape)

    def sample(index: int, config: VolumeConfig = config) -> SimulatedVolume:
        return simulate_volume(config, sample_rng(options.seed, index))

    if options.command == "demo":
        third = sample(3)
        return [
            save_slice_gif(third, folder / "slice_demo_3.gif", title="sample 3"),
            save_3d_gif(third, folder / "3d_demo_3.gif", title="sample 3"),
            save_3d_gif(sample(20), folder / "3d_demo_20.gif", title="sample 20"),
        ]
    if options.command == "columns":
        coarse = VolumeConfig(shape=shape, lattice_intervals=(8, 8))
        return [save_column_types(sample(options.index, coarse), folder / "column_types.png")]
    if options.command == "samples":
        titles = [f"seed {options.seed}, sample {i}" for i in range(options.count)]
        volumes = [sample(i) for i in range(options.count)]
        return [save_samples_panel(volumes, folder / "samples.png", titles)]
    title = f"seed {options.seed}, sample {options.index}"
    return [save_geometry(sample(options.index), folder / "geometry.png", title=title)]


def _draw_image_samples(options: argparse.Namespace) -> Path:
    from utils.data.normalize import PercentileNormalizer
    from utils.simulation import sample_rng
    from utils.simulation.image import ImageConfig, simulate_image

    samples = [
        simulate_image(ImageConfig(), sample_rng(options.seed, i)) for i in range(options.count)
    ]
    scale = PercentileNormalizer()
    images = [scale.apply(s.image, *scale.fit(s.image)) for s in samples]
    masks, centres = [s.mask for s in samples], [s.centres for s in samples]
    return save_image_samples(images, masks, centres, options.directory / "samples_2d.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; returns the exit status."""
    options = _parse_arguments(arguments)
    try:
        for path in _draw_assets(options):
            print(path)
    except (ValueError, OSError) as error:
        print(f"python -m utils.figures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
