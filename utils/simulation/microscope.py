"""How a stain is seen: uneven light, point spread, coarse planes, photons, camera, 8 bits.

The optical axis is one of the volume's. Light is lost along it, the point spread is longest along
it, and planes across it are taken and resampled to voxels afterwards, as a microscope's stack is.
"""

from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
from numpy.random import Generator

from utils.simulation import imaging
from utils.simulation.configuration import PlainConfig, Range, limited
from utils.simulation.imaging import BLOCK
from utils.simulation.streams import NORMALS, draw_key

REACH = 3.0  # point spreads are cut at this many sigmas
SMALLEST = 0.1  # narrower ones count as this wide, voxels
SAMPLES = 4  # planes in a spacing at least: two in a column and two in a gap
BRIGHT = 99.0  # percentile that has the photons of the brightest 1 %
GREY_STEPS = 4096
WHITE_STRIDE = 13  # every so many-th voxel tells where white lies


@dataclass(frozen=True)
class MicroscopeConfig(PlainConfig):
    """All that governs a random microscope; ranges are (low, high) of uniform draws."""

    bias: Range = limited((0.0, 0.7), 0.0, 5.0)  # Sd of the light's slow change, nepers
    attenuation: Range = limited((1.0, 5.0), 1.0)
    """Light of the nearest over that of the furthest plane (ratio), uniform in the logarithm."""
    blur_growth: Range = limited((1.0, 2.0), 1.0)
    """Axial point spread of the furthest over that of the nearest plane (ratio)."""
    lateral_sigma: Range = limited((0.1, 0.8), 0.0)
    """Standard deviation of the point spread across the optical axis, voxels."""
    axial_sigma: Range = limited((0.5, 3.5), 0.0)
    """The same along it, voxels; at most a quarter of the columns' spacing."""
    coarse_probability: float = limited(0.6, 0.0, 1.0)
    """Probability that planes lie further apart than voxels."""
    coarse: Range = limited((1.0, 4.0), 1.0)
    """Distance of planes then, voxels; at most a quarter of the columns' spacing."""
    photons: Range = limited((5.0, 200.0), 0.1)
    """Photons in a voxel of the brightest 1 %, uniform in the logarithm."""
    read_noise: Range = limited((0.0, 0.15), 0.0)
    """Standard deviation, share of the brightness of the brightest 1 %; small ones are likelier,
    low + (high - low) u^2 with u uniform in 0 to 1."""
    artefact_probability: float = limited(0.1, 0.0, 1.0)
    """Probability that planes and lines of the scan differ."""
    artefact: Range = limited((0.05, 0.3), 0.0)  # Sd of that, share of the brightness
    offset: Range = limited((0.0, 0.1), 0.0, 1.0)  # Grey value without light, share of full scale
    gamma: Range = limited((0.5, 2.0), 0.1)  # Exponent of the light (ratio), log-uniform
    saturated: Range = limited((0.0, 0.02), 0.0, 1.0)  # Share of the voxels clipped at full scale


@dataclass(frozen=True)
class Microscope(PlainConfig):
    """A microscope's drawn numbers, in the units of :class:`MicroscopeConfig`."""

    axis: int  # the optical axis: 0, 1 or 2
    from_far: bool  # the last plane is the nearest
    bias: float
    attenuation: float
    blur_growth: float
    lateral_sigma: float
    axial_sigma: float
    coarse: float  # 1: every voxel is a plane of its own
    photons: float
    read_noise: float
    artefact: float  # 0: none
    offset: float
    gamma: float
    saturated: float


def draw_microscope(
    config: MicroscopeConfig, rng: Generator, voxel_spacing: float = np.inf
) -> Microscope:
    """Draw a microscope; columns ``voxel_spacing`` voxels apart limit its depth of focus."""

    def log_uniform(limits: tuple[float, float]) -> float:
        return float(np.exp(rng.uniform(*np.log(limits))))

    coarse = rng.uniform(*config.coarse) if rng.random() < config.coarse_probability else 1.0
    artefact = rng.uniform(*config.artefact)
    low, high = config.read_noise
    return Microscope(
        axis=int(rng.integers(3)),
        from_far=bool(rng.random() < 0.5),
        bias=rng.uniform(*config.bias),
        attenuation=log_uniform(config.attenuation),
        blur_growth=rng.uniform(*config.blur_growth),
        lateral_sigma=rng.uniform(*config.lateral_sigma),
        axial_sigma=min(rng.uniform(*config.axial_sigma), voxel_spacing / SAMPLES),
        coarse=max(min(coarse, voxel_spacing / SAMPLES), 1.0),
        photons=log_uniform(config.photons),
        read_noise=low + (high - low) * rng.random() ** 2,
        artefact=artefact if rng.random() < config.artefact_probability else 0.0,
        offset=rng.uniform(*config.offset),
        gamma=log_uniform(config.gamma),
        saturated=rng.uniform(*config.saturated),
    )


def take_picture(microscope: Microscope, image: np.ndarray, rng: Generator) -> np.ndarray:
    """Return what ``microscope`` sees of ``image`` (X, Y, Z) float32 >= 0: float32, 0 to 255.

    Grey values are whole numbers, save between planes that lie further apart than voxels.
    """
    axis, n = microscope.axis, image.shape[microscope.axis]
    uneven = uneven_light(microscope, image.shape, rng)
    seen = along(point_spread(microscope, n) * uneven[axis], image, axis)
    for other in {0, 1, 2} - {axis}:
        size = image.shape[other]
        blur = blur_matrix(size, np.arange(size, dtype=float), microscope.lateral_sigma)
        seen = along(blur * uneven[other], seen, other)
    bright = imaging.percentile_of_nonnegative(seen, BRIGHT) or 1.0
    counts = imaging.shot_noise(seen, microscope.photons / bright, draw_key(rng))
    scale, sd = np.float32(1.0 / microscope.photons), np.float32(microscope.read_noise)
    imaging.add_read_noise(counts.reshape(-1), scale, sd, draw_key(rng), NORMALS, seen.reshape(-1))
    for other in (axis, (axis + 1) % 3) if microscope.artefact else ():  # planes, and their lines
        size = [edge if a in (axis, other) else 1 for a, edge in enumerate(seen.shape)]
        factors = 1.0 + microscope.artefact * rng.standard_normal(size)
        seen *= np.maximum(factors, 0.0).astype(np.float32)
    sample = seen.reshape(-1)[::WHITE_STRIDE]
    rank = min(int((1.0 - microscope.saturated) * len(sample)), len(sample) - 1)
    white = np.partition(sample, rank)[rank]
    light = np.linspace(0.0, 1.0, GREY_STEPS) ** microscope.gamma
    greys = np.round(255.0 * (microscope.offset + (1.0 - microscope.offset) * light)).astype("f4")
    _develop(seen.reshape(-1), np.float32((GREY_STEPS - 1) / max(white, 1e-6)), greys)
    return along(planes_to_voxels(microscope, n), seen, axis)


def plane_places(microscope: Microscope, n: int) -> np.ndarray:
    """Return where the planes lie along the optical axis of ``n`` voxels, in voxels."""
    planes = int(np.ceil(n / microscope.coarse - 1e-9))
    return (np.arange(planes) + 0.5) * microscope.coarse - 0.5


def point_spread(microscope: Microscope, n: int) -> np.ndarray:
    """Return the (planes, n) matrix of the axial point spread, over planes as thick as their gap.

    A plane's thickness t adds (t^2 - 1) / 12 to the variance.
    """
    places = plane_places(microscope, n)
    depth = _depth(microscope, len(places))
    sigma = microscope.axial_sigma * (1.0 + (microscope.blur_growth - 1.0) * depth)
    return blur_matrix(n, places, np.sqrt(sigma**2 + (microscope.coarse**2 - 1.0) / 12.0))


def _depth(microscope: Microscope, planes: int) -> np.ndarray:
    """Return how deep each plane lies, 0 to 1."""
    depth = np.linspace(0.0, 1.0, planes)
    return depth[::-1] if microscope.from_far else depth


def blur_matrix(n: int, centres: np.ndarray, sigma: np.ndarray | float) -> np.ndarray:
    """Return the (len(centres), n) float32 matrix of Gaussians about ``centres``, in voxels.

    Rows sum to 1. Light beyond a border is folded back, so that an even blur keeps the total.
    """
    sigmas = np.maximum(np.full(len(centres), sigma), SMALLEST)[:, None]
    reach = int(np.ceil(REACH * sigmas.max())) + 1
    steps = np.floor(centres)[:, None].astype(int) + np.arange(-reach, reach + 2)
    aside = np.abs(steps - centres[:, None])
    weights = np.exp(-0.5 * (aside / sigmas) ** 2)
    weights[aside > np.maximum(REACH * sigmas, 0.51)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    folded = np.abs((steps + 0.5 + n) % (2 * n) - n)  # distance from the border, mirrored
    matrix = np.zeros((len(centres), n))
    np.add.at(matrix, (np.arange(len(centres))[:, None], folded.astype(int)), weights)
    return matrix.astype(np.float32)


def planes_to_voxels(microscope: Microscope, n: int) -> np.ndarray:
    """Return the (n, planes) float32 matrix that interpolates linearly between planes."""
    planes = len(plane_places(microscope, n))
    at = np.clip((np.arange(n) + 0.5) / microscope.coarse - 0.5, 0, planes - 1)
    return np.maximum(1.0 - np.abs(at[:, None] - np.arange(planes)), 0.0).astype(np.float32)


def along(matrix: np.ndarray, image: np.ndarray, axis: int) -> np.ndarray:
    """Multiply ``image`` (X, Y, Z) float32 by a banded ``matrix`` (m, n) along an axis.

    Returns the image itself where the matrix is that of nothing to do.
    """
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
        return image
    first = np.argmax(matrix != 0, axis=1)
    last = matrix.shape[1] - np.argmax(matrix[:, ::-1] != 0, axis=1)
    return imaging.along(matrix, image, axis, partial(_sum_rows, first, last))


@numba.njit(cache=True)
def _sum_rows(first, last, matrix, source, target):  # type: ignore[no-untyped-def]
    """Fill ``target`` (M, K) with weighted sums of the rows of ``source`` (N, K).

    In blocks of columns that stay in the cache.
    """
    for start in range(0, source.shape[1], BLOCK):
        for m in range(len(target)):
            row = target[m][start : start + BLOCK]
            row[:] = np.float32(0.0)
            a = first[m]
            while a + 1 < last[m]:  # rows by twos: half the loads and stores of the sum
                u, v = matrix[m, a], matrix[m, a + 1]
                one, two = source[a][start : start + BLOCK], source[a + 1][start : start + BLOCK]
                for k in range(row.size):
                    row[k] += u * one[k] + v * two[k]
                a += 2
            if a < last[m]:
                u, one = matrix[m, a], source[a][start : start + BLOCK]
                for k in range(row.size):
                    row[k] += u * one[k]


def uneven_light(
    microscope: Microscope, shape: tuple[int, ...], rng: Generator
) -> list[np.ndarray]:
    """Return for each axis (planes or voxels, 1) float32, whose product is the light.

    The bias is a wave along each axis, of up to one period, with a random height and phase.
    """
    light = []
    for axis, n in enumerate(shape):
        planes = len(plane_places(microscope, n)) if axis == microscope.axis else n
        height = microscope.bias * np.sqrt(2.0 / 3.0) * rng.standard_normal()
        turns = rng.random() + rng.random() * np.linspace(0.0, 1.0, planes)
        curve = np.exp(height * np.cos(2.0 * np.pi * turns))
        if axis == microscope.axis:
            curve *= microscope.attenuation ** -_depth(microscope, planes)
        light.append(curve[:, None].astype(np.float32))
    return light


@numba.njit(cache=True)
def _develop(image, scale, greys):  # type: ignore[no-untyped-def]
    """Replace light by ``greys``, one for each step of light, in place; white is the last."""
    last = np.float32(greys.size - 1)
    for i in range(image.size):
        image[i] = greys[int(min(image[i] * scale + np.float32(0.5), last))]
