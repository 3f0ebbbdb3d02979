"""A simulated 2D fluorescence image: configuration, record, and the stages in order.

Axis order is (x, y): ``image[i, j]`` is the pixel whose centre lies at (i + 0.5, j + 0.5) pixels.
Lengths in a configuration are in units of length, of which one is ``scale`` pixels, drawn for each
image; lengths in a record are in pixels. Intensities are photon counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.ndimage import correlate1d

from utils.errors import UserError
from utils.simulation import imaging
from utils.simulation.configuration import PlainConfig, Range, limited
from utils.simulation.geometry import GeometryError, axis_rotation, planar_lattice, rotate
from utils.simulation.labels import paint_disks
from utils.simulation.streams import Purpose, draw_key, make_rng

CLOUD_REACH = 4.0  # columns with points this many standard deviations from the canvas are rendered


@dataclass(frozen=True)
class ImageConfig(PlainConfig):
    """All that governs a random image; ranges are (low, high) of uniform draws.

    Defaults are those of the reference generator.
    """

    shape: tuple[int, int] = limited((128, 128), 8, is_range=False)  # pixels along x and y
    scale_range: Range = limited((1.28 * 0.9, 1.28 * 1.5), 0.01)  # Pixels per unit of length
    lattice_angle_range: Range = limited((50.0, 90.0), 10.0, 170.0)
    """Angle between the lattice's basis vectors in degrees; 60 is hexagonal."""
    column_distance: float = limited(10.0, 1e-3)  # length of both basis vectors
    label_radius: float = limited(3.5, 1e-3)  # radius of a column's disk in the mask
    baseline_intensity: float = limited(50.0, 1e-3)  # a column has it x lognormal(1, std_intensity)
    std_intensity: float = limited(0.5, 0.0)  # sigma of that lognormal
    v_std: float = limited(5.0, 0.0)  # standard deviation of a point's intensity about its column's
    points_per_column: float = limited(10.0, 0.0)
    """Points of a column beside its centre, to be multiplied by the scale and truncated."""
    cloud_sd: float = limited(2.0, 0.0)  # standard deviation of a Gaussian column's points per axis
    ring_radius: float = limited(3.5, 0.0)  # mean distance of a ring's points from the centre
    ring_sd: float = limited(0.1, 0.0)  # standard deviation of that distance
    ring_share_range: Range = limited((0.0, 1.0), 0.0, 1.0)
    """Share of ring columns, one draw per image; the others are Gaussian."""
    box_size: float = limited(2.0, 0.0)  # edge of the box mean; truncated to pixels, at least 1
    blur_sizes: tuple[int, ...] = (5, 7, 9)
    """Odd Gaussian kernel sizes in pixels, from 3, one of which is drawn per image."""
    background_size: int = limited(21, 3)  # Odd kernel size of the background's wider blur, pixels
    gain: float = limited(1.0, 1e-3)  # photons per unit of intensity
    read_noise_share: float = limited(0.1, 0.0)
    """Standard deviation of the read noise as a share of that of the photon counts."""
    min_labelled: float = limited(0.30, 0.0, 1.0)
    """An image is drawn again until at least this share of it is labelled."""
    max_centres: int = limited(128, 2)
    """An image has fewer columns than this with their centre inside; lists of centres are padded
    to this length."""
    max_tries: int = limited(2000, 1)  # placements drawn before giving up

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in (self.background_size, *(self.blur_sizes or [0])):
            if size % 2 != 1 or size < 3:
                raise UserError(f"blur_sizes, background_size: {size} must be odd and at least 3")
        if self.scale_range[0] * self.column_distance < 2.0:
            raise UserError("scale_range x column_distance: columns must be 2 pixels apart")


@dataclass(frozen=True)
class ImageParameters:
    """The parameters drawn for one image; lengths in pixels, angles in radians."""

    scale: float  # pixels per unit of length
    lattice_angle: float  # angle between the basis vectors
    turn: float  # angle of the first basis vector to the x axis
    cutoff_point: tuple[float, float]
    cutoff_normal: tuple[float, float]  # columns on this side of the line through that point stay
    ring_share: float
    label_radius: float
    box_size: int
    blur_size: int


@dataclass(frozen=True)
class SimulatedImage:
    """One sample: image, exact labels, the geometry behind them, and the parameters drawn.

    N is the number of columns; row k of every per-column array belongs to instance id k + 1.
    """

    image: np.ndarray  # (X, Y) float32, photon counts with read noise, >= 0
    instances: np.ndarray  # (X, Y) uint16: 0 background, k + 1 inside the disk of column k
    all_centres: np.ndarray
    """(N, 2) float32, pixels; columns beyond the border, whose light reaches in, included."""
    is_ring: np.ndarray  # (N,) bool: a ring of points, or else a Gaussian cloud
    parameters: ImageParameters

    @property
    def mask(self) -> np.ndarray:
        """(X, Y) uint8: 1 inside any disk."""
        return (self.instances > 0).astype(np.uint8)

    @property
    def centres(self) -> np.ndarray:
        """(n, 2) float32, pixels: the centres inside the image."""
        return self.all_centres[inside(self.all_centres, self.image.shape)]


def inside(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (N,) bool: which of ``pixels`` (N, 2) lie in an image of ``shape``."""
    return np.all((pixels >= 0) & (pixels < np.array(shape)), axis=1)


def image_rng(seed: int, index: int) -> Generator:
    """Return the generator of image ``index`` of a seed, which is at least 0 and below 2^32."""
    return make_rng(Purpose.IMAGE, seed, index)


def simulate_image(config: ImageConfig, rng: Generator) -> SimulatedImage:
    """Simulate one image: place the columns, render the labels, the fluorescence, the image.

    Equal generators, best made by :func:`image_rng`, give equal images to the bit. Raises
    GeometryError if no placement within ``config.max_tries`` is labelled enough, and UserError if
    more than a thousandth of the pixels would be too bright.
    """
    parameters, centres, instances = _place_columns(config, rng)
    is_ring = rng.random(len(centres)) < parameters.ring_share
    canvas = _render_fluorescence(config, parameters, centres, is_ring, rng)
    # box mean and Gaussian blur; plus a wider blur of the result, plus its mean
    size = parameters.box_size
    box = imaging.box_sum(canvas[None], size)[1][0] / np.float32(size**2)
    sharp = gaussian_blur(box, parameters.blur_size)
    wide = gaussian_blur(sharp, config.background_size)
    margin = _margin(config)
    window = tuple(slice(margin, margin + edge) for edge in config.shape)
    image = sharp[window] + wide[window] + sharp[window].mean()
    image = np.ascontiguousarray(np.maximum(image, np.float32(0.0)))
    imaging.check_cut_off(image, imaging.MOST_PHOTONS / config.gain, "the gain or the intensity")
    counts = imaging.shot_noise(image, config.gain, draw_key(rng))
    sd = config.read_noise_share * float(counts.std())
    taken = imaging.read_noise_and_contrast(counts, sd, 1.0, draw_key(rng))
    return SimulatedImage(taken, instances, centres, is_ring, parameters)


def _place_columns(
    config: ImageConfig, rng: Generator
) -> tuple[ImageParameters, np.ndarray, np.ndarray]:
    """Draw placements until one is accepted; return it, its centres and its instances."""
    most_labelled, fewest_centres = 0.0, np.inf
    for _ in range(config.max_tries):
        parameters, centres = _draw_placement(config, rng)
        count = int(np.count_nonzero(inside(centres, config.shape)))
        fewest_centres = min(fewest_centres, count)
        if not 0 < count < config.max_centres:
            continue
        instances = paint_disks(config.shape, centres, parameters.label_radius)
        labelled = np.count_nonzero(instances) / instances.size
        if labelled >= config.min_labelled:
            return parameters, centres, instances
        most_labelled = max(most_labelled, labelled)
    raise GeometryError(
        f"min_labelled {config.min_labelled} with fewer than {config.max_centres} centres: none of "
        f"{config.max_tries} placements reached it (most labelled: {most_labelled:.3f}, fewest "
        f"centres: {fewest_centres}); lower min_labelled, or raise max_centres or label_radius"
    )


def _draw_placement(config: ImageConfig, rng: Generator) -> tuple[ImageParameters, np.ndarray]:
    """Draw one placement; return it and the centres (N, 2) float32 whose light can reach in.

    A lattice is turned about the image's centre, shifted by a random part of a cell (so that no
    column is tied to the centre), and cut along a line in a random direction through one of the
    columns inside.
    """
    scale = rng.uniform(*config.scale_range)
    angle = np.radians(rng.uniform(*config.lattice_angle_range))
    turn = rng.uniform(0.0, 2.0 * np.pi)
    distance = config.column_distance * scale
    u, v = rng.random(2)
    turned = axis_rotation(2, turn)[:2, :2]
    shift = rotate(turned, distance * np.array([[u + v * np.cos(angle), v * np.sin(angle)]]))

    half = np.array(config.shape) / 2.0
    # how far from its centre a column has points or labels, in units of length
    reach = max(config.ring_radius + CLOUD_REACH * config.ring_sd, CLOUD_REACH * config.cloud_sd)
    reach = _margin(config) + scale * max(reach, config.label_radius)
    extent = np.hypot(*(half + reach)) + 2.0 * distance
    sites = rotate(turned, planar_lattice(distance, angle, extent)) + shift + half
    sites = sites[np.all((sites > -reach) & (sites < 2.0 * half + reach), axis=1)]

    visible = sites[inside(sites, config.shape)]
    point = visible[int(rng.random() * len(visible))] if len(visible) else half
    direction = rng.uniform(0.0, 2.0 * np.pi)
    normal = np.array([np.cos(direction), np.sin(direction)])
    kept = sites[np.sum((sites - point) * normal, axis=1) >= 0.0].astype(np.float32)
    parameters = ImageParameters(
        scale=scale,
        lattice_angle=float(angle),
        turn=turn,
        cutoff_point=tuple(point.tolist()),
        cutoff_normal=tuple(normal.tolist()),
        ring_share=rng.uniform(*config.ring_share_range),
        label_radius=config.label_radius * scale,
        box_size=max(1, int(config.box_size * scale)),
        blur_size=int(rng.choice(config.blur_sizes)),
    )
    return parameters, kept


def _margin(config: ImageConfig) -> int:
    """Return the pixels beyond the image's border from which the filters carry light in."""
    box = int(config.box_size * config.scale_range[1])
    return box + max(config.blur_sizes) // 2 + config.background_size // 2


def _render_fluorescence(
    config: ImageConfig,
    parameters: ImageParameters,
    centres: np.ndarray,
    is_ring: np.ndarray,
    rng: Generator,
) -> np.ndarray:
    """Return the canvas float32, the image and a margin about it, before the microscope.

    The last point in a pixel stays.
    """
    n, scale = len(centres), parameters.scale
    points = int(config.points_per_column * scale)
    intensity = config.baseline_intensity * rng.lognormal(1.0, config.std_intensity, size=(n, 1))
    values = rng.normal(intensity, config.v_std, size=(n, points + 1))
    values[:, :1] = intensity
    distance = rng.normal(config.ring_radius, config.ring_sd, size=(n, points))
    angle = rng.uniform(0.0, 2.0 * np.pi, size=(n, points))
    ring = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=-1)
    cloud = rng.normal(0.0, config.cloud_sd, size=(n, points, 2))
    offsets = np.zeros((n, points + 1, 2))
    offsets[:, 1:] = np.where(is_ring[:, None, None], ring, cloud)
    margin = _margin(config)
    canvas = np.zeros([edge + 2 * margin for edge in config.shape], dtype=np.float32)
    placed = (centres[:, None] + margin + scale * offsets).reshape(-1, 2)
    pixels = np.floor(placed).astype(np.int64)
    shown = inside(pixels, canvas.shape)
    canvas[tuple(pixels[shown].T)] = values.reshape(-1)[shown]
    return canvas


def gaussian_blur(image: np.ndarray, size: int) -> np.ndarray:
    """Blur an n-D float32 image by a Gaussian cut to ``size`` (odd) pixels; outside is nothing.

    Its sigma is 0.3 ((size - 1) / 2 - 1) + 0.8, which OpenCV's ``getGaussianKernel`` documents for
    a kernel given by its size alone: 1.1, 1.4, 1.7 and 3.5 for 5, 7, 9 and 21 pixels.
    """
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    kernel = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in range(image.ndim):
        image = correlate1d(image, kernel, axis=axis, mode="constant")
    return image
