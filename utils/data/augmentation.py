"""Random changes of training items, for images and volumes alike, repeatable to the bit.

An item is an image (1, *space) in 0..1 and targets of the same shape, all float32. What item k of
epoch e becomes depends on (seed, e, k) alone: neither on the number of loader processes nor on the
threads of the process that does it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from monai.transforms import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandHistogramShift,
    RandomizableTransform,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSmoothDeform,
)
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional as F

from utils.data.epochs import EpochDataset, item_index
from utils.errors import UserError
from utils.simulation.streams import Purpose, check_seed, make_rng

LEVELS = ("none", "flips", "stains", "full")
"""``flips``: flips, axis permutations and turns by 90 degrees; ``stains``: these, and grey values
as another stain may have them; ``full``: flips, and what else may happen to the same stain."""

ELASTIC_PROBABILITY = 0.1
ELASTIC_SHIFT = 2.0  # largest shift along an axis, in voxels: a fifth of columns' distance
ELASTIC_DISTANCE = 16  # voxels between the points that are shifted independently, roughly
BLUR_PROBABILITY = 0.15
BLUR_SIGMA = (0.3, 1.0)  # in voxels, drawn for each axis
NOISE_PROBABILITY = 0.2
NOISE_SD = 0.08  # largest standard deviation, where 1 lies between the 1st and the 99th percentile
INTENSITY_PROBABILITY = 0.3  # of each change of the grey values: gamma, scale and shift
GAMMA = (0.7, 1.5)
SCALE = 0.2  # largest relative change
SHIFT = 0.05
CURVE_PROBABILITY = 0.5
CURVE_POINTS = (3, 8)
"""Points of the random rising curve that grey values follow, as in Models Genesis (Zhou et al.,
MICCAI 2019)."""
FILTER_PROBABILITY = 0.3  # of a random filter
FILTER_CHANNELS = 2
NEGATIVE_PROBABILITY = 0.3  # of dark for bright


class Augmentation:
    """Changes items at random, at one of :data:`LEVELS`; UserError for another level.

    ``flips`` draws one of the symmetries of the patch, each equally likely: 48 of a cube, 8 of a
    square; axes of different lengths keep their places. That is one copy, where MONAI's RandFlip
    and RandRotate90 in a row make one each. ``stains`` adds, each with its probability above, a
    random rising curve of the grey values, a random filter, and the negative. ``full`` adds
    likewise a smooth deformation, blur, noise, gamma, scale and shift of the grey values, in this
    order and from MONAI's transforms; the image is cut off at 0 and 1. Targets take part in the
    geometry only, and keep their values: the deformation gives them the nearest voxel's.
    """

    def __init__(self, level: str) -> None:
        if level not in LEVELS:
            raise UserError(f"augmentation {level!r}: must be one of {', '.join(LEVELS)}")
        self.level = level

    def __call__(self, rng: np.random.Generator, *item: Tensor) -> tuple[Tensor, ...]:
        """Return (image, *targets) changed as ``rng`` draws; new tensors except at level none."""
        if self.level == "none":
            return item
        symmetry = draw_symmetry(item[0].shape[1:], rng)
        item = tuple(apply_symmetry(tensor, *symmetry) for tensor in item)
        if self.level == "flips":
            return item
        with _one_thread():
            state = np.random.RandomState(rng.bit_generator)
            if self.level == "stains":
                return _restain(item[0], state), *item[1:]
            image, *targets = _deform(item, state)
            for transform in _image_transforms():
                image = transform.set_random_state(state=state)(image)
            return torch.clamp(convert_to_tensor(image), 0.0, 1.0), *targets


class AugmentedDataset(EpochDataset):
    """The items of ``dataset``, each changed as its seed, epoch and index say."""

    def __init__(self, dataset: EpochDataset, level: str, seed: int = 0) -> None:
        super().__init__()
        self.dataset = dataset
        self.augmentation = Augmentation(level)
        self.seed = check_seed(seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, here and in the data set below, in all worker processes."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        index = item_index(index, len(self))
        rng = make_rng(Purpose.AUGMENTATION, self.seed, self.epoch, index)
        return self.augmentation(rng, *self.dataset[index])


def draw_symmetry(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return a random permutation of the axes of a patch, and which of them to turn round (bool).

    Only axes of equal length change places; a turn by 90 degrees is one such exchange and a flip.
    """
    permutation = np.arange(len(shape))
    for edge in np.unique(shape):
        alike = np.flatnonzero(np.equal(shape, edge))
        permutation[alike] = rng.permutation(alike)
    return permutation, rng.random(len(shape)) < 0.5


def apply_symmetry(tensor: Tensor, permutation: np.ndarray, flipped: np.ndarray) -> Tensor:
    """Return ``tensor`` (channels, *space) with its axes of space permuted, then flipped."""
    turned = np.flip(tensor.numpy().transpose(0, *(permutation + 1)), np.flatnonzero(flipped) + 1)
    return torch.from_numpy(np.ascontiguousarray(turned))


def _deform(item: tuple[Tensor, ...], state: np.random.RandomState) -> tuple[Tensor, ...]:
    """Return the item, deformed alike if ``state`` draws so; linear for the image."""
    deform = _smooth_deform(item[0].shape[1:])
    deform.set_random_state(state=state).randomize()
    deformed = []
    for place, tensor in enumerate(item):
        deform.set_grid_mode("nearest" if place else "bilinear")
        deformed.append(convert_to_tensor(deform(tensor, randomize=False)))
    return tuple(deformed)


def _restain(image: Tensor, state: np.random.RandomState) -> Tensor:
    """Return the image as another stain may show the same tissue."""
    if image.min() < image.max():
        curve = RandHistogramShift(CURVE_POINTS, prob=CURVE_PROBABILITY)
        image = convert_to_tensor(curve.set_random_state(state=state)(image))
    if state.uniform() < FILTER_PROBABILITY:
        image = _filter(image, state)
    return 1.0 - image if state.uniform() < NEGATIVE_PROBABILITY else image


def _filter(image: Tensor, state: np.random.RandomState) -> Tensor:
    """Return the image mixed with what a shallow network of random weights makes of it.

    A layer with kernels of 1 or 3 voxels and one with kernels of 1; a linear mixture of both images
    in standard deviations, brought back to the mean and the deviation of the first one, and cut off
    at 0 and 1. After "global intensity non-linear augmentation" (Ouyang et al., IEEE TMI 2022).
    """
    space = image.ndim - 1
    edge = int(state.choice((1, 3)))
    kernel = torch.from_numpy(state.normal(size=(FILTER_CHANNELS, 1, *[edge] * space))).float()
    shift = torch.from_numpy(state.normal(size=FILTER_CHANNELS)).float()
    weights = torch.from_numpy(state.normal(size=FILTER_CHANNELS)).float()
    convolve = F.conv3d if space == 3 else F.conv2d
    made = F.leaky_relu(convolve(image[None], kernel, shift, padding=edge // 2), 0.1)[0]
    made = torch.tensordot(weights, made, 1)[None]
    share = state.uniform()
    mixed = share * _standardised(image) + (1 - share) * _standardised(made)
    return torch.clamp(_standardised(mixed) * image.std() + image.mean(), 0.0, 1.0)


def _standardised(image: Tensor) -> Tensor:
    """Return the image with a mean of 0 and, unless it is constant, a standard deviation of 1."""
    return (image - image.mean()) / image.std().clamp(min=1e-6)


@cache
def _smooth_deform(shape: tuple[int, ...]) -> RandSmoothDeform:
    # Powers of two: MONAI computes the field's size from their ratio to the shape, in floats.
    points = [2 ** max(2, round(np.log2(edge / ELASTIC_DISTANCE))) for edge in shape]
    return RandSmoothDeform(
        spatial_size=shape,
        rand_size=points,
        field_mode="trilinear" if len(shape) == 3 else "bilinear",
        align_corners=True,
        prob=ELASTIC_PROBABILITY,
        def_range=2 * ELASTIC_SHIFT / max(shape),  # the whole patch has the length 2
        grid_align_corners=True,  # else a field of zeros would move the borders
    )


@cache
def _image_transforms() -> tuple[RandomizableTransform, ...]:
    """Return what happens to the image alone, in the order of a microscope."""
    return (
        RandGaussianSmooth(BLUR_SIGMA, BLUR_SIGMA, BLUR_SIGMA, prob=BLUR_PROBABILITY),
        RandGaussianNoise(prob=NOISE_PROBABILITY, std=NOISE_SD),
        RandAdjustContrast(prob=INTENSITY_PROBABILITY, gamma=GAMMA),
        RandScaleIntensity(SCALE, prob=INTENSITY_PROBABILITY),
        RandShiftIntensity(SHIFT, prob=INTENSITY_PROBABILITY),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread, as in loader processes: sums' last bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
