"""A first look at a prediction: planes at right angles with the mask's outline, y downwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.figures import canvas
from utils.figures.colours import MASK_RED
from utils.figures.stacks import draw_scale_bar
from utils.prediction.sections import Sections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 9.0, 8.0
"""Inches that the planes take at most, together."""
NARROWEST = 0.2
"""Room that a thin stack's planes get, of that of its longest axis: for their names."""
PLANES = ((0, 1), (0, 2), (2, 1))
"""Axes to the right and downwards of the planes across z, y and x."""


def save_preview(sections: Sections, path: str | Path, name: str) -> Path:
    """Draw the planes around the stack's corner, all in one scale, with a bar; return ``path``.

    ``sections`` are of a stack or an image; the title names it by ``name``.
    """
    size = np.array(sections.shape) * (sections.spacing or (1.0,) * len(sections.shape))
    room = np.maximum(size, NARROWEST * max(size))
    deep = len(size) == 3
    columns, rows = ([room[0], room[2]], [room[1], room[2]]) if deep else ([room[0]], [room[1]])
    inch = min(WIDTH / sum(columns), HEIGHT / sum(rows))
    figure = canvas.new_figure(max(4.0, inch * sum(columns) + 0.8), inch * sum(rows) + 1.2)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, width_ratios=columns,
                           height_ratios=rows)  # fmt: skip
    places = [grid[0, 0], grid[1, 0], grid[0, 1]] if deep else [grid[0, 0]]
    for k, axes in enumerate(places):
        _draw_plane(axes, sections, k, size)
    draw_scale_bar(places[0], size[0], size[1], "\u00b5m" if sections.spacing else "voxels")
    share = 100 * sections.marked / math.prod(sections.shape)
    words = f"{name}\nred: the mask's outline ({share:.3g} % of the voxels)"
    figure.suptitle(words, fontsize=9, wrap=True)
    if deep:
        grid[1, 1].set_axis_off()
    return canvas.save_figure(figure, path)


def _draw_plane(axes: Axes, sections: Sections, k: int, size: np.ndarray) -> None:
    """Draw the ``k``-th plane in grey with the mask's outline; ``size`` is the stack's."""
    right, down = PLANES[k]
    image, mask = sections.images[k], sections.masks[k]
    if right < down:  # rows go downwards
        image, mask = image.T, mask.T
    extent = (0, size[right], size[down], 0)
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, origin="upper")
    if mask.any():  # a border of background closes the outline where the stack ends
        rows, columns = ((np.arange(n + 2) - 0.5) / n for n in mask.shape)
        axes.contour(columns * size[right], rows * size[down], np.pad(mask, 1).astype(np.float32),
                     levels=[0.5], colors=[MASK_RED], linewidths=0.8)  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:], aspect="equal")
    axes.set_xlabel("xyz"[right], fontsize=8)
    axes.set_ylabel("xyz"[down], fontsize=8)
    if len(size) == 3:
        across = 3 - right - down
        place = sections.origin[across] + sections.middle[across]
        axes.set_title(f"{'xyz'[across]} = {place}", fontsize=9)
