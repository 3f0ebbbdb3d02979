"""Planes of a stack with masks on them, y downwards as in Fiji."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.errors import UserError
from utils.figures import canvas
from utils.prediction.sections import Sections
from utils.resampling import Resampling, scaled_shape

WIDTH, HEIGHT = 9.0, 8.0  # inches that the planes take at most, together
NARROWEST = 0.2  # room that a thin stack's planes get, of that of its longest axis: for their names
PLANES = ((0, 1), (0, 2), (2, 1))  # axes to the right and downwards of the planes across z, y and x


def save_overlays(
    rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray, str]]],
    path: str | Path,
    *,
    spacing: tuple[float, float] | None = None,
    step: float = 1.0,
    caption: str = "",
) -> Path:
    """Draw planes, each beside itself with the mask on it, and a scale bar; y downwards as in Fiji.

    A plane is (image, mask, title), (X, Y) grey values and 0/1; rows have equally many. ``spacing``
    is the edge of a voxel along x and y in micrometres; None counts in voxels. A ``step``, in
    voxels a pixel, above 1 shows the image, but not the mask, coarser than it is, for data that
    must not be passed on; UserError for one below 1.
    """
    if not step >= 1:
        raise UserError(f"step {step}: must be at least 1 voxel a pixel")
    figure = canvas.new_figure(5.2 * len(rows[0]), 2.6 * len(rows) + 0.4)
    grid = figure.subplots(len(rows), 2 * len(rows[0]), squeeze=False)
    planes = [plane for row in rows for plane in row]
    for pair, (image, mask, title) in zip(grid.reshape(-1, 2), planes, strict=True):
        width, height = np.array(mask.shape) * (spacing or (1.0, 1.0))
        shape = scaled_shape(image.shape, (1 / step, 1 / step))
        image = image.astype(np.float32)
        if shape != image.shape:
            image = Resampling.between(image.shape, shape).apply(image, 0, 0, shape[1])
        image = canvas.scale_to_display(image, 1.0, 99.5)
        placed = {"origin": "upper", "extent": (0, width, height, 0)}
        smooth = "nearest" if step == 1 else "bicubic"
        colours = np.zeros((*mask.shape, 4), np.float32)
        colours[mask > 0] = (*canvas.MASK_RED, 0.55)
        plain, marked = pair
        look = {"vmin": 0, "interpolation": smooth, **placed}
        plain.imshow(image.T, cmap=canvas.BLUE_MAP, vmax=1, **look)
        marked.imshow(image.T, cmap="gray", vmax=1.2, **look)
        marked.imshow(colours.swapaxes(0, 1), interpolation="nearest", **placed)
        for axes, words in ((plain, title), (marked, "prediction")):
            axes.set_title(words, fontsize=9)
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
        draw_scale_bar(plain, width, height, "voxels" if spacing is None else "\u00b5m")
    if caption:
        figure.supxlabel("\n".join(textwrap.wrap(caption, int(62 * len(rows[0])))), fontsize=8)
    return canvas.save_figure(figure, path)


def draw_scale_bar(axes: Axes, width: float, height: float, unit: str) -> None:
    """Draw a bar of a round length, at most a quarter of the width."""
    power = 10.0 ** np.floor(np.log10(width / 4))
    length = power * max(k for k in (1, 2, 5) if k * power <= width / 4)
    x, y = width * 0.95, height * 0.95
    axes.plot([x - length, x], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.text(x - length / 2, y - height * 0.02, f"{length:g} {unit}", color="white", fontsize=8,
              ha="center", va="bottom",
              bbox={"facecolor": "black", "alpha": 0.5, "pad": 1.0, "linewidth": 0})  # fmt: skip


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
                         levels=[0.5], colors=[canvas.MASK_RED], linewidths=0.8)  # fmt: skip
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
