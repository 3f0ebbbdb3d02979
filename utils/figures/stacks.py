"""Planes of a stack from a microscope with masks on them, y downwards as in Fiji."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from utils.errors import UserError
from utils.figures import canvas
from utils.figures.canvas import BLUE_MAP, MASK_RED
from utils.figures.slices import scale_to_display
from utils.resampling import Resampling, scaled_shape


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
        pair[0].set_title(title, fontsize=9)
        pair[1].set_title("prediction", fontsize=9)
        _draw_overlay(pair, image.astype(np.float32), mask, spacing, step)
    if caption:
        figure.supxlabel("\n".join(textwrap.wrap(caption, int(62 * len(rows[0])))), fontsize=8)
    return canvas.save_figure(figure, path)


def _draw_overlay(
    pair: Sequence[Axes],
    image: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float] | None,
    step: float,
) -> None:
    """Draw the image, and the image in grey with the mask in red."""
    width, height = np.array(mask.shape) * (spacing or (1.0, 1.0))
    shape = scaled_shape(image.shape, (1 / step, 1 / step))
    if shape != image.shape:
        image = Resampling.between(image.shape, shape).apply(image, 0, 0, shape[1])
    image = scale_to_display(image, 1.0, 99.5)
    placed = {"origin": "upper", "extent": (0, width, height, 0)}
    smooth = "nearest" if step == 1 else "bicubic"
    colours = np.zeros((*mask.shape, 4), np.float32)
    colours[mask > 0] = (*MASK_RED, 0.55)
    plain, marked = pair
    plain.imshow(image.T, cmap=BLUE_MAP, vmin=0, vmax=1, interpolation=smooth, **placed)
    marked.imshow(image.T, cmap="gray", vmin=0, vmax=1.2, interpolation=smooth, **placed)
    marked.imshow(colours.swapaxes(0, 1), interpolation="nearest", **placed)
    for axes in pair:
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    draw_scale_bar(plain, width, height, "voxels" if spacing is None else "\u00b5m")


def draw_scale_bar(axes: Axes, width: float, height: float, unit: str) -> None:
    """Draw a bar of a round length, at most a quarter of the width."""
    power = 10.0 ** np.floor(np.log10(width / 4))
    length = power * max(k for k in (1, 2, 5) if k * power <= width / 4)
    x, y = width * 0.95, height * 0.95
    axes.plot([x - length, x], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.text(x - length / 2, y - height * 0.02, f"{length:g} {unit}", color="white", fontsize=8,
              ha="center", va="bottom",
              bbox={"facecolor": "black", "alpha": 0.5, "pad": 1.0, "linewidth": 0})  # fmt: skip
