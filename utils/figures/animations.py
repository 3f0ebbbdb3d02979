"""Animations of a simulated sample: moving along z, and turning about z.

Fluorescence is blue, masks are red, the ground is black; lengths are voxels. An animation loops,
and is written whole or not at all.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from utils.figures import canvas
from utils.figures.canvas import MASK_RED, blue
from utils.figures.rendering import look, project
from utils.figures.slices import scale_to_display, show_slice
from utils.replacing import make_folder, replacing
from utils.simulation import SimulatedVolume

COLOURS = 64  # of the palette that all frames share; more make larger files


def save_slice_gif(
    volume: SimulatedVolume, path: str | Path, *, title: str = "", most_frames: int = 64
) -> Path:
    """Write a looping animation along z: image (blue, 1..99 % scaling) and mask (red) side by side.

    Slices are left out evenly to stay within ``most_frames``.
    """
    image, mask = scale_to_display(volume.image), volume.mask
    depth = image.shape[2]
    frames = []
    for z in range(0, depth, -(-depth // most_frames)):
        figure, (left, right) = _black_panels(title, "fluorescence", f"mask, z = {z:3d} / {depth}")
        show_slice(left, blue(image[..., z]))
        show_slice(right, mask[..., z, None] * np.array(MASK_RED))
        frames.append(canvas.to_picture(figure))
    return _save_gif(frames, path, milliseconds=90)


def save_3d_gif(
    volume: SimulatedVolume, path: str | Path, *, title: str = "", frames: int = 40
) -> Path:
    """Write a looping animation that turns about z: fluorescence blue on the left, masks red too.

    Both panels turn together; the right one puts the masks, as lit solids, into the fluorescence.
    The cube's edges, and the names and voxels of its axes, turn along. ``frames`` make a full turn.
    """
    smooth = ndimage.gaussian_filter(volume.image.astype(np.float32), 0.7)
    glow = scale_to_display(smooth, 90.0, 99.8)  # without noise and background
    solid = ndimage.gaussian_filter(volume.mask.astype(np.float32), 0.7, mode="constant")
    pictures = []
    for azimuth in 0.5 + 2.0 * np.pi * np.arange(frames) / frames:
        view = look(glow, solid, azimuth)
        lit = np.clip(1.25 * view.shade[..., None] * np.array(MASK_RED), 0.0, 1.0)
        cover = 0.9 * view.cover[..., None]
        solids = cover * lit + (1.0 - cover) * blue(view.whole)
        mixed = 1.0 - (1.0 - solids) * (1.0 - 0.8 * blue(view.in_front))
        figure, panels = _black_panels(title, "fluorescence", "fluorescence and mask")
        for axes, colours in zip(panels, (blue(view.whole), mixed), strict=True):
            axes.imshow(colours, interpolation="bilinear")
            _draw_cube(axes, volume.image.shape, azimuth)
            axes.set_axis_off()
        pictures.append(canvas.to_picture(figure))
    return _save_gif(pictures, path, milliseconds=100)


def _draw_cube(axes: Axes, shape: tuple[int, ...], azimuth: float) -> None:
    """Draw the cube's edges; name those at the corner (0, 0, 0), with their voxels."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    _, rows, columns = project(corners * np.array(shape), shape, azimuth).T
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                axes.plot(columns[[a, b]], rows[[a, b]], color="0.45", linewidth=0.6)
    for name, corner in (("z", 1), ("y", 2), ("x", 4)):
        row, column = (0.7 * place[0] + 0.3 * place[corner] for place in (rows, columns))
        words = f"{name} {shape['xyz'.index(name)]}"
        axes.text(column, row, words, color="0.9", fontsize=7, ha="center", va="center")


def _black_panels(title: str, left: str, right: str) -> tuple[Figure, Sequence[Axes]]:
    """Return a black figure with two panels and their titles."""
    figure = canvas.new_figure(6.0, 3.4)
    figure.set(facecolor="black", layout_engine=None)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.06, top=0.88, wspace=0.1)
    figure.text(0.01, 0.95, title, color="0.6", fontsize=7)
    panels = figure.subplots(1, 2)
    for axes, words in zip(panels, (left, right), strict=True):
        axes.set_title(words, color="0.9", fontsize=8)
        axes.tick_params(colors="0.6")
        axes.spines[:].set_color("0.3")
    return figure, panels


def _save_gif(frames: Sequence[Image.Image], path: str | Path, milliseconds: int) -> Path:
    """Write a looping GIF whose frames share the palette of the one in the middle."""
    path = Path(path)
    make_folder(path.parent)
    palette = frames[len(frames) // 2].quantize(COLOURS)
    first, *rest = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    with replacing(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, loop=0, duration=milliseconds)
    return path
