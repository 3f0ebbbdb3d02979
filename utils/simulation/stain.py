"""What glows: stains drawn at random from parts, painted from the columns' fields.

Brightness is in shares of full scale (0 to 1, lone bright spots above), lengths are in spacings
unless a name says voxels. Ranges follow domain randomisation as in SynthSeg (Billot et al., Medical
Image Analysis 2023) and AnyStar (Dey et al., WACV 2024), parts what fly neuropils show.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from utils.errors import UserError
from utils.simulation.configuration import PlainConfig, Range, limited
from utils.simulation.labels import ColumnFields

CORE, RIM, GAP, SHEET, OUTSIDE, NEIGHBOUR = range(6)
"""Places in a stain's levels: the column, its rim, tissue between columns, of the sheet without
columns or out of its bands, outside of the sheet, and of a neighbouring neuropil."""
BRIGHTEST = 4.0  # columns are at most this much brighter than the median one
FAR, FURTHER = 0.8, 1.1  # from the first to the second distance the gap turns into plain sheet
KINDS = ("rims", "rods", "clouds", "filled")
BAND_STEPS = 256
COARSE = 8  # voxels between the nodes of the haze
NEAR_GAP = (0.45, 0.7)
LABEL_RADIUS = 0.35


@dataclass(frozen=True)
class StainConfig(PlainConfig):
    """All that governs a random stain; ranges are (low, high) of uniform draws."""

    level: Range = limited((0.1, 0.88), 0.0, 1.0)  # Mean brightness of a structure, of full scale
    level_sd: Range = limited((0.02, 0.1), 0.0)  # Sd of each structure's texture, of full scale
    contrast: Range = limited((0.2, 0.4), 0.0, 1.0)
    """Columns and gaps are at least this far apart, share of full scale."""
    inverted_probability: float = limited(0.3, 0.0, 1.0)  # Probability of columns darker than gaps
    dark_ground_probability: float = limited(0.4, 0.0, 1.0)
    """Of the others, the probability that only columns glow and all else is nearly dark."""
    dark_ground: Range = limited((0.0, 0.4), 0.0, 1.0)  # Factor on levels but the columns' (ratio)
    rims_probability: float = limited(0.15, 0.0, 1.0)  # Probability that columns are rims only
    rods_probability: float = limited(0.2, 0.0, 1.0)
    """Probability that columns are thin rods off the axis over a part of the depth."""
    core_radius: Range = limited((0.2, 0.4), 0.0)
    """Radius of a filled column, or of the inside of a rim, spacings."""
    rim_width: Range = limited((0.1, 0.3), 0.0)
    """Thickness of a rim, spacings; at least 1 voxel is painted, and at most 3."""
    rods: tuple[int, int] = limited((1, 3), 1)  # Number of rods of a column, inclusive
    rod_offset: Range = limited((0.05, 0.3), 0.0)  # Distance of a rod from the axis, spacings
    rod_radius: Range = limited((0.08, 0.2), 0.01)  # Radius of a rod, spacings; 0.6 voxels at least
    rod_length: Range = limited((0.3, 1.0), 0.0, 1.0)  # Part of the depth that a rod runs over
    bands: tuple[int, int] = limited((1, 6), 1)  # Number of strata, which columns share, inclusive
    bands_probability: float = limited(0.7, 0.0, 1.0)  # Probability of strata
    band_width: Range = limited((0.1, 0.3), 0.01)  # Width of a stratum, part of the depth
    band_contrast: Range = limited((0.0, 1.0), 0.0, 1.0)
    """Share of the columns and gaps that is missing between strata."""
    arbours_probability: float = limited(0.2, 0.0, 1.0)
    """Of stains with strata, the probability of columns in strata only, a contrast of 1."""
    brightness_sigma: Range = limited((0.2, 1.0), 0.0)
    """Sigma of the columns' lognormal brightness, nepers."""
    grain: Range = limited((0.0, 0.7), 0.0)  # Sd of the columns' own grain, share of brightness
    grain_period: Range = limited((2.0, 5.0), 1.0)  # Size of that grain, voxels
    background_probability: float = limited(0.8, 0.0, 1.0)
    """Probability of a background, each of whose parts has a probability of its own."""
    texture_period: Range = limited((2.0, 32.0), 1.0)
    """Size of the background's texture, voxels, uniform in the logarithm."""
    cells_probability: float = limited(0.4, 0.0, 1.0)  # Probability of cell bodies beside the sheet
    cell_diameter: Range = limited((0.4, 0.8), 0.01)
    """Diameter of cell bodies, spacings (3 to 6 um where columns are 7.6 um apart)."""
    tracts_probability: float = limited(0.3, 0.0, 1.0)
    """Probability of tracts, bundles of fibres outside of the sheet."""
    tract_radius: Range = limited((0.4, 1.5), 0.01)  # Radius of tracts, spacings
    tracheae_probability: float = limited(0.3, 0.0, 1.0)  # Probability of tracheae, dark tubes
    trachea_radius: Range = limited((0.1, 0.35), 0.01)  # Radius of tracheae, spacings
    tubes: tuple[int, int] = limited((1, 4), 1)  # Number of tracts, and of tracheae, inclusive
    debris_probability: float = limited(0.3, 0.0, 1.0)  # Probability of debris, bright specks
    debris: tuple[int, int] = limited((1, 20), 1)  # Number of specks, inclusive
    debris_radius: Range = limited((0.1, 0.4), 0.0)  # Radius of specks, spacings
    haze_probability: float = limited(0.5, 0.0, 1.0)  # Probability of light from far out of focus
    haze: Range = limited((0.05, 0.5), 0.0)  # Its strength, share of the light
    clouds_probability: float = limited(0.0, 0.0, 1.0)
    """Probability of the reference's three kinds of clouds, on nearly dark ground."""
    cloud_sigma: Range = limited((0.3, 1.2), 0.0, 10.0)
    """Sigma of the clouds' lognormal intensity, nepers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = self.rims_probability, self.rods_probability, self.clouds_probability
        if sum(kinds) > 1.0:
            raise UserError("rims_probability + rods_probability + clouds_probability: at most 1")
        if self.contrast[1] > self.level[1] - self.level[0]:
            raise UserError(f"contrast {self.contrast}: must fit into level {self.level}")


@dataclass(frozen=True)
class Stain(PlainConfig):
    """A stain's drawn numbers; 0 or () where a part is not there."""

    kind: str  # "filled", "rims", "rods" or "clouds"
    levels: tuple[float, ...]  # brightness of CORE, RIM, GAP, SHEET, OUTSIDE and NEIGHBOUR
    level_sds: tuple[float, ...]  # of the texture on each of them
    core_radius: float
    rim_width: float
    rod_offsets: tuple[float, ...]
    rod_directions: tuple[float, ...]
    """Three numbers a rod: a unit vector whose part across the axis points to the rod."""
    rod_radii: tuple[float, ...]
    rod_starts: tuple[float, ...]
    rod_ends: tuple[float, ...]
    band_centres: tuple[float, ...]
    band_widths: tuple[float, ...]
    band_contrast: float
    brightness: tuple[float, ...]  # of each column, 1 at the median; 0: left out
    grain: float
    grain_period: float
    texture_period: float
    cell_diameter: float
    tract_radii: tuple[float, ...]
    trachea_radii: tuple[float, ...]
    debris_radii: tuple[float, ...]
    haze: float
    cloud_sigma: float = 0.0


def draw_stain(
    config: StainConfig, num_columns: int, left_out: np.ndarray, rng: Generator
) -> Stain:
    """Draw a stain of ``num_columns`` columns, of which ``left_out`` (N,) bool have none of it."""

    def several(number: tuple[int, int], drawn: bool = True) -> int:
        count = int(rng.integers(number[0], number[1] + 1))
        return count if drawn else 0

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    def uniform(limits: tuple[float, float], size: int) -> tuple[float, ...]:
        return tuple(rng.uniform(*limits, size=size).tolist())

    kind_draw = rng.random()
    inverted, dark = chance(config.inverted_probability), chance(config.dark_ground_probability)
    shares = config.rims_probability, config.rods_probability, config.clouds_probability
    kind = KINDS[int(np.searchsorted(np.cumsum(shares), kind_draw, side="right"))]
    inverted, dark = inverted and kind != "clouds", dark or kind == "clouds"
    rods = several(config.rods, kind == "rods")
    directions = rng.standard_normal((rods, 3))
    directions /= np.sqrt(np.sum(directions**2, axis=1, keepdims=True))
    lengths = np.array(uniform(config.rod_length, rods))
    starts = rng.random(rods) * (1.0 - lengths)
    bands = several(config.bands, chance(config.bands_probability))
    contrast = 1.0 if chance(config.arbours_probability) else rng.uniform(*config.band_contrast)
    brightness = rng.lognormal(0.0, rng.uniform(*config.brightness_sigma), size=num_columns)
    brightness = np.where(left_out, 0.0, np.minimum(brightness, BRIGHTEST)).round(4)
    background = chance(config.background_probability)

    def part(probability: float) -> bool:
        return chance(probability) and background

    def radii(limits: tuple[float, float], number: tuple[int, int], probability: float) -> Any:
        return uniform(limits, several(number, part(probability)))

    return Stain(
        kind=kind,
        levels=_draw_levels(config, inverted, dark and not inverted, kind, rng),
        level_sds=uniform(config.level_sd, 6),
        core_radius=rng.uniform(*config.core_radius),
        rim_width=rng.uniform(*config.rim_width),
        rod_offsets=uniform(config.rod_offset, rods),
        rod_directions=tuple(directions.reshape(-1).tolist()),
        rod_radii=uniform(config.rod_radius, rods),
        rod_starts=tuple(starts.tolist()),
        rod_ends=tuple((starts + lengths).tolist()),
        band_centres=uniform((0.0, 1.0), bands),
        band_widths=uniform(config.band_width, bands),
        band_contrast=float(contrast) if bands else 0.0,
        brightness=tuple(brightness.tolist()),
        grain=rng.uniform(*config.grain),
        grain_period=rng.uniform(*config.grain_period),
        texture_period=float(np.exp(rng.uniform(*np.log(config.texture_period)))),
        cell_diameter=rng.uniform(*config.cell_diameter) * part(config.cells_probability),
        tract_radii=radii(config.tract_radius, config.tubes, config.tracts_probability),
        trachea_radii=radii(config.trachea_radius, config.tubes, config.tracheae_probability),
        debris_radii=radii(config.debris_radius, config.debris, config.debris_probability),
        haze=rng.uniform(*config.haze) * part(config.haze_probability),
        cloud_sigma=rng.uniform(*config.cloud_sigma) if kind == "clouds" else 0.0,
    )


def _draw_levels(
    config: StainConfig, inverted: bool, dark: bool, kind: str, rng: Generator
) -> tuple[float, ...]:
    """Draw the six levels; core and gap keep their distance, and a lone rim takes the core's."""
    distance, (least, most) = rng.uniform(*config.contrast), config.level
    low = rng.uniform(least, max(most - distance, least))  # sums of floats miss by a little
    high = rng.uniform(min(low + distance, most), most)
    core, gap = (low, high) if inverted else (high, low)
    rim, sheet, outside, neighbour = rng.uniform(*config.level, size=4).tolist()
    factor = rng.uniform(*config.dark_ground)
    if dark:
        gap, sheet, outside, neighbour = (factor * v for v in (gap, sheet, outside, neighbour))
    return core, core if kind == "rims" else rim, gap, sheet, outside, neighbour


def paint_stain(
    stain: Stain,
    fields: ColumnFields,
    voxel_spacing: float,
    rng: Generator,
    clouds: np.ndarray | None = None,
) -> np.ndarray:
    """Paint (X, Y, Z) float32 >= 0, about 0 to 1: what glows, before the microscope.

    ``voxel_spacing`` is the mean spacing of the columns, in voxels; ``rng`` draws textures and
    where the background's parts lie. ``clouds``, (X, Y, Z) float32, replace the columns of a stain
    of that kind.
    """
    shape = fields.owner.shape
    image = np.empty(shape, dtype=np.float32)
    rim = np.clip(stain.rim_width, 1.0 / voxel_spacing, 3.0 / voxel_spacing)
    radii = np.maximum(stain.rod_radii, 0.6 / voxel_spacing)
    directions = np.reshape(stain.rod_directions, (-1, 3))
    others = (stain.rod_offsets, radii, stain.rod_starts, stain.rod_ends)
    rods = np.column_stack([directions, *others])
    _paint_columns(
        image,
        (fields.owner, fields.distance, fields.depth, fields.neighbour),
        noise_grid(shape, stain.texture_period, rng),
        noise_grid(shape, stain.grain_period, rng),
        np.array(
            [voxel_spacing, stain.core_radius, rim, stain.kind == "filled", stain.grain], "f4"
        ),
        rods.astype(np.float32),
        band_profile(stain),
        np.array([0.0, *stain.brightness], dtype=np.float32) * np.float32(clouds is None),
        np.array([stain.levels, stain.level_sds], dtype=np.float32),
    )
    if clouds is not None:
        image += np.minimum(clouds, np.float32(BRIGHTEST)) * np.float32(stain.levels[CORE])
    _add_bodies(stain, image, fields, voxel_spacing, rng)
    if stain.haze:
        wide = gaussian_filter(image[::COARSE, ::COARSE, ::COARSE], 1.5, mode="nearest")
        add_grid(image, grid_of(np.float32(stain.haze) * wide, COARSE, shape))
    return image


def band_profile(stain: Stain) -> np.ndarray:
    """Return (256,) float32: how much of the columns is there at each depth, 0 to 1.

    A stratum is a bump (1 - u^2)^2, u being the distance from its centre over its width; between
    strata the contrast is missing.
    """
    depth = np.linspace(0.0, 1.0, BAND_STEPS)[:, None]
    if not stain.band_centres:
        return np.ones(BAND_STEPS, dtype=np.float32)
    u = (depth - np.array(stain.band_centres)) / np.array(stain.band_widths)
    bumps = np.maximum(1.0 - u**2, 0.0) ** 2
    return (1.0 - stain.band_contrast * (1.0 - bumps.max(axis=1))).astype(np.float32)


@numba.njit(cache=True)
def _paint_columns(image, fields, texture, grain, numbers, rods, profile, brightness, levels):  # type: ignore[no-untyped-def]
    """Fill ``image`` row by row: mean level of the mixed structures, and their texture.

    Loops over a row are short, and most of their arrays are its own, so that they vectorise.
    """
    owner, distance, depth, neighbour = fields
    voxels, radius, rim, filled, grain_sd = numbers
    core_mean, rim_mean, gap_mean, sheet_mean, outside_mean, near_mean = levels[0]
    core_sd, rim_sd, gap_sd, sheet_sd, outside_sd, near_sd = levels[1]
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    steps, fade = np.float32(profile.size - 1), np.float32(1.0 / (FURTHER - FAR))
    # rods: direction x, y, z, offset, radius, start, end
    reach = np.float32((rods[:, 3] + rods[:, 4]).max() + half / voxels) if len(rods) else zero
    planes = np.empty_like(texture[0][0]), np.empty_like(grain[0][0])
    size = image.shape[2]
    core, edge = np.empty(size, np.float32), np.zeros(size, np.float32)
    bright, there = np.empty(size, np.float32), np.empty(size, np.float32)
    rough, fine = np.empty(size, np.float32), np.empty(size, np.float32)
    ground, ground_sd = np.empty(size, np.float32), np.empty(size, np.float32)
    for i in range(image.shape[0]):
        plane_of(texture, i, planes[0])
        plane_of(grain, i, planes[1])
        for j in range(image.shape[1]):
            row_of(texture, planes[0], j, rough)
            row_of(grain, planes[1], j, fine)
            own, near, at, out = owner[i, j], distance[i, j], depth[i, j], image[i, j]
            for k in range(size):
                bright[k] = brightness[own[k]]
                share = min(max((np.float32(FURTHER) - near[k]) * fade, zero), one)
                share *= profile[np.uint32(at[k] * steps + half)]
                there[k] = share if own[k] else zero
                beyond = neighbour[i, j, k] > 0
                ground[k] = sheet_mean if own[k] else (near_mean if beyond else outside_mean)
                ground_sd[k] = sheet_sd if own[k] else (near_sd if beyond else outside_sd)
            if len(rods):
                for k in range(size):
                    core[k] = zero
                    if there[k] > zero and bright[k] > zero and near[k] <= reach:
                        core[k] = _rod_share(owner, distance, depth, i, j, k, rods, voxels)
            else:
                for k in range(size):
                    inside = min(max((radius - near[k]) * voxels + half, zero), one)
                    core[k] = inside * filled
                    edge[k] = min(max((radius + rim - near[k]) * voxels + half, zero), one) - inside
            for k in range(size):
                grains = max(one + grain_sd * fine[k], zero) * bright[k]
                value = core[k] * (core_mean - gap_mean) + edge[k] * (rim_mean - gap_mean)
                value = gap_mean + grains * value - ground[k]
                spread = core[k] * (core_sd - gap_sd) + edge[k] * (rim_sd - gap_sd)
                spread = gap_sd + min(bright[k], one) * spread - ground_sd[k]
                value = ground[k] + there[k] * value
                spread = ground_sd[k] + there[k] * spread
                out[k] = max(value + spread * rough[k], zero)


@numba.njit
def _rod_share(owner, distance, depth, i, j, k, rods, voxels):  # type: ignore[no-untyped-def]
    """Return which share of a voxel lies in one of its column's rods.

    The distance's gradient points away from the axis and the depth's along it; by the law of
    cosines, d^2 + o^2 - 2 d o cos is the squared distance to a rod at offset o.
    """
    zero, one, tiny = np.float32(0.0), np.float32(1.0), np.float32(1e-12)
    d, at = distance[i, j, k], depth[i, j, k]
    share = zero
    ux, uy, uz = _gradient(owner, distance, i, j, k)
    vx, vy, vz = _gradient(owner, depth, i, j, k)
    norm_u = np.sqrt(ux * ux + uy * uy + uz * uz) + tiny
    norm_v = np.sqrt(vx * vx + vy * vy + vz * vz) + tiny
    slant = (ux * vx + uy * vy + uz * vz) / (norm_u * norm_v)
    for n in range(len(rods)):
        x, y, z, offset, radius, start, end = rods[n]
        if start <= at <= end:
            axial = (x * vx + y * vy + z * vz) / norm_v
            across = np.sqrt(max(one - axial * axial, np.float32(1e-6)))
            cosine = ((x * ux + y * uy + z * uz) / norm_u - axial * slant) / across
            cosine = min(max(cosine, -one), one)
            squared = d * d + offset * offset - np.float32(2.0) * d * offset * cosine
            near = (radius - np.sqrt(max(squared, zero))) * voxels + np.float32(0.5)
            share = max(share, min(near, one))
    return share


@numba.njit
def _gradient(owner, field, i, j, k):  # type: ignore[no-untyped-def]
    """Return a field's differences along the axes, one-sided where another column lies next."""
    own = owner[i, j, k]
    a = i - 1 if i > 0 and owner[i - 1, j, k] == own else i
    b = i + 1 if i + 1 < owner.shape[0] and owner[i + 1, j, k] == own else i
    c = j - 1 if j > 0 and owner[i, j - 1, k] == own else j
    d = j + 1 if j + 1 < owner.shape[1] and owner[i, j + 1, k] == own else j
    e = k - 1 if k > 0 and owner[i, j, k - 1] == own else k
    f = k + 1 if k + 1 < owner.shape[2] and owner[i, j, k + 1] == own else k
    x = (field[b, j, k] - field[a, j, k]) / np.float32(max(b - a, 1))
    y = (field[i, d, k] - field[i, c, k]) / np.float32(max(d - c, 1))
    z = (field[i, j, f] - field[i, j, e]) / np.float32(max(f - e, 1))
    return x, y, z


def _add_bodies(
    stain: Stain, image: np.ndarray, fields: ColumnFields, voxel_spacing: float, rng: Generator
) -> None:
    """Paint cell bodies on one side of the volume, and tracts, tracheae and debris."""

    def paint(centres: np.ndarray, radii: Any, values: Any, hollow: Any, outside: bool) -> None:
        radii, values = (np.broadcast_to(a, len(centres)).astype("f4") for a in (radii, values))
        args = (centres.astype("f4"), radii, values, np.float32(hollow), outside)
        paint_balls(image, fields.owner, *args)

    shape = np.array(image.shape)
    if stain.cell_diameter:
        width = max(stain.cell_diameter * voxel_spacing, 3.0)
        cells = np.argwhere(np.ones(np.ceil(shape / width).astype(int), dtype=bool))
        centres = width * (cells + rng.random(cells.shape))
        nearest = tuple(np.minimum(centres.astype(int), shape - 1).T)
        there = (fields.owner[nearest] == 0) & (fields.neighbour[nearest] == 0)
        there &= np.sum((centres - shape / 2) * rng.normal(size=3), axis=1) < 0
        radii = rng.uniform(0.4, 0.55, size=len(cells)) * width
        values = rng.uniform(0.1, 0.9) * rng.lognormal(0.0, 0.4, size=len(cells))
        paint(centres[there], radii[there], values[there], rng.random(), True)
    for tubes, most, outside in ((stain.tract_radii, 1.0, True), (stain.trachea_radii, 0.1, False)):
        for radius in np.array(tubes) * voxel_spacing:
            centres = _tube(shape, radius, rng)
            paint(centres, radius, rng.uniform(0.0, most), 0.0, outside)
    if stain.debris_radii:
        radii = np.array(stain.debris_radii) * voxel_spacing
        centres = rng.uniform(0.0, shape, size=(len(radii), 3))
        paint(centres, radii, rng.uniform(0.8, 2.0, size=len(radii)), 0.0, False)


def _tube(shape: np.ndarray, radius: float, rng: Generator) -> np.ndarray:
    """Return (n, 3) points, 0.7 radii apart or less, of a bent line through a volume (voxels).

    A quadratic Bezier curve, never faster than twice the length of its control polygon's legs.
    """
    a, b, c = rng.uniform(-0.2, 1.2, size=(3, 3)) * shape
    fastest = 2.0 * np.sqrt(max(np.sum((b - a) ** 2), np.sum((c - b) ** 2)))
    t = np.linspace(0.0, 1.0, int(fastest / max(0.7 * radius, 0.5)) + 2)[:, None]
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def visibility(image: np.ndarray, fields: ColumnFields, left_out: np.ndarray) -> float:
    """Return how well columns stand out: their median contrast over its spread; 0 without columns.

    A column's contrast c is its mean within 0.35 spacings of the path, its core, less that between
    0.45 and 0.7, its near gap. The result is |median c| / sqrt(s^2 + v / 8): s is half the
    distance between the 16th and the 84th percentile of c over columns (a normal c's standard
    deviation), v the mean variance within cores, so that v / 8 is what noise leaves in 2^3 voxels.
    Volumes below about 0.6 show little that could be learnt. Columns that are ``left_out``, (N,)
    bool, do not count.
    """
    rows = (slice(None, None, 2), slice(None, None, 2))  # every second along x and y tells enough
    owner, distance, seen = (a[rows].ravel() for a in (fields.owner, fields.distance, image))
    near, far = map(np.float32, NEAR_GAP)
    in_core, in_gap = distance <= np.float32(LABEL_RADIUS), (distance > near) & (distance <= far)
    sums = np.zeros((2, 3, len(left_out) + 1))  # core and gap; number, brightness and its square
    for part, there in zip(sums, (in_core, in_gap), strict=True):
        own, value = owner[there], seen[there].astype(np.float64)
        part[0] = np.bincount(own, minlength=part.shape[1])
        part[1:] = [np.bincount(own, v, part.shape[1]) for v in (value, value * value)]
    counted = np.all(sums[:, 0, 1:] > 0, axis=0) & ~left_out
    if not counted.any():
        return 0.0
    number, total, squares = sums[:, :, 1:][:, :, counted].swapaxes(0, 1)
    core, gap = total / number
    noise = float(np.mean(squares[0] / number[0] - core**2))
    low, middle, high = np.percentile(core - gap, [16, 50, 84])
    return float(abs(middle) / np.sqrt(((high - low) / 2.0) ** 2 + max(noise, 1e-9) / 8.0))


Grid = tuple[np.ndarray, tuple[np.ndarray, ...]]
"""Nodes (A, B, C) float32, and for each axis, for each voxel: both nodes (n,) uint32 beside it and
the weight (n,) float32 of the second."""


def noise_grid(shape: tuple[int, ...], period: float, rng: np.random.Generator) -> Grid:
    """Return the grid of noise of mean 0: normals every ``period`` voxels, smooth between."""
    nodes = [int((n - 1) / period) + 2 for n in shape]
    return grid_of(rng.standard_normal(nodes, dtype=np.float32), period, shape)


def grid_of(nodes: np.ndarray, step: float, shape: tuple[int, ...]) -> Grid:
    """Return ``nodes`` (A, B, C) with weights 3 t^2 - 2 t^3; beyond the last its value goes on."""
    places = []
    for n, size in zip(shape, nodes.shape, strict=True):
        at = np.arange(n) / step
        low = np.minimum(at.astype(np.uint32), np.uint32(size - 1))
        t = np.minimum(at - low, 1.0)
        weight = (t * t * (3.0 - 2.0 * t)).astype(np.float32)
        places += [low, np.minimum(low + np.uint32(1), np.uint32(size - 1)), weight]
    return nodes, tuple(places)


@numba.njit(cache=True)
def add_grid(image, grid):  # type: ignore[no-untyped-def]
    """Add a grid to ``image`` (X, Y, Z) float32, in place."""
    plane, row = np.empty_like(grid[0][0]), np.empty(image.shape[2], dtype=np.float32)
    for i in range(image.shape[0]):
        plane_of(grid, i, plane)
        for j in range(image.shape[1]):
            row_of(grid, plane, j, row)
            out = image[i, j]
            for k in range(row.size):
                out[k] += row[k]


@numba.njit
def plane_of(grid, i, plane):  # type: ignore[no-untyped-def]
    """Fill ``plane`` (B, C) float32 with a grid's nodes at voxel ``i`` of the first axis."""
    nodes, places = grid
    x0, x1, tx = places[0], places[1], places[2]
    for b in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            low = nodes[x0[i], b, c]
            plane[b, c] = low + tx[i] * (nodes[x1[i], b, c] - low)


@numba.njit
def row_of(grid, plane, j, row):  # type: ignore[no-untyped-def]
    """Fill ``row`` (Z,) float32 from :func:`plane_of` at voxel ``j`` of the second axis."""
    _, _, _, y0, y1, ty, z0, z1, tz = grid[1]
    first, second, t = plane[y0[j]], plane[y1[j]], ty[j]
    nodes = np.empty(first.size, dtype=np.float32)
    for c in range(first.size):
        nodes[c] = first[c] + t * (second[c] - first[c])
    for k in range(row.size):
        low = nodes[z0[k]]
        row[k] = low + tz[k] * (nodes[z1[k]] - low)


@numba.njit(cache=True)
def paint_balls(image, owner, centres, radii, values, hollow, outside_only):  # type: ignore[no-untyped-def]
    """Paint balls into ``image``, the later over the earlier, with edges one voxel wide.

    ``image`` (X, Y, Z), ``centres`` (N, 3) and ``radii`` (N,) in voxels, and ``values`` (N,) are
    float32. ``hollow`` is how much of the value is missing within 0.6 radii of the centre, 0 to 1;
    with ``outside_only`` voxels with an ``owner`` stay as they are.
    """
    nx, ny, nz = image.shape
    half, one = np.float32(0.5), np.float32(1.0)
    for n in range(len(centres)):
        x, y, z = centres[n]
        reach = radii[n] + half
        for i in range(max(int(x - reach), 0), min(int(x + reach) + 2, nx)):
            for j in range(max(int(y - reach), 0), min(int(y + reach) + 2, ny)):
                aside = (np.float32(i) - x) ** 2 + (np.float32(j) - y) ** 2
                if aside > reach * reach:
                    continue
                for k in range(max(int(z - reach), 0), min(int(z + reach) + 2, nz)):
                    distance = np.sqrt(aside + (np.float32(k) - z) ** 2)
                    weight = min(reach - distance, one)
                    if weight > 0 and not (outside_only and owner[i, j, k]):
                        value = values[n]
                        if distance < np.float32(0.6) * radii[n]:
                            value *= one - hollow
                        image[i, j, k] += weight * (value - image[i, j, k])
