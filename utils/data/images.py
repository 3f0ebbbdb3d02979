"""Torch data sets of simulated images: segmentation, keypoint and regression targets.

The samples are simulated at once, into memory and, where a path is given, into an HDF5 file; one
that exists is loaded. Axis order is (x, y); the pixel ``image[0, i, j]`` has its centre at
(i + 0.5, j + 0.5), and columns' centres are in those pixels.
"""

import os
import secrets
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from tqdm import tqdm

from utils.data.epochs import EpochDataset, item_index
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.simulation.image import ImageConfig, image_rng, simulate_image
from utils.simulation.streams import check_seed
from utils.storage import version_note
from utils.storage.config_files import field_texts
from utils.storage.images import ImageSamples, ImageSet, new_image_file, read_image_set, read_images

KEYPOINT_PADDING = 999.0  # stands in both coordinates of rows that hold no centre
HEAT_MAPS = ("Gaussian", "Cauchy")


class Fake2DDataset(EpochDataset):
    """What the data sets of simulated images share; each gives its own targets."""

    normalizer = PercentileNormalizer(rule="percentiles")
    """Plain: bright spots fill so little of an image that the other rule would take a higher limit,
    and make other images of the same seed."""

    def __init__(
        self,
        L: int,
        seed: int | None = None,
        h5path: str | os.PathLike[str] | None = None,
        **parameters: Any,
    ) -> None:
        """Simulate or load the samples.

        Args:
            L: number of samples, at least 1.
            seed: sample i of a seed (0 <= seed < 2^32) is the same to the bit for any ``L``. With
                None the seed of an existing file is taken, or else a fresh one is drawn;
                ``dataset.seed`` tells which.
            h5path: file to load, or to make where there is none yet (its folder must exist); it
                may hold more samples than ``L``. None keeps the samples in memory only. One of
                another version of the program is loaded as it is, with a warning.
            **parameters: any of the generator's parameters, ranges as (low, high).

        Raises:
            UserError: a number out of range; a file that cannot be made or loaded, or that holds
                other parameters or another seed, with its name and the difference.
            TypeError: a parameter that the generator does not have.
            GeometryError: no placement is labelled enough within ``max_tries``.

        Parameters of the generator, those of :class:`utils.simulation.image.ImageConfig`, with
        their defaults; lengths are in units of length, of which one has ``scale`` pixels:
        """
        super().__init__()
        if not isinstance(L, int | np.integer) or L < 1:
            raise UserError(f"L must be a whole number of at least 1, got {L!r}")
        seed = None if seed is None else check_seed(seed)
        self.config = ImageConfig.from_dict(parameters)
        self.h5path = None if h5path is None else Path(h5path)
        if self.h5path is not None and self.h5path.is_file():
            self._image_set = read_image_set(self.h5path)
            if note := version_note(self.h5path, self._image_set.program_version):
                warnings.warn(note, stacklevel=3)
            asked = ImageSet(self.config, self._image_set.seed if seed is None else seed, int(L))
            self._image_set.check_serves(self.h5path, asked)
            self._samples = read_images(self.h5path, int(L))
        else:
            fresh = secrets.randbits(32) if seed is None else seed
            self._image_set = ImageSet(self.config, fresh, int(L))
            self._samples = self._simulate()
        self.seed = self._image_set.seed

    def __len__(self) -> int:
        return len(self._samples.images)

    def __repr__(self) -> str:
        place = "in memory" if self.h5path is None else f"in {self.h5path}"
        name, size = type(self).__name__, " x ".join(map(str, self.config.shape))
        return f"{name}({len(self)} images of {size}, seed {self.seed}, {place})"

    def centres(self, index: int) -> np.ndarray:
        """Return the centres (n, 2) float32, in pixels, of the columns inside an image."""
        return self._samples.centres[item_index(index, len(self))].copy()

    def describe(self) -> dict[str, Any]:
        """Return file (None in memory), seed, number of samples and the simulation's version."""
        file = None if self.h5path is None else str(self.h5path)
        version = self._image_set.program_version
        return {"file": file, "seed": self.seed, "samples": len(self), "version": version}

    def column_spacing(self, samples: int = 32) -> list[float]:
        """Return the columns' distance in pixels along x and y: the median over the first ones.

        They are simulated again; a file of another version holds others of the same distribution.
        """
        rngs = [image_rng(self.seed, i) for i in range(min(samples, len(self)))]
        scale = np.median([simulate_image(self.config, rng).parameters.scale for rng in rngs])
        return [float(scale) * self.config.column_distance] * 2

    def show(self, index: int = 0) -> Image:
        """Return a picture of a sample, its mask's outlines and centres, which notebooks show."""
        from utils.figures import canvas, samples

        i, kept = item_index(index, len(self)), self._samples
        sample = [kept.images[i]], [kept.masks[i]], [kept.centres[i]]
        return canvas.to_picture(samples.draw_images(*sample), dpi=160)

    def _simulate(self) -> ImageSamples:
        """Simulate all samples, into the file too if there is to be one."""
        image_set, path = self._image_set, self.h5path
        samples = ImageSamples.empty(image_set.num_samples, self.config.shape)
        # disable=None: a bar on a terminal only
        rows = tqdm(range(image_set.num_samples), "Simulating", unit="image", disable=None)
        with nullcontext() if path is None else new_image_file(path, image_set, samples):
            for i in rows:
                sample = simulate_image(self.config, image_rng(image_set.seed, i))
                limits = self.normalizer.fit(sample.image)
                samples.images[i] = self.normalizer.apply(sample.image, *limits)
                samples.masks[i] = sample.mask
                samples.centres[i] = sample.centres
        return samples

    def _image(self, index: int) -> torch.Tensor:
        """Return the image (1, X, Y) float32 in 0..1."""
        return torch.from_numpy(self._samples.images[index].copy())[None]


# ``help`` lists what stands beside the parameters where they are defined.
for _name, _text in field_texts(ImageConfig).items():
    _default = ", ".join(f"{number:g}" for number in np.ravel(getattr(ImageConfig(), _name)))
    Fake2DDataset.__init__.__doc__ += f"\n            {_name} ({_default}): {_text}"


class SegmentationFake2DDataset(Fake2DDataset):
    """Images and masks: items are (image, mask), each (1, X, Y) float32.

    The image lies in 0..1, scaled between its 1st and 99th percentile; the mask is 0 or 1.

        dataset = SegmentationFake2DDataset(L=100, seed=0, h5path="images.h5")
        image, mask = dataset[0]
    """

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        i = item_index(index, len(self))
        return self._image(i), torch.from_numpy(self._samples.masks[i].astype(np.float32))[None]


class KeypointDetectionFake2DDataset(Fake2DDataset):
    """Images and where the columns are: items are (image, heat map, centres).

    The heat map (1, X, Y) float32 is the largest of the bumps of height 1 about the centres: of
    type "Gaussian", exp(-d^2 / (2 sigma^2)), or "Cauchy", 1 / (1 + d^2 / sigma^2), with d the
    distance in pixels of a pixel's centre from the column's. The centres are (max_centres, 2)
    float32, in pixels, padded with 999; ``with_centres=False`` leaves them out of the items.

    Raises UserError as :class:`Fake2DDataset`, and for another type or a sigma of 0 or less.
    """

    def __init__(
        self,
        L: int,
        seed: int | None = None,
        h5path: str | os.PathLike[str] | None = None,
        *,
        sigma: float = 2.0,
        type: str = "Gaussian",
        with_centres: bool = True,
        **parameters: Any,
    ) -> None:
        if type not in HEAT_MAPS:
            raise UserError(f"type {type!r}: must be one of {', '.join(HEAT_MAPS)}")
        if not np.isfinite(sigma) or sigma <= 0:
            raise UserError(f"sigma {sigma}: must be larger than 0")
        super().__init__(L, seed, h5path, **parameters)
        self.sigma = float(sigma)
        self.type = type
        self.with_centres = with_centres

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        i = item_index(index, len(self))
        centres = self._samples.centres[i]
        heat = torch.from_numpy(heat_map(self.config.shape, centres, self.sigma, self.type))[None]
        if not self.with_centres:
            return self._image(i), heat
        return self._image(i), heat, _padded(centres, self.config.max_centres, KEYPOINT_PADDING)


class RegressionFake2DDataset(Fake2DDataset):
    """Images and centres as numbers: items are (image, centres).

    The centres are (max_centres, 2) float32, relative to the image's centre in units of its sides
    (-0.5..0.5), padded with the first of them.
    """

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        i = item_index(index, len(self))
        relative = self._samples.centres[i] / np.array(self.config.shape, np.float32) - 0.5
        relative = relative.astype(np.float32)
        return self._image(i), _padded(relative, self.config.max_centres, relative[0])


def heat_map(
    shape: tuple[int, int], centres: np.ndarray, sigma: float = 2.0, type: str = "Gaussian"
) -> np.ndarray:
    """Return the largest of the bumps of height 1 about ``centres`` (n, 2), (X, Y) float32."""
    x, y = (np.arange(edge, dtype=np.float32)[:, None] + 0.5 for edge in shape)
    from_x, from_y = (x - centres[:, 0]) ** 2, (y - centres[:, 1]) ** 2
    nearest = np.min(from_x[:, None] + from_y[None], axis=-1)
    if type == "Cauchy":
        return 1.0 / (1.0 + nearest / np.float32(sigma**2))
    return np.exp(-nearest / np.float32(2.0 * sigma**2))


def _padded(centres: np.ndarray, length: int, padding: np.ndarray | float) -> torch.Tensor:
    """Return ``centres`` (n, 2) with rows of ``padding`` added up to ``length``."""
    rows = np.full((length, 2), padding, np.float32)
    rows[: len(centres)] = centres
    return torch.from_numpy(rows)
