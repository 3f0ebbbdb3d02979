"""One sample in the form in which it is stored, made in the process that simulates it.

Compressing there leaves the one process that writes little to do.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.grey_values import GreyCounts, find_limits
from utils.simulation.imaging import MOST_STORED
from utils.simulation.volume import SimulatedVolume, WideVolume
from utils.storage.layout import GZIP_LEVEL, REFERENCE, WIDE, chunks_of, parameter_layout


@dataclass(frozen=True)
class EncodedRow:
    """One sample, rounded and compressed."""

    image: np.ndarray  # (X, Y, Z) float16
    chunks: dict[str, list[tuple[tuple[int, ...], bytes]]]
    """Of each dataset of labels the compressed chunks, which begin at a voxel, that hold any."""
    values: dict[str, np.ndarray | str]  # what goes into the row of each other dataset


def encode_row(volume: SimulatedVolume) -> EncodedRow:
    """Round the image to float16, compress the labels, and flatten the rest.

    Pure; meant for the worker. Intensities above 65504, the largest float16, are set to it. Raises
    UserError if the image is negative or not finite anywhere.
    """
    image, percentiles = stored_image(volume.image)
    filled = [c for c in chunks_of(np.asarray(volume.instances, "<u2")) if c[1].any()]
    chunks = {
        "vol_labels": [(corner, zlib.compress(c > 0, GZIP_LEVEL)) for corner, c in filled],
        "vol_instances": [(corner, zlib.compress(c, GZIP_LEVEL)) for corner, c in filled],
    }
    kind = WIDE if isinstance(volume, WideVolume) else REFERENCE
    values: dict[str, np.ndarray | str] = {"vol_percentiles": percentiles}
    for name, (stored, _, _) in kind.ragged.items():
        values[name] = np.asarray(getattr(volume, name), stored).ravel()
    for name, (dtype, shape) in parameter_layout(kind.parameters).items():
        value = getattr(volume.parameters, name)
        text = isinstance(value, str)
        values["parameters/" + name] = value if text else np.asarray(value, dtype).reshape(shape)
    return EncodedRow(image, chunks, values)


def stored_image(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image as the file holds it, float16, and the grey values that become 0 and 1.

    These are (2,) float32, by the rule ``robust`` of ``utils.grey_values``. Raises UserError if the
    image is negative or not finite.
    """
    if not image.min() >= 0 or not image.max() < np.inf:
        raise UserError("an image must be finite and nowhere negative; use milder parameters")
    rounded = np.minimum(image, np.float32(MOST_STORED)).astype("<f2")
    limits = find_limits(GreyCounts(lambda: [rounded], rounded.dtype), 1.0, 99.0, "robust")
    return rounded, np.array([limits.low, limits.high], "<f4")
