"""Pictures of single columns: the map of their lattice, and planes with a view in 3D beside them.

A column's colour is one of seven, (p + 2 q) mod 7, so that it differs from all six neighbours';
columns without a place are grey. Planes have y downwards, as in Fiji.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.patheffects import withStroke
from scipy import ndimage
from skimage.segmentation import find_boundaries

from utils.columns.blocks import slabs
from utils.columns.finding import FoundColumns
from utils.columns.growing import across
from utils.figures import canvas
from utils.figures.stacks import PLANES, draw_scale_bar, plane_panels, show_plane, to_rows
from utils.prediction.sections import cut, middle_of
from utils.stacks import Stack

SEVEN = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Okabe and Ito's colours, which the colour-blind tell apart."""
UNPLACED = "#9a9a9a"
ON_THE_MAP = np.array([[1, -1], [1 / np.sqrt(3), 1 / np.sqrt(3)]]) * np.sqrt(3) / 2
"""(2, 2): in columns where one step of p and of q goes on the map; p + q goes up."""
MOST_PATCHES = 4  # patches on the map, the largest ones
LEAST_PANEL = 2.0  # inches of a patch, which its title needs
LABELLED, EACH = 150, 5
"""Columns of a patch of which all have their (p, q) written on the map; of more each fifth one."""
TEXT = 5.0  # points of the (p, q) in planes
SLIVER = 6  # pixels below which a column's section gets no (p, q)
TILT = np.radians(50)  # angle between the columns and the view in 3D


def save_lattice_map(
    found: FoundColumns, path: str | Path, name: str, colour: str | None = None
) -> Path:
    """Draw a hexagon for each column that has a place, and return ``path``; the title has ``name``.

    Seen from the side that axes point to. The field ``colour`` of the table gives colours: None is
    the mean of the first channel that was measured, else the length. Inferred columns are hollow;
    stars are defects. Arrows show the file's x, y and z beside each patch.
    """
    lattice = found.lattice
    votes = lattice.votes[:MOST_PATCHES]
    measure, words = _measure(found, colour)
    known = measure[(lattice.patch > 0) & np.isfinite(measure)]
    low, high = np.percentile(known, [2, 98]) if len(known) else (0.0, 1.0)
    colours = {"cmap": colormaps["viridis"].with_extremes(bad=UNPLACED)}
    colours["clim"] = low, max(high, low + 1e-9)
    places = [[there for _, there in _on_map(found, number)] for number in range(1, len(votes) + 1)]
    sizes = [np.ptp(np.concatenate(pair), axis=0) + 3 for pair in places] or [np.array([6.0, 3.0])]
    wide, tall = sum(size[0] for size in sizes), max(size[1] for size in sizes)
    inch = min(9.0 / wide, 8.0 / tall, 0.6)
    widths = [max(size[0], LEAST_PANEL / inch) for size in sizes]
    figure = canvas.new_figure(max(5.0, inch * sum(widths)) + 1.4, max(2.0, inch * tall) + 1.8)
    grid = figure.subplots(1, len(sizes), squeeze=False, width_ratios=widths)[0]
    for axes in grid:
        axes.set_axis_off()
    for number, vote in enumerate(votes, start=1):
        axes, (own, inferred) = grid[number - 1], places[number - 1]
        values = measure[lattice.patch == number]
        cells = PolyCollection(_hexagons(own, 0.96), array=values, **colours)
        axes.add_collection(cells)
        hollow = {"facecolors": "none", "edgecolors": "#777777", "linewidths": 0.8}
        axes.add_collection(PolyCollection(_hexagons(inferred, 0.8), **hollow))
        axes.set_aspect("equal")
        _label_cells(axes, found, number, inch)
        _draw_directions(axes, found, number, np.concatenate([own, inferred]))
        axes.set_title(
            f"patch {number}: {len(own)} columns\n{len(inferred)} inferred (hollow)\n"
            f"diagonal: {vote.share:.0%} of {vote.votes} votes",
            fontsize=8,
        )
    if votes:
        figure.colorbar(cells, ax=grid, label=words, shrink=0.6, extend="both")
    figure.suptitle(_map_title(found, name), fontsize=9)
    return canvas.save_figure(figure, path, dpi=300)  # to be printed


def _measure(found: FoundColumns, field: str | None) -> tuple[np.ndarray, str]:
    """Return what the map's colour shows (N,), and its words."""
    values = found.measured.values(found.steps, found.lattice)
    if field is None:
        field = next((name for name in values if name.startswith("mean_")), "length")
    what, _, number = field.partition("_")
    if what in ("mean", "peak"):
        return values[field], f"{what} of channel {number} (grey values)"
    units = {"length": found.unit, "diameter": found.unit, "lattice_residual": "steps"}
    units["volume"] = found.unit if found.unit == "voxels" else f"{found.unit}\u00b3"
    return values[field], field.replace("_", " ") + (f" ({units[field]})" if field in units else "")


def _map_title(found: FoundColumns, name: str) -> str:
    """Return what the map is of, and what nobody knows of it."""
    lattice, marks = found.lattice, found.landmarks
    up = "p + q upwards" if marks.dorsal is None else "dorsal (p + q) upwards"
    lines = [f"{name}: {up}, seen from where columns spread to (distal in medulla and eye)"]
    without = np.count_nonzero(lattice.patch == 0)
    rest = np.count_nonzero(lattice.patch > MOST_PATCHES)
    facts = [f"{without} columns without a place"] if without else []
    facts += [f"{rest} in patches not shown"] if rest else []
    free = ", ".join(found.free)
    facts.append(f"free: {free}" if free else "origin and orientation as they were given")
    if lattice.votes:
        facts.append("a diagonal of 50% would be a toss-up")
    else:
        lines.append("no lattice: too few columns stand as on one")
    return "\n".join([*lines, "; ".join(facts)])


def _on_map(found: FoundColumns, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (p, q) and place on the map, (A, 2) each, of a patch's columns and inferred ones."""
    both = (found.lattice, found.lattice.inferred)
    pqs = [part.pq[part.patch == number] for part in both]
    return [(pq, pq @ _to_map(found, number).T) for pq in pqs]


def _to_map(found: FoundColumns, number: int) -> np.ndarray:
    """Return (2, 2) from (p, q) to the map, which is seen from where the axes point to."""
    own = found.lattice.patch == number
    steps, axes = found.lattice.steps[own], found.measured.axis[own]
    hand = np.sign(np.einsum("nc,nc->n", np.cross(steps[:, :, 0], steps[:, :, 1]), axes)).sum()
    return ON_THE_MAP if hand >= 0 else ON_THE_MAP[:, ::-1]


def _hexagons(places: np.ndarray, size: float) -> np.ndarray:
    """Return the corners (A, 6, 2) of hexagons about ``places`` (A, 2); those of size 1 touch."""
    angle = np.radians(60 * np.arange(6))
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=1) / np.sqrt(3)
    return places[:, None] + size * corners


def _label_cells(axes: Axes, found: FoundColumns, number: int, inch: float) -> None:
    """Write (p, q) into cells, and mark the origin and the defects."""
    cells = _on_map(found, number)
    everything = len(cells[0][0]) <= LABELLED
    size = min(7.0, inch * 72 / (2.6 if everything else 1.3))
    inks = (("white", "black"), ("#555555", "white"))
    for (pq, places), (colour, edge) in zip(cells, inks, strict=True):
        for (p, q), place in zip(pq, places, strict=True):
            if everything or (p % EACH == 0 and q % EACH == 0):
                weight = "bold" if p == q == 0 else "normal"
                _write(axes, place, f"{p},{q}", size, colour, edge, weight=weight)
    for defect in found.lattice.defects:
        if defect.patch == number:
            pq = found.lattice.pq[defect.columns]
            x, y = (pq @ _to_map(found, number).T).mean(axis=0)
            what = "dislocation" if defect.fold == 6 else f"{defect.fold}-fold"
            axes.plot(x, y, "*", color="red", markeredgecolor="white", markersize=12)
            _write(axes, (x, y + 0.9), what, 7.0, "red", "white")


def _draw_directions(axes: Axes, found: FoundColumns, number: int, places: np.ndarray) -> None:
    """Draw the file's x, y and z as arrows at the map's lower left corner."""
    own = found.lattice.patch == number
    pq = found.lattice.pq[own]
    inner = np.linalg.norm(pq - np.median(pq, axis=0), axis=1)
    basis = found.lattice.steps[own][np.argsort(inner)[:7]].mean(axis=0)
    arrows = (_to_map(found, number) @ np.linalg.pinv(basis)).T
    length = 0.09 * np.ptp(places, axis=0).max()
    corner = places.min(axis=0) + [0, -0.5 * length]
    arrows *= length / np.linalg.norm(arrows, axis=1).max()
    _draw_arrows(axes, corner, arrows, 0.25 * length)
    axes.autoscale_view()


def _draw_arrows(axes: Axes, corner: np.ndarray, arrows: np.ndarray, least: float) -> None:
    """Draw ``arrows`` (3, 2) for x, y and z from ``corner``, but those shorter than ``least``."""
    for letter, (x, y) in zip("xyz", arrows, strict=True):
        if np.hypot(x, y) > least:
            end, look = corner + [x, y], {"arrowstyle": "->", "color": "#444444"}
            axes.annotate("", tuple(end), tuple(corner), arrowprops=look)
            _write(axes, corner + [1.3 * x, 1.3 * y], letter, 8.0, "#444444", "white")
            axes.update_datalim([end])


def _write(
    axes: Axes, place: Any, words: str, size: float, colour: str, edge: str, **look: Any
) -> None:
    """Write ``words`` of ``size`` points around ``place``, in letters with an edge."""
    effects = [withStroke(linewidth=1.3, foreground=edge)]
    axes.text(place[0], place[1], words, fontsize=size, color=colour, ha="center", va="center",
              path_effects=effects, clip_on=True, **look)  # fmt: skip


def save_planes(found: FoundColumns, stack: Stack, path: str | Path, name: str) -> Path:
    """Draw three planes with the columns' outlines and (p, q), and all columns in 3D.

    The planes go through the median of the labelled voxels and show the grey values of ``stack``,
    which has the shape of the labels.
    """
    shape = found.labels.shape
    middle, _ = middle_of((slab for _, slab in slabs(found.labels)), shape)
    images = cut((stack.read(z, z + s.shape[2]) for z, s in slabs(found.labels)), shape, middle)
    labels = cut((slab for _, slab in slabs(found.labels)), shape, middle)
    size = np.array(shape) * found.steps
    figure, panels, inch = plane_panels(size, stack.origin, middle, view=0.5)
    colours = column_colours(found)
    for k, (image, marks) in enumerate(zip(images, labels, strict=True)):
        places = panels[k], found, to_rows(image, k), to_rows(marks, k)
        _draw_plane(*places, list(PLANES[k]), inch, colours)
    draw_scale_bar(panels[0], size[0], size[1], found.unit)
    _draw_view(panels[3], found, colours)
    words = "p,q in the columns where there is room; grey: no place in the lattice"
    figure.suptitle(f"{name}: {len(found.measured.axis)} columns\n{words}", fontsize=9)
    return canvas.save_figure(figure, path, dpi=150)


def column_colours(found: FoundColumns) -> np.ndarray:
    """Return colours (N, 3) in 0..1."""
    palette = np.array([to_rgb(colour) for colour in (*SEVEN, UNPLACED)])
    number = (found.lattice.pq @ [1, 2]) % 7
    return palette[np.where(found.lattice.patch > 0, number, 7)]


def _draw_plane(
    axes: Axes,
    found: FoundColumns,
    image: np.ndarray,
    labels: np.ndarray,
    plane: list[int],
    inch: float,
    colours: np.ndarray,
) -> None:
    """Draw a plane (rows, columns) in grey, its columns' outlines and (p, q).

    ``plane`` are the axes to the right and downwards, ``inch`` the inches of a unit of length.
    """
    finite = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
    grey = canvas.scale_to_display(finite, 1, 99.5)
    show_plane(axes, grey, cmap="gray", vmin=0, vmax=1.3)
    size = np.array(found.labels.shape)[plane] * np.array(found.steps)[plane]
    pixel = size / labels.shape[::-1]
    finer = np.maximum(1, np.rint(150 * inch * pixel)).astype(int)  # outlines of a pixel's width
    large = labels.repeat(finer[1], axis=0).repeat(finer[0], axis=1)
    outline = find_boundaries(large, mode="inner", connectivity=2)
    outline = ndimage.binary_dilation(outline) & (large > 0)
    over = np.zeros((*large.shape, 4), np.float32)
    over[outline, :3], over[outline, 3] = colours[large[outline] - 1], 1
    show_plane(axes, over, interpolation="nearest")
    lattice, voxels = found.lattice, np.bincount(labels.ravel())
    shown = np.unique(labels[labels > 0])
    shown = shown[(lattice.patch[shown - 1] > 0) & (voxels[shown] >= SLIVER)]
    if len(shown) == 0:
        return
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, shown))[:, ::-1] + 0.5
    pq = lattice.pq[shown - 1]
    # Where its section is too small for it, the text stands beside its distal end.
    wide = np.sqrt(voxels[shown] * np.prod(pixel))
    width = np.array([len(f"{p},{q}") for p, q in pq]) * 0.6 * TEXT / 72 / inch
    ways = found.measured.axis[shown - 1][:, plane]
    ways = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-9)
    beyond = np.where(wide < width, 0.8 * wide + 0.6 * width, 0)
    places = centres * pixel + beyond[:, None] * ways
    far = np.linalg.norm(places - size / 2, axis=1)
    order = np.lexsort((far, (pq % EACH != 0).any(axis=1)))
    taken = np.empty((0, 3))
    for k in order:
        words = f"{pq[k, 0]},{pq[k, 1]}"
        half = np.array([width[k] / 2, 0.55 * TEXT / 72 / inch])
        apart = np.abs(taken[:, :2] - places[k])
        if ((apart[:, 0] < half[0] + taken[:, 2]) & (apart[:, 1] < 2 * half[1])).any():
            continue
        taken = np.vstack([taken, [*places[k], half[0]]])
        _write(axes, places[k], words, TEXT, "white", "black")


def _draw_view(axes: Axes, found: FoundColumns, colours: np.ndarray) -> None:
    """Draw each column's path as thick as it is, and its axis as a line through it.

    Discs, whose paths are hardly longer than a voxel, are drawn along their axis. The view is
    orthographic, tilted against the mean axis, which points up; what lies behind is drawn first and
    paler.
    """
    measured = found.measured
    axes.set_axis_off()
    axes.set_title("in 3D, axes as lines", fontsize=9)
    if len(measured.axis) == 0:
        return
    camera = _camera(measured.centre, measured.axis)
    diameter = measured.diameter(found.steps)
    way = (measured.length[:, None] * measured.axis)[:, None]
    shares = np.linspace(-0.5, 0.5, measured.paths.shape[1])[:, None]
    straight = measured.centre[:, None] + shares * way
    discs = (measured.length < diameter)[:, None, None]
    seen = np.where(discs, straight, measured.paths) @ camera.T
    depth = measured.centre @ camera[2]
    fog = 0.55 * ((depth - depth.min()) / max(np.ptp(depth), 1e-9))[:, None]
    tint = colours * (1 - fog) + fog
    ends = (measured.centre[:, None] + np.array([[-0.75], [0.75]]) * way) @ camera.T
    flat = np.concatenate([seen, ends], axis=1)[..., :2]
    low, high = flat.min(axis=(0, 1)), flat.max(axis=(0, 1))
    margin = 0.08 * (high - low).max()
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    axes.set_aspect("equal")
    axes.figure.canvas.draw()  # the layout, which says how many points a micrometre is
    box = axes.get_window_extent()
    points = 72 / axes.figure.dpi * box.width / np.ptp(axes.get_xlim())
    width = np.maximum(diameter * points * 0.85, 0.5)
    lines, tints, widths = [], [], []
    for k in np.argsort(depth)[::-1]:  # the farthest first
        lines += [ends[k, :, :2], seen[k, :, :2]]
        tints += [0.25 + 0.5 * fog[k].repeat(3), tint[k]]
        widths += [0.5, width[k]]
    axes.add_collection(LineCollection(lines, colors=tints, linewidths=widths, capstyle="butt"))
    _draw_arrows(axes, low, camera[:2].T * margin, 0.2 * margin)


def _camera(centres: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return unit vectors to the right, up and away from the viewer, one a row.

    The longest extent across the mean axis lies to the right.
    """
    frame = across(axes.mean(axis=0, keepdims=True) + 1e-9)[0]
    spread = (centres - centres.mean(axis=0)) @ frame.T
    long = np.linalg.eigh(spread.T @ spread)[1][:, 1]
    right, forth = np.array([long, [-long[1], long[0]]]) @ frame
    mean = np.cross(right, forth)
    up = np.sin(TILT) * mean + np.cos(TILT) * forth
    return np.stack([right, up, -np.cos(TILT) * mean + np.sin(TILT) * forth])
