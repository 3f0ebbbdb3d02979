"""Slices of volumes as pictures: which slice, how bright, the fluorescence and outlines of masks.

Arrays are (X, Y) or (X, Y, Z); x runs to the right and y upwards.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from utils.figures.canvas import BLUE_MAP


def scale_to_display(image: np.ndarray, low: float = 1.0, high: float = 99.0) -> np.ndarray:
    """Return ``image`` clipped and scaled to 0..1 between two percentiles of it, float32."""
    bottom, top = np.percentile(image, [low, high])
    if top <= bottom:
        return np.zeros(image.shape, dtype=np.float32)
    return np.clip((image - bottom) / (top - bottom), 0.0, 1.0).astype(np.float32)


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
