"""Stills of simulated volumes: column types cut open, samples, and the geometry in 3D.

Slices show x to the right and y upwards; lengths are voxels unless an axis says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError
from utils.figures import canvas
from utils.figures.colours import TRUTH, TYPE_COLOURS, TYPE_NAMES
from utils.figures.slices import densest_slice, draw_outline, scale_to_display, show_fluorescence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from utils.simulation import SimulatedVolume


def save_column_types(volume: SimulatedVolume, path: str | Path) -> Path:
    """Draw a column of each type, left-out one included: cut along its axis and across its middle.

    Of each type the column is taken that lies deepest inside the cube.

    Args:
        volume: sample that holds all four types; a fine one (256 voxels an edge) shows most.
        path: picture to write (format by its suffix).

    Raises:
        ValueError: the sample lacks a type.
    """
    order = (1, 2, 3, 0)
    columns = [_innermost_column(volume, kind) for kind in order]
    image = scale_to_display(volume.image, 1.0, 99.7)
    figure = canvas.new_figure(9.6, 6.4)
    grid = figure.subplots(2, len(order), height_ratios=(1.45, 1.0))
    for column, kind, (along, across) in zip(columns, order, grid.T, strict=True):
        _draw_column_cuts(along, across, volume, image, column)
        along.set_title(TYPE_NAMES[kind], fontsize=11, color=TYPE_COLOURS[kind])
    grid[0, 0].set_ylabel("along the axis (voxels)", fontsize=9)
    grid[1, 0].set_ylabel("across (voxels)", fontsize=9)
    figure.supxlabel(
        "distance from the axis (voxels); dashed: the label's cone; 0 along the axis: entry point",
        fontsize=9,
    )
    return canvas.save_figure(figure, path)


def _innermost_column(volume: SimulatedVolume, kind: int) -> int:
    """Return the column of a type whose cone stays farthest from the cube's faces."""
    of_kind = np.flatnonzero(volume.column_type == kind)
    if not len(of_kind):
        raise UserError(f"the sample has no column of type {TYPE_NAMES[kind]}")
    ends = volume.entry_points + volume.parameters.cone_length * volume.e_r
    points = np.stack([volume.entry_points, ends])
    margin = np.minimum(points, 1.0 - points).min(axis=(0, 2))
    return int(of_kind[np.argmax(margin[of_kind])])


def _draw_column_cuts(
    along: Axes, across: Axes, volume: SimulatedVolume, image: np.ndarray, column: int
) -> None:
    """Draw ``image`` on the plane of a column's axis and e_phi, and on one across its middle."""
    edge, parameters = image.shape[0], volume.parameters
    axis = volume.e_r[column].astype(float)
    length = parameters.cone_length * float(np.linalg.norm(axis)) * edge
    axis /= np.linalg.norm(axis)
    side = volume.e_phi[column] - volume.e_phi[column] @ axis * axis
    side /= np.linalg.norm(side)
    radius = parameters.cone_radius * float(np.linalg.norm(volume.e_phi[column])) * edge
    outer = parameters.cone_taper * radius
    spacing = parameters.spacing * edge
    half = 1.1 * spacing
    entry = volume.entry_points[column]
    extent = (-half, half, -0.5 * spacing, 2.7 * spacing)
    show_fluorescence(along, _plane(image, entry, (side, axis), extent), extent=extent)
    outline = np.array([[-radius, 0], [radius, 0], [outer, length], [-outer, length], [-radius, 0]])
    along.plot(*outline.T, color=TRUTH, linestyle="--", linewidth=1.2)
    middle = entry + axis * length / 2 / edge
    cut = _plane(image, middle, (side, np.cross(axis, side)), (-half, half, -half, half))
    show_fluorescence(across, cut, extent=(-half, half, -half, half))
    turn = np.linspace(0.0, 2.0 * np.pi, 100)
    mean = (radius + outer) / 2
    across.plot(mean * np.cos(turn), mean * np.sin(turn), color=TRUTH, linestyle="--", lw=1.2)


def _plane(
    image: np.ndarray,
    origin: np.ndarray,
    directions: tuple[np.ndarray, np.ndarray],
    extent: tuple[float, float, float, float],
) -> np.ndarray:
    """Return ``image`` (X, Y, Z) on a plane, four samples a voxel, 0 outside the volume.

    The plane goes through ``origin`` (3,), in cube units, along two unit vectors (3,); ``extent``
    is where it begins and ends along the first and along the second of them, in voxels.
    """
    from scipy import ndimage

    u = np.arange(extent[0], extent[1], 0.25) + 0.125
    v = np.arange(extent[2], extent[3], 0.25) + 0.125
    start = origin * np.array(image.shape) - 0.5
    along, across = np.multiply.outer(directions[0], u), np.multiply.outer(directions[1], v)
    at = start[:, None, None] + along[:, :, None] + across[:, None]
    return ndimage.map_coordinates(image, at, order=1, mode="constant")


def save_samples_panel(
    volumes: Sequence[SimulatedVolume], path: str | Path, titles: Sequence[str]
) -> Path:
    """Draw samples, two a row: the slice with most labels and its outline, and the projection.

    Args:
        volumes: samples to show.
        path: picture to write (format by its suffix).
        titles: a name for each sample.
    """
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
