"""Stills of simulated volumes and images; x to the right, y upwards, in voxels or pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils.figures import canvas
from utils.figures.canvas import TRUTH
from utils.figures.slices import densest_slice, draw_outline, scale_to_display, show_fluorescence

if TYPE_CHECKING:
    from utils.simulation import SimulatedVolume


def save_samples_panel(
    volumes: Sequence[SimulatedVolume], path: str | Path, titles: Sequence[str]
) -> Path:
    """Draw samples, two a row: the slice with most labels and its outline, and the projection."""
    rows = -(-len(volumes) // 2)
    figure = canvas.new_figure(11.4, 2.75 * rows + 0.3)
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes in grid.ravel()[2 * len(volumes) :]:
        axes.set_axis_off()
    for volume, title, pair in zip(volumes, titles, grid.reshape(-1, 2), strict=False):
        image, mask = scale_to_display(volume.image), volume.mask
        z = densest_slice(mask)
        show_fluorescence(pair[0], image[..., z])
        draw_outline(pair[0], mask[..., z], TRUTH, 0.6)
        bright = scale_to_display(volume.image.max(axis=2), 1.0, 99.5)
        show_fluorescence(pair[1], bright)
        pair[0].set_title(f"{title}: z = {z}, outline of the mask", fontsize=8)
        count = len(np.unique(volume.instances)) - 1
        pair[1].set_title(f"maximum along z, {count} columns seen", fontsize=8)
    figure.supxlabel("x (voxels)", fontsize=8)
    figure.supylabel("y (voxels)", fontsize=8)
    return canvas.save_figure(figure, path)


def draw_image_sample(image: np.ndarray, mask: np.ndarray, centres: np.ndarray) -> Image.Image:
    """Return a picture of a 2D sample: the image, and outlines and centres on it.

    Image (X, Y) of 0..1, mask (X, Y) 0/1, centres (n, 2) in pixels; the first reaches from 0 to 1.
    """
    return canvas.to_picture(_draw_images([image], [mask], [centres]), dpi=160)


def save_image_samples(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    centres: Sequence[np.ndarray],
    path: str | Path,
) -> Path:
    """Draw 2D samples, four a row, each as by :func:`draw_image_sample`, into ``path``."""
    return canvas.save_figure(_draw_images(images, masks, centres), path, dpi=75)


def _draw_images(
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
