"""The reference's three kinds of clouds along columns that are paths, as a stain of preset wide.

A path is cut into pieces as long as the reference's columns, each with clouds of its column's kind.
"""

import numpy as np

from utils.simulation.coordinates import spherical_frames
from utils.simulation.fluorescence import DENSE, EMPTY, RING, draw_clouds, paint_clouds
from utils.simulation.random_bits import draw_key

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
    clouds = draw_clouds(
        rng,
        np.repeat(np.where(left_out, np.uint8(EMPTY), kinds), number),
        spacing=1.0,  # of the frames, whose vectors are a spacing long
        simplify_factor=SIMPLIFY_FACTOR,
        baseline_intensity=1.0,
        std_intensity=sigma,
    )
    canvas = np.zeros(shape, np.float32)
    unit_cube = apart[:, None] / np.array(shape)
    e_r, e_theta, e_phi = ((vectors * unit_cube).astype(np.float32) for vectors in frames)
    places = (middles / np.array(shape)).astype(np.float32)
    paint_clouds(canvas, clouds, places, (e_r, e_theta, e_phi), v_std=POINT_SD, key=draw_key(rng))
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
