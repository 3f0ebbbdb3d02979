"""Empty figures, colours, what plots look like, and files written whole or not at all.

Sizes are inches, resolutions dots an inch. Figures are matplotlib's without pyplot (the Agg
canvas), so that no window is ever opened. Fluorescence is blue, masks are red; colours are RGB in
0..1 or hexadecimal. Column types count from 0, left out.
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
