"""What a network has learned: curves of its training, and predictions beside the truth.

Slices show x to the right and y upwards; lengths are voxels.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

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


def save_predictions(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    path: str | Path,
    titles: Sequence[str],
) -> Path:
    """Draw a row a sample: image, truth on the image, probability, and where the two differ.

    Images are (X, Y) or (X, Y, Z), scaled between their own 1st and 99th percentile; masks, the
    truth, are of the same shapes, 0/1, and negative where it is not known; the overlay cuts
    probabilities, 0..1, at 0.5. ``titles`` name the rows; of volumes the slice with most labelled
    voxels is shown, and the row says which it is.
    """
    from utils.evaluation.confusion import confusion  # with torch, which a search has no need of

    figure = canvas.new_figure(11.4, 2.9 * len(images) + 0.5)
    grid = figure.subplots(len(images), 4, squeeze=False)
    samples = zip(images, masks, probabilities, strict=True)
    for row, sample, title in zip(grid, samples, titles, strict=True):
        picture, truth, chance, overlay = row
        image, mask, probability, which = _planes(*sample)
        canvas.show_fluorescence(picture, image)
        canvas.show_fluorescence(truth, image)
        canvas.draw_outline(truth, np.maximum(mask, 0), canvas.TRUTH)
        shown = canvas.show_slice(chance, probability, cmap="magma", vmin=0, vmax=1)
        bar = figure.colorbar(shown, ax=chance, shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        canvas.show_slice(overlay, _compare(image, mask, probability))
        iou = confusion(probability, mask).iou
        words = ("fluorescence", "truth", "probability", f"prediction, IoU in the slice {iou:.2f}")
        for axes, word in zip(row, words, strict=True):
            axes.set_title(word, fontsize=9)
            axes.set_xlabel("x (voxels)", fontsize=7)
        lines = [*textwrap.wrap(f"{title}{which}", 36), "y (voxels)"]
        picture.set_ylabel("\n".join(lines), fontsize=8)
    handles = [
        Patch(color=canvas.TRUE_POSITIVE, label="found (true positive)"),
        Patch(color=canvas.FALSE_POSITIVE, label="false positive"),
        Patch(color=canvas.FALSE_NEGATIVE, label="missed (false negative)"),
        Patch(facecolor="none", edgecolor=canvas.TRUTH, label="outline of the truth"),
    ]
    canvas.add_legend_below(figure, handles=handles, ncols=4)
    return canvas.save_figure(figure, path)


def save_cover(
    image: np.ndarray, mask: np.ndarray, probability: np.ndarray, path: str | Path
) -> Path:
    """Draw a plane, and beside it where prediction and truth differ: twice as wide as high.

    Args are those of a row of :func:`save_predictions`.
    """
    figure = canvas.new_figure(6.0, 3.0)
    plain, overlay = figure.subplots(1, 2)
    *planes, _ = _planes(image, mask, probability)
    canvas.show_fluorescence(plain, planes[0])
    canvas.show_slice(overlay, _compare(*planes))
    plain.set_axis_off()
    overlay.set_axis_off()
    return canvas.save_figure(figure, path)


def _planes(
    image: np.ndarray, mask: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Return scaled image, mask and probability of one slice, and words that say which."""
    image = canvas.scale_to_display(image)
    if image.ndim == 2:
        return image, mask, probability, ""
    z = canvas.densest_slice(mask)
    return image[..., z], mask[..., z], probability[..., z], f", z = {z} of {image.shape[2]}"


def _compare(image: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return (X, Y, 3): the grey image with true and false positives and false negatives on it."""
    predicted, true = (probability >= 0.5) & (mask >= 0), mask >= 0.5
    colours = np.repeat(image[..., None] * 0.75, 3, axis=2)
    for where, colour in (
        (predicted & true, canvas.TRUE_POSITIVE),
        (predicted & ~true, canvas.FALSE_POSITIVE),
        (~predicted & true, canvas.FALSE_NEGATIVE),
    ):
        colours[where] = 0.45 * colours[where] + 0.55 * np.array(to_rgb(colour))
    return colours


def compared_slice(image: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return where truth and prediction differ, on the grey image, as one picture.

    Args are those of a row of :func:`save_predictions`; returns (Y, X, 3), 0..1, y upwards.
    """
    *planes, _ = _planes(image, mask, probability)
    return np.swapaxes(_compare(*planes), 0, 1)[::-1]
