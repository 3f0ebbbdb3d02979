"""One sample as bytes, made in the process that simulates it.

Compressing there leaves the one process that writes nothing to do but to put bytes in their places.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from utils.simulation.volume import SimulatedVolume
from utils.storage.layout import GZIP_LEVEL, RAGGED, parameter_layout, split_chunks

_LARGEST_FLOAT16 = np.float32(np.finfo(np.float16).max)


@dataclass(frozen=True)
class EncodedRow:
    """One sample as bytes that the writing process only has to put in their places."""

    image: bytes | memoryview
    """float16, chunk after chunk, each of the full chunk shape."""
    record: bytes | memoryview
    """Everything else, an npz archive."""


def encode_row(volume: SimulatedVolume) -> EncodedRow:
    """Round the image to float16, compress the labels, and pack the rest.

    Pure; meant for the worker. Intensities above 65504, the largest float16, are set to it. Raises
    ValueError if the image is negative or not finite anywhere.
    """
    image, percentiles = stored_image(volume.image)
    image_bytes = split_chunks(image).tobytes()
    record: dict[str, np.ndarray] = {
        "image_crc": np.array(zlib.crc32(image_bytes), np.uint32),
        "vol_percentiles": percentiles,
    }
    instances = split_chunks(np.asarray(volume.instances, "<u2"))
    for name, chunks in (("vol_labels", instances > 0), ("vol_instances", instances)):
        record[name], record[name + "_sizes"] = _compress_chunks(chunks)
    for name, part in RAGGED.items():
        record[name] = np.asarray(getattr(volume, name), part.dtype).ravel()
    for name, (dtype, shape) in parameter_layout().items():
        value = np.asarray(getattr(volume.parameters, name), dtype)
        record["parameters/" + name] = value.reshape(shape)
    return EncodedRow(image_bytes, pack(record))


def stored_image(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image as the file holds it, float16, and its 1st and 99th percentile there.

    The percentiles are (2,) float32. Raises ValueError if the image is negative or not finite.
    """
    rounded = _to_float16(image)
    return rounded, _percentiles(rounded)


def _to_float16(image: np.ndarray) -> np.ndarray:
    if not image.min() >= 0 or not image.max() < np.inf:
        raise ValueError("an image must be finite and nowhere negative")
    return np.minimum(image, _LARGEST_FLOAT16).astype("<f2")


def _percentiles(image: np.ndarray) -> np.ndarray:
    """Return the 1st and 99th percentile, (2,) float32, of a float16 image >= 0.

    The bits of such numbers, read as integers, are in the numbers' order: a histogram of them gives
    exact order statistics in a tenth of the time of a sort. Between two of them, linear.
    """
    bits = image.view(np.uint16) & 0x7FFF  # without the sign of a negative zero
    cumulative = np.cumsum(np.bincount(bits.ravel()))
    position = np.array([0.01, 0.99]) * (image.size - 1)
    below = np.floor(position)
    ranks = np.stack([below, np.ceil(position)])
    ordered = np.searchsorted(cumulative, ranks, side="right").astype(np.uint16)
    low, high = ordered.view(np.float16).astype(np.float64)
    return (low + (high - low) * (position - below)).astype("<f4")


def _compress_chunks(chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all compressed chunks on end, uint8, and the size of each: 0 where all is zero."""
    streams = [zlib.compress(chunk, GZIP_LEVEL) if chunk.any() else b"" for chunk in chunks]
    return np.frombuffer(b"".join(streams), np.uint8), np.array([len(s) for s in streams], "<u4")


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return named arrays as the bytes of an npz archive."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack(payload: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of :func:`pack`."""
    with np.load(io.BytesIO(payload)) as archive:
        return dict(archive)
