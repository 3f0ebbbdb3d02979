"""A first look at a prediction: planes at right angles with the mask's outline, y downwards."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.figures import canvas
from utils.figures.canvas import MASK_RED
from utils.figures.stacks import draw_scale_bar
from utils.prediction.whole_stack import Sections

WIDTH, HEIGHT = 9.0, 8.0  # inches that the planes take at most, together
NARROWEST = 0.2  # room that a thin stack's planes get, of that of its longest axis: for their names
PLANES = ((0, 1), (0, 2), (2, 1))  # axes to the right and downwards of the planes across z, y and x


def save_preview(sections: Sections, path: str | Path, name: str) -> Path:
    """Draw the planes around the stack's corner, all in one scale, with a bar; return ``path``.

    ``sections`` are of a stack or an image; the title names it by ``name``.
    """
    size = np.array(sections.shape) * (sections.spacing or (1.0,) * len(sections.shape))
    figure, panels, _ = plane_panels(size, sections.origin, sections.middle)
    for k, (axes, image, mask) in enumerate(
        zip(panels, sections.images, sections.masks, strict=False)
    ):
        image, mask = to_rows(image, k), to_rows(mask, k)
        width, height = axes.get_xlim()[1], axes.get_ylim()[0]
        show_plane(axes, image, cmap="gray", vmin=0, vmax=1)
        if mask.any():  # a border of background closes the outline where the stack ends
            rows, columns = ((np.arange(n + 2) - 0.5) / n for n in mask.shape)
            axes.contour(columns * width, rows * height, np.pad(mask, 1).astype(np.float32),
                         levels=[0.5], colors=[MASK_RED], linewidths=0.8)  # fmt: skip
    draw_scale_bar(panels[0], size[0], size[1], "\u00b5m" if sections.spacing else "voxels")
    share = 100 * sections.marked / math.prod(sections.shape)
    words = f"{name}\nred: the mask's outline ({share:.3g} % of the voxels)"
    figure.suptitle(words, fontsize=9, wrap=True)
    for axes in panels[3:]:
        axes.set_axis_off()
    return canvas.save_figure(figure, path)


def plane_panels(
    size: np.ndarray, origin: tuple[int, ...], middle: tuple[int, ...], view: float = 0.0
) -> tuple[Figure, list[Axes], float]:
    """Return a figure, panels for the planes of a stack, all in one scale, and inches a unit.

    The panels are those of the planes in the order of :class:`Sections`, named by where they lie,
    and of a stack the corner that is left. ``size`` is the stack's in the unit of length;
    ``origin`` and ``middle`` are those of its sections. Above 0, ``view`` is the least room of the
    corner, of that of the longest axis, and the figure 1.3 times as large.
    """
    deep = len(size) == 3
    room = np.maximum(size, NARROWEST * max(size))
    least = np.maximum(room[2], view * max(room)) if deep else 0.0
    columns, rows = ([room[0], least], [room[1], least]) if deep else ([room[0]], [room[1]])
    inch = (1.3 if view else 1.0) * min(WIDTH / sum(columns), HEIGHT / sum(rows))
    figure = canvas.new_figure(max(4.0, inch * sum(columns) + 0.8), inch * sum(rows) + 1.2)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, width_ratios=columns,
                           height_ratios=rows)  # fmt: skip
    panels = [grid[0, 0], grid[1, 0], grid[0, 1], grid[1, 1]] if deep else [grid[0, 0]]
    for axes, (right, down) in zip(panels, PLANES, strict=False):
        axes.set(xticks=[], yticks=[], xlim=(0, size[right]), ylim=(size[down], 0), aspect="equal")
        axes.set_xlabel("xyz"[right], fontsize=8)
        axes.set_ylabel("xyz"[down], fontsize=8)
        if deep:
            across = 3 - right - down
            place = origin[across] + middle[across]
            axes.set_title(f"{'xyz'[across]} = {place}", fontsize=9)
    return figure, panels, inch


def to_rows(plane: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k``-th plane of :class:`Sections` as (rows, columns), rows downwards."""
    right, down = PLANES[k]
    return plane.T if right < down else plane


def show_plane(axes: Axes, plane: np.ndarray, **options: Any) -> None:
    """Draw (rows, columns) over a whole panel of :func:`plane_panels`; ``options`` of imshow."""
    extent = (*axes.get_xlim(), *axes.get_ylim())
    axes.imshow(plane, extent=extent, origin="upper", aspect="equal", **options)
