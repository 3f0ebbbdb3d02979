"""Simulated volumes and images: stills, and animations that move along z or turn about it.

Slices have x to the right and y upwards, in voxels or pixels. Animations have blue fluorescence and
red masks on black; they loop. Views of a volume that turns are resampled by scipy, then looked
through: axis order of volumes is (x, y, z), z is up; that of a view is (depth, row, column), row 0
at the top. The projection is orthographic, from a little above; a voxel is a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from utils.figures import canvas
from utils.replacing import make_folder, replacing

if TYPE_CHECKING:
    from utils.simulation import SimulatedVolume

COLOURS = 64  # of the palette that all frames share; more make larger files
ELEVATION = 0.35  # angle from which the camera looks down, in radians
LIGHT = np.array([-0.61, -0.65, -0.45], np.float32)
"""Unit vector towards the light: away from the viewer, down, to the right."""
AMBIENT = 0.30  # brightness of a surface that faces away from the light
FOG = 0.55  # share of the brightness that is lost from the nearest to the farthest sample of a ray


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
        image, mask = canvas.scale_to_display(volume.image), volume.mask
        z = canvas.densest_slice(mask)
        canvas.show_fluorescence(pair[0], image[..., z])
        canvas.draw_outline(pair[0], mask[..., z], canvas.TRUTH, 0.6)
        bright = canvas.scale_to_display(volume.image.max(axis=2), 1.0, 99.5)
        canvas.show_fluorescence(pair[1], bright)
        pair[0].set_title(f"{title}: z = {z}, outline of the mask", fontsize=8)
        count = len(np.unique(volume.instances)) - 1
        pair[1].set_title(f"maximum along z, {count} columns seen", fontsize=8)
    figure.supxlabel("x (voxels)", fontsize=8)
    figure.supylabel("y (voxels)", fontsize=8)
    return canvas.save_figure(figure, path)


def draw_images(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], centres: Sequence[np.ndarray]
) -> Figure:
    """Draw 2D samples, four a row: each image, and beside it once more with outlines and centres.

    Images (X, Y) of 0..1, masks (X, Y) 0/1, centres (n, 2) in pixels; the first reaches from 0 to
    1.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = canvas.new_figure(3.0 * columns, 1.6 * rows)
    pairs = figure.subplots(rows, 2 * columns, squeeze=False).reshape(-1, 2)
    for axes in pairs.ravel():
        axes.set_axis_off()
    for image, mask, points, pair in zip(images, masks, centres, pairs, strict=False):
        for axes in pair:
            canvas.show_fluorescence(axes, image, extent=(0, image.shape[0], 0, image.shape[1]))
        x, y = (np.arange(edge) + 0.5 for edge in mask.shape)
        pair[1].contour(x, y, mask.T, levels=[0.5], colors=[canvas.TRUTH], linewidths=0.6)
        pair[1].plot(*points.T, ".", color="white", markersize=2.5)
    return figure


def save_slice_gif(
    volume: SimulatedVolume, path: str | Path, *, title: str = "", most_frames: int = 64
) -> Path:
    """Write a looping animation along z: image (blue, 1..99 % scaling) and mask (red) side by side.

    Slices are left out evenly to stay within ``most_frames``.
    """
    image, mask = canvas.scale_to_display(volume.image), volume.mask
    depth = image.shape[2]
    frames = []
    for z in range(0, depth, -(-depth // most_frames)):
        figure, (left, right) = _black_panels(title, "fluorescence", f"mask, z = {z:3d} / {depth}")
        canvas.show_slice(left, canvas.blue(image[..., z]))
        canvas.show_slice(right, mask[..., z, None] * np.array(canvas.MASK_RED))
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
    glow = canvas.scale_to_display(smooth, 90.0, 99.8)  # without noise and background
    solid = ndimage.gaussian_filter(volume.mask.astype(np.float32), 0.7, mode="constant")
    pictures = []
    for azimuth in 0.5 + 2.0 * np.pi * np.arange(frames) / frames:
        view = look(glow, solid, azimuth)
        lit = np.clip(1.25 * view.shade[..., None] * np.array(canvas.MASK_RED), 0.0, 1.0)
        cover = 0.9 * view.cover[..., None]
        solids = cover * lit + (1.0 - cover) * canvas.blue(view.whole)
        mixed = 1.0 - (1.0 - solids) * (1.0 - 0.8 * canvas.blue(view.in_front))
        figure, panels = _black_panels(title, "fluorescence", "fluorescence and mask")
        for axes, colours in zip(panels, (canvas.blue(view.whole), mixed), strict=True):
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


@dataclass(frozen=True)
class View:
    """What the camera sees; all (rows, columns) in 0..1, brightness dimmed with depth."""

    # brightest fluorescence before the first surface, or along the whole ray without one
    in_front: np.ndarray
    whole: np.ndarray  # brightest fluorescence along the whole ray, as if there were no surfaces
    shade: np.ndarray  # brightness of the first surface; 0 where there is none
    cover: np.ndarray  # how much of the pixel the surface covers: 1 inside, in between at its rim


def camera_axes(azimuth: float) -> np.ndarray:
    """Return unit vectors away from the viewer, down, and to the right, one a row.

    ``azimuth`` is the turn in radians; 0 looks along +y with x to the right.
    """
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    level = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    vertical = np.array([0.0, 0.0, 1.0])
    away = np.cos(ELEVATION) * level - np.sin(ELEVATION) * vertical
    down = -np.sin(ELEVATION) * level - np.cos(ELEVATION) * vertical
    return np.stack([away, down, right])


def view_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (depth, rows, columns) that hold all corners of a volume at each azimuth."""
    across, height = np.hypot(*shape[:2]), shape[2]
    depth = across * np.cos(ELEVATION) + height * np.sin(ELEVATION)
    rows = across * np.sin(ELEVATION) + height * np.cos(ELEVATION)
    return int(depth) + 3, int(rows) + 3, int(across) + 3


def project(points: np.ndarray, shape: tuple[int, ...], azimuth: float) -> np.ndarray:
    """Return where ``points`` (N, 3), in voxels from the volume's corner, are seen, (N, 3)."""
    middle = (np.array(view_shape(shape)) - 1) / 2
    return (points - np.array(shape) / 2) @ camera_axes(azimuth).T + middle


def look(fluorescence: np.ndarray, solid: np.ndarray, azimuth: float) -> View:
    """Return what is seen of two volumes (X, Y, Z) in 0..1.

    The maximum of the fluorescence along each ray, and the surface at 0.5 of ``solid``, a mask a
    little blurred, lit from the upper left.
    """
    matrix = camera_axes(azimuth).T
    output = view_shape(solid.shape)
    offset = (np.array(solid.shape) - 1) / 2 - matrix @ ((np.array(output) - 1) / 2)
    glow, body = (
        ndimage.affine_transform(volume, matrix, offset, output, order=1, mode="grid-constant")
        for volume in (fluorescence, solid)
    )
    steps = np.arange(output[0])[:, None, None]
    fog = (1.0 - FOG * steps / output[0]).astype(np.float32)
    glow = glow * fog
    inside = body > 0.5
    hit, first = inside.any(axis=0), inside.argmax(axis=0)[None]
    slope = np.stack([np.take_along_axis(g, first, 0)[0] for g in np.gradient(body)])
    outward = -slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-9)
    facing = np.tensordot(LIGHT, outward, 1).clip(0.0)
    return View(
        in_front=np.where(~hit | (steps < first), glow, np.float32(0)).max(axis=0),
        whole=glow.max(axis=0),
        shade=np.where(hit, (AMBIENT + (1.0 - AMBIENT) * facing) * fog[first[0], 0, 0], 0.0),
        cover=np.clip((body.max(axis=0) - 0.5) / 0.25, 0.0, 1.0),
    )
