"""A still of simulated volumes: slices and projections; x to the right, y upwards, in voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.figures import canvas
from utils.figures.colours import TRUTH
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
