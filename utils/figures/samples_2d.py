"""Pictures of 2D samples: image, mask and centres; lengths are pixels, y upwards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.figures import canvas
from utils.figures.colours import MASK_RED, TRUTH
from utils.figures.slices import show_fluorescence, show_slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image


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

    figure = canvas.new_figure(10.0, 3.7)
    plain, labels, both = figure.subplots(1, 3)
    _draw_centres(plain, both, image, mask, centres)
    show_slice(labels, mask[..., None] * np.array(MASK_RED), extent=_in_pixels(mask))
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
    figure = canvas.new_figure(12.0, 1.6 * rows)
    pairs = figure.subplots(rows, 8, squeeze=False).reshape(-1, 2)
    for axes in pairs.ravel():
        axes.set_axis_off()
    for image, mask, points, pair in zip(images, masks, centres, pairs, strict=False):
        _draw_centres(*pair, image, mask, points)
    return canvas.save_figure(figure, path, dpi=75)


def _draw_centres(
    plain: Axes, marked: Axes, image: np.ndarray, mask: np.ndarray, centres: np.ndarray
) -> None:
    """Draw the image, and the image with outlines of the mask and centres on it."""
    for axes in (plain, marked):
        show_fluorescence(axes, image, extent=_in_pixels(image))
    x, y = (np.arange(edge) + 0.5 for edge in mask.shape)
    marked.contour(x, y, mask.T, levels=[0.5], colors=[TRUTH], linewidths=0.6)
    marked.plot(*centres.T, ".", color="white", markersize=2.5)


def _in_pixels(image: np.ndarray) -> tuple[int, int, int, int]:
    """Return where ``image`` (X, Y) is drawn: its first pixel reaches from 0 to 1."""
    return (0, image.shape[0], 0, image.shape[1])
