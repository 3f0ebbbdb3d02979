"""Fluorescence before the microscope: clouds of points per column, and neurites, as a voxel canvas.

Lengths are in unit cube coordinates; a cloud's widths are laid along its column's frame vectors.
A point's intensity replaces what stood in its voxel; neurites are added on top of the clouds.
Columns that are paths, as in preset wide, are cut into pieces as long as the reference's columns,
each with clouds of its column's kind.
"""

from dataclasses import dataclass

import numba
import numpy as np

from utils.simulation.geometry import evaluate_curves, spherical_frames
from utils.simulation.streams import (
    NORMAL_REACH,
    NORMALS,
    draw_key,
    normals_of,
    random_word,
    random_words,
)

EMPTY, DENSE, CLUMPED, RING = 0, 1, 2, 3
"""Column types: left out of the rendering, A (dense), B (clumped) and C (ring)."""
TYPE_SHARES = (2, 3, 3, 3)  # shares of the types in the order above
POINTS_PER_CLOUD = 250
ACROSS, ACROSS_RING, ALONG = 0.12, 0.06, 0.20  # cloud widths, spacings over the simplify factor
RING_RADIUS, RING_SD, RING_CLOUDS = 0.3, 0.1, 75
DENSE_BRANCHES, CLUMPED_BRANCHES = (10, 10), (3, 4, 5)
DENSE_SPREAD = 1.2  # Type A's intensities spread by this factor more
NEURITE_STEPS, NEURITE_POINTS = 128, 4
NEURITE_JITTER = 0.025  # standard deviation of a neurite's points about its curve, in spacings
NEURITE_EMPTY, NEURITE_BRIGHTNESS = 0.3, 2.0


@dataclass(frozen=True)
class Clouds:
    """M last-level clouds in the order of painting; offsets are in their columns' frames."""

    column: np.ndarray  # (M,) int64 index of the column
    offsets: np.ndarray  # (M, 3) float32 along e_theta, e_phi, e_r from the column's mid-point
    across: np.ndarray  # (M,) float32 standard deviation along e_theta and e_phi
    along: np.ndarray  # (M,) float32 standard deviation along e_r
    intensity: np.ndarray  # (M,) float32 mean intensity of the points


def draw_column_types(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw (n,) uint8 types: fixed shares (empty : A : B : C = 2 : 3 : 3 : 3), random places."""
    edges = np.round(n * np.cumsum(TYPE_SHARES) / sum(TYPE_SHARES)).astype(int)
    types = np.repeat(np.arange(4, dtype=np.uint8), np.diff(edges, prepend=0))
    return rng.permutation(types)


def draw_clouds(
    rng: np.random.Generator,
    column_type: np.ndarray,
    spacing: float,
    simplify_factor: float,
    baseline_intensity: float,
    std_intensity: float,
) -> Clouds:
    """Draw the last-level clouds of all columns, type A first, then B, then C.

    ``column_type`` is (N,) uint8, ``spacing`` the lattice's in cube units; ``simplify_factor``
    divides all widths. Clouds have ``baseline_intensity`` x lognormal(1, ``std_intensity``), whose
    sigma is 1.2 times as large for type A.
    """
    along, across, across_ring = (
        width * spacing / simplify_factor for width in (ALONG, ACROSS, ACROSS_RING)
    )
    parts = []
    for kind, branches, width, spread in (
        (DENSE, DENSE_BRANCHES, across, DENSE_SPREAD),
        (CLUMPED, CLUMPED_BRANCHES, across, 1.0),
        (RING, None, across_ring, 1.0),
    ):
        columns = np.flatnonzero(column_type == kind)
        if branches is None:
            offsets = _ring_offsets(rng, len(columns), spacing, along)
        else:
            offsets = _branching_offsets(rng, len(columns), branches, across, along)
        shape = offsets.shape[:2]
        axial = np.maximum(rng.normal(along, along, size=shape), 0.0)
        intensity = baseline_intensity * rng.lognormal(1.0, spread * std_intensity, size=shape)
        widths = np.full(axial.size, width)
        column = np.repeat(columns, shape[1])
        parts.append((column, offsets.reshape(-1, 3), widths, axial.ravel(), intensity.ravel()))
    column, *others = map(np.concatenate, zip(*parts, strict=True))
    return Clouds(column, *(array.astype(np.float32) for array in others))


def _branching_offsets(
    rng: np.random.Generator, n: int, branches: tuple[int, ...], across: float, along: float
) -> np.ndarray:
    """Return (n, prod(branches), 3): each level a Gaussian cloud about its parent."""
    offsets = np.zeros((n, 1, 3))
    for count in branches:
        steps = rng.standard_normal((n, offsets.shape[1], count, 3)) * (across, across, along)
        offsets = (offsets[:, :, None] + steps).reshape(n, steps.shape[1] * count, 3)
    return offsets


def _ring_offsets(rng: np.random.Generator, n: int, spacing: float, along: float) -> np.ndarray:
    """Return (n, 75, 3): clouds about a ring across the axis."""
    radius = rng.normal(RING_RADIUS * spacing, RING_SD * spacing, size=(n, RING_CLOUDS))
    angle = rng.uniform(0.0, 2.0 * np.pi, size=(n, RING_CLOUDS))
    axial = rng.normal(0.0, along, size=(n, RING_CLOUDS))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), axial], axis=2)


def paint_clouds(
    canvas: np.ndarray,
    clouds: Clouds,
    mid_points: np.ndarray,
    frames: tuple[np.ndarray, np.ndarray, np.ndarray],
    v_std: float,
    key: np.uint64,
) -> None:
    """Paint 250 points of each cloud into ``canvas`` (X, Y, Z) float32; a voxel's last one stays.

    ``mid_points`` and ``frames`` (e_r, e_theta, e_phi) are (N, 3) float32, ``v_std`` is the
    standard deviation of a point's intensity, ``key`` that of the points' random numbers.
    """
    e_r, e_theta, e_phi = frames
    scale = np.array(canvas.shape, dtype=np.float32)
    _paint_clouds(
        canvas,
        clouds.column,
        clouds.offsets,
        np.stack([clouds.across, clouds.across, clouds.along], axis=1),
        clouds.intensity,
        mid_points * scale,
        np.stack([e_theta, e_phi, e_r], axis=1) * scale,
        np.float32(v_std),
        key,
        NORMALS,
    )


@numba.njit(cache=True)
def _paint_clouds(canvas, column, offsets, sds, intensity, mid_points, frames, v_std, key, table):  # type: ignore[no-untyped-def]
    """Per cloud: all points' random numbers, then all voxels, then the painting, one by one.

    The first two loops vectorise, at half the time of one loop over points that does all three.
    Clouds without a point on the canvas are left out.
    """
    size = np.array(canvas.shape, dtype=np.float32)
    nx, ny, nz = size
    zero, outside = np.float32(0.0), np.int32(-1)
    centre, widths = np.empty(3, dtype=np.float32), np.empty((3, 3), dtype=np.float32)
    words = np.empty(POINTS_PER_CLOUD, dtype=np.uint64)
    normals = np.empty((4, POINTS_PER_CLOUD), dtype=np.float32)
    a, b, c, d = normals
    i, j, k = np.empty((3, POINTS_PER_CLOUD), dtype=np.int32)
    for m in range(column.size):
        n = column[m]
        if not _place_cloud(mid_points[n], frames[n], offsets[m], sds[m], size, centre, widths):
            continue
        random_words(key, np.uint64(m * POINTS_PER_CLOUD), words)
        normals_of(words, table, normals.reshape(-1))
        x0, y0, z0 = centre
        ax, ay, az = widths[0]
        bx, by, bz = widths[1]
        cx, cy, cz = widths[2]
        for n in range(POINTS_PER_CLOUD):
            x = x0 + a[n] * ax + b[n] * bx + c[n] * cx
            y = y0 + a[n] * ay + b[n] * by + c[n] * cy
            z = z0 + a[n] * az + b[n] * bz + c[n] * cz
            inside = (x >= zero) & (x < nx) & (y >= zero) & (y < ny) & (z >= zero) & (z < nz)
            i[n] = np.int32(x) if inside else outside
            j[n] = np.int32(y)
            k[n] = np.int32(z)
        mean = intensity[m]
        for n in range(POINTS_PER_CLOUD):
            if i[n] >= 0:
                canvas[i[n], j[n], k[n]] = mean + v_std * d[n]


@numba.njit
def _place_cloud(mid_point, frame, offset, sd, size, centre, widths):  # type: ignore[no-untyped-def]
    """Write a cloud's centre and widths in voxels; return whether it may reach the canvas."""
    reaches = True
    for axis in range(3):
        centre[axis] = mid_point[axis]
        reach = np.float32(0.0)
        for k in range(3):
            centre[axis] += offset[k] * frame[k, axis]
            widths[k, axis] = sd[k] * frame[k, axis]
            reach += np.float32(NORMAL_REACH) * abs(widths[k, axis])
        reaches &= centre[axis] + reach > 0 and centre[axis] - reach < size[axis]
    return reaches


def draw_neurite_intensities(
    rng: np.random.Generator, n: int, baseline_intensity: float, std_intensity: float
) -> np.ndarray:
    """Draw (n,) float32: 2 x baseline x lognormal(1, std_intensity); 30 % of them 0 (empty)."""
    intensity = rng.lognormal(1.0, std_intensity, size=n)
    intensity *= NEURITE_BRIGHTNESS * baseline_intensity
    empty = rng.permutation(n) < round(NEURITE_EMPTY * n)
    return np.where(empty, 0.0, intensity).astype(np.float32)


def paint_neurites(
    canvas: np.ndarray,
    control_points: np.ndarray,
    intensity: np.ndarray,
    jitter: float,
    key: np.uint64,
) -> None:
    """Add neurites to ``canvas`` (X, Y, Z) float32: one point, the last, counts in each voxel.

    ``control_points`` are (4, N, 3), ``intensity`` (N,) float32, 0 where a neurite is left out;
    ``jitter`` is the standard deviation of the points about the curve, in cube units.
    """
    drawn = np.flatnonzero(intensity > 0)
    t = np.linspace(0.0, 1.0, NEURITE_STEPS)
    curves = evaluate_curves(control_points[:, drawn].astype(np.float64), t)
    scale = np.array(canvas.shape, dtype=np.float32)
    curves = (curves * scale).astype(np.float32)
    _paint_neurites(canvas, curves, intensity[drawn], drawn, jitter * scale, key, NORMALS)


@numba.njit(cache=True)
def _paint_neurites(canvas, curves, intensity, ids, jitter, key, normals):  # type: ignore[no-untyped-def]
    nx, ny, nz = canvas.shape
    low = np.uint64(0xFFFF)
    count, steps, _ = curves.shape
    voxel = np.empty(count * steps * NEURITE_POINTS, dtype=np.int64)
    value = np.empty(count * steps * NEURITE_POINTS, dtype=np.float32)
    flat = canvas.reshape(-1)
    used = 0
    for n in range(count):
        for s in range(steps):
            p = curves[n, s]
            for k in range(NEURITE_POINTS):
                counter = np.uint64((ids[n] * steps + s) * NEURITE_POINTS + k)
                bits = random_word(key, counter)
                x = p[0] + jitter[0] * normals[bits & low]
                y = p[1] + jitter[1] * normals[(bits >> np.uint64(16)) & low]
                z = p[2] + jitter[2] * normals[(bits >> np.uint64(32)) & low]
                if 0 <= x < nx and 0 <= y < ny and 0 <= z < nz:
                    voxel[used] = (int(x) * ny + int(y)) * nz + int(z)
                    value[used] = flat[voxel[used]] + intensity[n]
                    used += 1
    for k in range(used):  # values hold the canvas as it was: later points replace earlier ones
        flat[voxel[k]] = value[k]


PIECE = 2.25  # length of a piece, spacings: that of the reference's columns
SIMPLIFY_FACTOR, POINT_SD = 1.25, 0.02
"""The reference's, the latter as a share of ``baseline_intensity``."""


def paint_path_clouds(
    paths: np.ndarray,
    spacing: np.ndarray,
    left_out: np.ndarray,
    shape: tuple[int, int, int],
    sigma: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return (X, Y, Z) float32 light of clouds, whose lit voxels have a mean of 1.

    ``paths`` (N, D, 3) and ``spacing`` (N, D), voxels, are those of ``sheet.Columns``, N >= 1; the
    columns ``left_out``, (N,) bool, have no clouds, the others are of the three kinds alike.
    ``sigma`` is that of the clouds' lognormal intensity.
    """
    kinds = rng.integers(DENSE, RING + 1, size=len(paths), dtype=np.uint8)
    middles, steps, apart = _pieces(paths.astype(np.float64), spacing.astype(np.float64))
    number = len(middles) // len(paths)
    frames = spherical_frames(steps)
    types = np.repeat(np.where(left_out, np.uint8(EMPTY), kinds), number)
    # a spacing of 1 is that of the frames, whose vectors are a spacing long
    clouds = draw_clouds(rng, types, 1.0, SIMPLIFY_FACTOR, 1.0, sigma)
    canvas = np.zeros(shape, np.float32)
    unit_cube = apart[:, None] / np.array(shape)
    e_r, e_theta, e_phi = ((vectors * unit_cube).astype(np.float32) for vectors in frames)
    places = (middles / np.array(shape)).astype(np.float32)
    paint_clouds(canvas, clouds, places, (e_r, e_theta, e_phi), POINT_SD, draw_key(rng))
    np.maximum(canvas, np.float32(0.0), out=canvas)
    lit = np.count_nonzero(canvas)
    if lit:
        canvas *= np.float32(lit / canvas.sum(dtype=np.float64))
    return canvas


def _pieces(paths: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return middles (M, 3), directions (M, 3) and spacings (M,) of the pieces, column by column.

    All columns have as many, so that a piece of the mean one is about ``PIECE`` spacings long.
    """
    chords = np.sqrt(np.sum((paths[:, -1] - paths[:, 0]) ** 2, axis=1))
    number = max(round(float(chords.mean() / (PIECE * spacing.mean()))), 1)
    place = (np.arange(number) + 0.5) / number * (paths.shape[1] - 1)
    node = np.minimum(place.astype(int), paths.shape[1] - 2)
    part = place - node
    steps = paths[:, node + 1] - paths[:, node]
    middles = paths[:, node] + part[:, None] * steps
    apart = spacing[:, node] * (1.0 - part) + spacing[:, node + 1] * part
    return middles.reshape(-1, 3), steps.reshape(-1, 3), apart.reshape(-1)
