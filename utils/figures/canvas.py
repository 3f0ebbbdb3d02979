"""Empty figures, what plots look like, and files written whole or not at all.

Sizes are inches, resolutions dots an inch. Figures are matplotlib's without pyplot (the Agg
canvas), so that no window is ever opened.
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.replacing import make_folder, replacing

REFERENCE_LINE = {"color": "#777777", "linestyle": "--", "linewidth": 1}
"""How a line to compare with is drawn."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of ``width`` x ``height`` inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


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
