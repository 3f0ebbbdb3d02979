"""Colours and colour maps of all pictures: fluorescence is blue, masks are red.

Colours are RGB in 0..1 or hexadecimal; column types count from 0, left out.
"""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

BLUE_RAMP = ((0.0, 0.0, 0.0), (0.03, 0.16, 0.62), (0.22, 0.55, 1.0), (0.86, 0.96, 1.0))
"""Fluorescence from dark to bright, equal steps apart."""
BLUE_MAP = LinearSegmentedColormap.from_list("fluorescence", BLUE_RAMP)
MASK_RED = (0.93, 0.18, 0.16)
TRAIN, VALID, TRUTH = "#3b6fb6", "#d1495b", "#ffb000"
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#3ddc84", "#ff4d4d", "#4da3ff"
TYPE_NAMES = ("left out", "A (dense)", "B (clumped)", "C (ring)")  # names of column types 0..3


def blue(brightness: np.ndarray) -> np.ndarray:
    """Return the fluorescence colours (..., 3) float32 in 0..1 of ``brightness`` (...) in 0..1."""
    steps = np.linspace(0.0, 1.0, len(BLUE_RAMP))
    channels = [np.interp(brightness, steps, channel) for channel in np.transpose(BLUE_RAMP)]
    return np.stack(channels, axis=-1).astype(np.float32)
