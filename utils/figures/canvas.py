"""What all pictures share: figures, colours, the look of plots and slices, files written whole.

Sizes are inches, resolutions dots an inch. Figures are matplotlib's without pyplot (the Agg
canvas), so that no window is ever opened. Fluorescence is blue, masks are red; colours are RGB in
0..1 or hexadecimal. Column types count from 0, left out. Slices are (X, Y) of volumes (X, Y, Z); x
runs to the right and y upwards.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.data.normalize import PercentileNormalizer
from utils.replacing import make_folder, replacing

BLUE_RAMP = ((0.0, 0.0, 0.0), (0.03, 0.16, 0.62), (0.22, 0.55, 1.0), (0.86, 0.96, 1.0))
"""Fluorescence from dark to bright, equal steps apart."""
BLUE_MAP = LinearSegmentedColormap.from_list("fluorescence", BLUE_RAMP)
MASK_RED = (0.93, 0.18, 0.16)
TRAIN, VALID, TRUTH = "#3b6fb6", "#d1495b", "#ffb000"
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#3ddc84", "#ff4d4d", "#4da3ff"
TYPE_NAMES = ("left out", "A (dense)", "B (clumped)", "C (ring)")  # names of column types 0..3
REFERENCE_LINE = {"color": "#777777", "linestyle": "--", "linewidth": 1}
"""How a line to compare with is drawn."""


def blue(brightness: np.ndarray) -> np.ndarray:
    """Return the fluorescence colours (..., 3) float32 in 0..1 of ``brightness`` (...) in 0..1."""
    steps = np.linspace(0.0, 1.0, len(BLUE_RAMP))
    channels = [np.interp(brightness, steps, channel) for channel in np.transpose(BLUE_RAMP)]
    return np.stack(channels, axis=-1).astype(np.float32)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of ``width`` x ``height`` inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def to_picture(figure: Figure, dpi: int = 100) -> Image.Image:
    """Return what ``figure`` shows."""
    figure.set_dpi(dpi)
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return Image.fromarray(np.asarray(drawn.buffer_rgba())).convert("RGB")


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write ``figure`` whole or not at all; folders are made."""
    path = Path(path)
    make_folder(path.parent)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    return path


def style(axes: Axes) -> None:
    """Give ``axes`` of a plot a pale grid, no upper and right edge, and small numbers."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def count_along_x(axes: Axes, **options: Any) -> None:
    """Put the ticks of x at whole numbers; ``options`` are those of ``MaxNLocator``."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, **options))


def add_legend_below(figure: Figure, **options: Any) -> None:
    """Put a legend below all panels; ``options`` are those of ``Figure.legend``."""
    figure.legend(loc="outside lower center", fontsize=8, frameon=False, **options)


def scale_to_display(image: np.ndarray, low: float = 1.0, high: float = 99.0) -> np.ndarray:
    """Return ``image`` clipped and scaled to 0..1 between two percentiles of it, float32."""
    return PercentileNormalizer().apply(image, *np.percentile(image, [low, high]))


def densest_slice(mask: np.ndarray) -> int:
    """Return the z of ``mask`` (X, Y, Z) with most labelled voxels (the first of several)."""
    return int(np.argmax(np.count_nonzero(mask > 0, axis=(0, 1))))


def show_slice(axes: Axes, image: np.ndarray, **options: Any) -> Any:
    """Draw ``image`` (X, Y) or (X, Y, 3) with x to the right and y upwards."""
    shown = axes.imshow(
        np.swapaxes(image, 0, 1), origin="lower", interpolation="nearest", **options
    )
    axes.tick_params(labelsize=7)
    return shown


def draw_outline(axes: Axes, mask: np.ndarray, colour: str, width: float = 0.8) -> None:
    """Draw the outline of ``mask`` (X, Y); an empty or full one has none."""
    if mask.any() and not mask.all():
        axes.contour(mask.T.astype(float), levels=[0.5], colors=[colour], linewidths=width)


def show_fluorescence(axes: Axes, image: np.ndarray, **options: Any) -> None:
    """Draw ``image`` (X, Y) of 0..1 in the colours of fluorescence; ``options`` as in imshow."""
    show_slice(axes, image, cmap=BLUE_MAP, vmin=0, vmax=1, **options)
