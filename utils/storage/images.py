"""The HDF5 file of simulated images: its layout, how it is written in one go, and how it is read.

Plain h5py opens the file without plugins. Axis order is (x, y). Images are kept scaled to 0..1, as
data sets give them; ``image_rng(seed, i)`` and the configuration among the attributes make sample i
again with its raw counts and all parameters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.errors import UserError, hdf5_errors
from utils.provenance import DATA_VERSION, IMAGE_FORMAT
from utils.simulation.image import ImageConfig
from utils.storage.files import (
    GZIP_LEVEL,
    describe,
    differing,
    format_problem,
    new_hdf5_file,
    open_checked,
)

IMAGE_LAYOUT = {
    "image_data": "image, (sample, x, y), float32, 1st to 99th percentile scaled to 0..1",
    "image_labels": "mask, (sample, x, y): 1 inside the disk of any column",
    "points": "centres inside the image in pixels, (n, 2): f['points'][sample].reshape(-1, 2)",
}
"""Names in the file and what they hold."""


class OtherParametersError(UserError):
    """A file holds samples of other parameters."""


@dataclass(frozen=True)
class ImageSet:
    """All that decides a file's contents: sample i is simulated with ``image_rng(seed, i)``."""

    config: ImageConfig
    seed: int
    num_samples: int
    program_version: str = DATA_VERSION

    def check_serves(self, path: Path, asked: ImageSet) -> None:
        """Raise OtherParametersError unless a file of this set holds all samples ``asked`` for.

        It may hold more: sample i does not depend on how many there are. A file of another version
        serves too: it holds other samples of the same parameters, and is never added to.
        """
        here, wanted = ({**s.config.to_dict(), "seed": s.seed} for s in (self, asked))
        differences = differing(here, wanted)
        if self.num_samples < asked.num_samples:
            differences.append(("L (number of samples)", self.num_samples, asked.num_samples))
        if differences:
            text = "; ".join(f"{name} is {old}, asked for {new}" for name, old, new in differences)
            raise OtherParametersError(f"{path}: other parameters: {text}")


@dataclass(frozen=True)
class ImageSamples:
    """L samples in memory."""

    images: np.ndarray  # (L, X, Y) float32, 0..1
    masks: np.ndarray  # (L, X, Y) uint8, 0/1
    centres: list[np.ndarray]  # L arrays (n, 2) float32 in pixels, inside the image

    @classmethod
    def empty(cls, count: int, shape: tuple[int, int]) -> ImageSamples:
        """Return room for ``count`` samples of ``shape``."""
        images, masks = np.zeros((count, *shape), np.float32), np.zeros((count, *shape), np.uint8)
        return cls(images, masks, [np.zeros((0, 2), np.float32)] * count)


@contextmanager
def new_image_file(path: Path, image_set: ImageSet, samples: ImageSamples) -> Iterator[None]:
    """Make a file of ``samples``, which are written when the block ends without an error.

    Otherwise nothing is left. Raises UserError, naming the file, if that cannot be done.
    """
    pixels = math.prod(image_set.config.shape)
    room = image_set.num_samples * (5 * pixels + (1 << 12)) + (1 << 20)
    with new_hdf5_file(path, lambda file: _lay_out(file, image_set), room) as file:
        yield
        with hdf5_errors(path, "cannot be written"):
            file["image_data"][:] = samples.images
            file["image_labels"][:] = samples.masks
            for index, centres in enumerate(samples.centres):
                file["points"][index] = centres.ravel()


def read_image_set(path: Path) -> ImageSet:
    """Return what a file was made from; UserError, naming it, if it is not of this layout."""
    with open_checked(path, _layout_problem) as file:
        attributes: dict[str, Any] = dict(file.attrs)
    try:
        config = ImageConfig.from_dict(json.loads(attributes["configuration"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its configuration is not one of images: {error}") from error
    seed, count = int(attributes["seed"]), int(attributes["num_samples"])
    return ImageSet(config, seed, count, str(attributes["program_version"]))


def read_images(path: Path, count: int) -> ImageSamples:
    """Return the first ``count`` samples of a file; UserError, naming it, if it cannot be."""
    with open_checked(path, _layout_problem) as file, hdf5_errors(path):
        centres = [flat.reshape(-1, 2) for flat in file["points"][:count]]
        return ImageSamples(file["image_data"][:count], file["image_labels"][:count], centres)


def _lay_out(file: h5py.File, image_set: ImageSet) -> None:
    count, shape = image_set.num_samples, image_set.config.shape
    describe(file, "images", IMAGE_FORMAT, image_set.config, image_set.seed, count)
    file.create_dataset("image_data", (count, *shape), "<f4", chunks=(1, *shape))
    labels = {"chunks": (1, *shape), "compression": GZIP_LEVEL}
    file.create_dataset("image_labels", (count, *shape), "u1", **labels)
    file.create_dataset("points", (count,), h5py.vlen_dtype(np.dtype("<f4")))
    for name, text in IMAGE_LAYOUT.items():
        file[name].attrs["description"] = text


def _layout_problem(file: h5py.File) -> str:
    """Return what keeps a file from being read here; empty if nothing does."""
    if "vol_data" in file:
        return "holds 3D volumes, not images; SegmentationFake3DDataset reads it"
    attributes = ("format_version", "program_version", "configuration", "seed", "num_samples")
    return format_problem(file, "images", IMAGE_LAYOUT, attributes, IMAGE_FORMAT)
