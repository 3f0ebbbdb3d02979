"""Pictures of 2D samples: image, outlines of the mask, centres; lengths are pixels, y upwards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.figures import canvas
from utils.figures.colours import TRUTH
from utils.figures.slices import show_fluorescence

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


def draw_image_sample(image: np.ndarray, mask: np.ndarray, centres: np.ndarray) -> Image.Image:
    """Return a picture of a 2D sample: the image, and outlines and centres on it.

    Args:
        image: (X, Y), 0..1.
        mask: (X, Y), 0/1.
        centres: (n, 2) in pixels; the first pixel reaches from 0 to 1.
    """
    from PIL import Image

    memory = io.BytesIO()
    _draw([image], [mask], [centres]).savefig(memory, dpi=160)
    with Image.open(memory) as picture:
        return picture.convert("RGB")


def save_image_samples(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    centres: Sequence[np.ndarray],
    path: str | Path,
) -> Path:
    """Draw 2D samples, four a row, each as by :func:`draw_image_sample`, into ``path``."""
    return canvas.save_figure(_draw(images, masks, centres), path, dpi=75)


def _draw(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], centres: Sequence[np.ndarray]
) -> Figure:
    """Draw each image, and beside it once more with outlines of its mask and centres on it."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = canvas.new_figure(3.0 * columns, 1.6 * rows)
    pairs = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for axes in pairs.ravel():
        axes.set_axis_off()
    for image, mask, points, pair in zip(images, masks, centres, pairs, strict=False):
        for axes in pair:
            show_fluorescence(axes, image, extent=(0, image.shape[0], 0, image.shape[1]))
        x, y = (np.arange(edge) + 0.5 for edge in mask.shape)
        pair[1].contour(x, y, mask.T, levels=[0.5], colors=[TRUTH], linewidths=0.6)
        pair[1].plot(*points.T, ".", color="white", markersize=2.5)
    return figure
