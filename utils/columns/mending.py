"""Splits and merges that the lattice shows, mended where the image agrees.

A piece that fits nowhere because another instance stands on its site joins it, if the image stays
bright from one to the other. An instance off its site, drawn out towards a free one beside it, is
cut in two, if both sites lie within it and each half lies about its site. The brightness between
two merged columns says nothing: it was highest there, where a network had not told them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from utils.columns import growing
from utils.columns.blocks import slabs
from utils.columns.instances import renumber
from utils.columns.lattice import Lattice
from utils.columns.missing import FARTHEST, places
from utils.columns.table import Measured

SHARED, LONG, LARGE = 0.54, 1.45, 1.75
"""Offset across the axis of two pieces on one site, over the square root of the cell's area (half a
step of a regular lattice), and their length and volume together, in those of the columns about
them; at most."""
AROUND = 3 * growing.NEAR
"""Columns about an instance that are asked where the sites are."""
SAMPLES = 9
"""Points between two pieces at which the image is looked at."""
DOUBTFUL, WHOLE = 0.2, 0.8
"""Residual, in steps, from which an instance may be two columns, and its least volume, in that of
the columns about it."""
DRAWN_OUT, HALF, ABOUT, WITHIN = 2.5, 0.3, 0.3, 0.2
"""Variance from site to site over that across, which is 5 for two disks that touch; least share of
the smaller half; most distance of either from its site, in that of the sites; and least share of
the points along either site that lie in the instance.

These constants were chosen on 12 wide, 8 medulla and 8 default volumes."""
SQUARE = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(9, 2)
"""Steps to a site and those about it, whichever diagonal the hexagon has."""


def mend_from_lattice(
    labels: np.ndarray,
    measured: Measured,
    lattice: Lattice,
    steps: tuple[float, ...],
    bright: Callable[[np.ndarray], np.ndarray],
) -> tuple[int, int]:
    """Mend ``labels`` in place; return how many splits were joined and how many merges were cut.

    Args:
        labels: (X, Y, Z) int32 of the columns 1..N, which are numbered anew if any is mended.
        measured: the N columns.
        lattice: of their centres, axes and paths.
        steps: edge of a voxel along x, y, z.
        bright: of voxels (..., 3) int, whether (...) the image may hold a column there.
    """
    n, placed = len(lattice.patch), np.flatnonzero(lattice.patch)
    if len(placed) == 0:
        return 0, 0
    near = growing.nearest(measured.centre, AROUND)
    reference = placed[cKDTree(measured.centre[placed]).query(measured.centre)[1]]
    into = np.arange(n)
    joined = _splits(measured, lattice, near[:, : growing.NEAR], reference, np.array(steps), bright)
    into[joined[:, 0]] = joined[:, 1]
    usual = np.median(measured.count[near[:, :8]], axis=1)
    asked = (lattice.patch == 0) | (lattice.residual > DOUBTFUL)
    asked &= measured.count >= WHOLE * usual
    asked[joined.ravel()] = False
    cut = 0
    for k in np.flatnonzero(asked):
        r = int(reference[k])
        others = near[k][lattice.patch[near[k]] == lattice.patch[r]]
        cut += _cut(labels, k, n + cut + 1, others, r, measured, lattice, np.array(steps))
    if len(joined):
        kept = np.unique(np.append(into, np.arange(n, n + cut)), return_inverse=True)[1]
        for _, slab in slabs(labels):
            renumber(slab, kept + 1)
    return len(joined), cut


def _splits(
    measured: Measured,
    lattice: Lattice,
    near: np.ndarray,
    reference: np.ndarray,
    steps: np.ndarray,
    bright: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return pairs (J, 2) of instances that are one column: a piece without a place, and another.

    None stands in two of them. Each is seen by the map of the ``reference`` (N,), a column with a
    place, of the other one.
    """
    loose = np.flatnonzero(lattice.patch == 0)
    one, other = np.repeat(loose, near.shape[1]), near[loose].ravel()
    axis, basis = (x[reference[other]] for x in (measured.axis, lattice.steps))
    way = measured.centre[one] - measured.centre[other]
    way -= np.sum(way * axis, axis=1, keepdims=True) * axis
    cell = np.linalg.norm(np.cross(basis[..., 0], basis[..., 1]), axis=1)
    offset = np.linalg.norm(way, axis=1) / np.sqrt(cell)
    paths = np.stack([measured.paths[one], measured.paths[other]])
    along = np.einsum("skdc,kc->skd", paths, axis)
    length, volume = (np.median(x[near[one]], axis=1) for x in (measured.length, measured.count))
    good = (offset < SHARED) & (np.ptp(along, axis=(0, 2)) < LONG * length)
    good &= measured.count[one] + measured.count[other] < LARGE * volume
    for k in np.flatnonzero(good):
        between = _between(*paths[:, k, 1:-1])  # the ends themselves lie on the surface
        good[k] = bright(np.rint(between / steps).astype(int)).all()
    free, joined = np.ones(len(near), bool), list[tuple[int, int]]()
    for k in np.flatnonzero(good)[np.argsort(offset[good], kind="stable")]:
        pair = int(one[k]), int(other[k])
        if free[list(pair)].all():
            free[list(pair)] = False
            joined.append(pair)
    return np.array(joined, np.int64).reshape(-1, 2)


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return points (SAMPLES, 3) from one path (D, 3) to another, where they are nearest."""
    gaps = np.linalg.norm(one[:, None] - other, axis=2)
    k, m = np.unravel_index(gaps.argmin(), gaps.shape)
    return np.linspace(one[k], other[m], SAMPLES)


def _cut(
    labels: np.ndarray,
    k: int,
    number: int,
    others: np.ndarray,
    reference: int,
    measured: Measured,
    lattice: Lattice,
    steps: np.ndarray,
) -> bool:
    """Give the part of instance ``k`` that is another column's ``number``; return if there is one.

    Where the sites are is asked of ``others`` (O,), columns of the patch, along their whole length.
    """
    axis, basis, paths = measured.axis[reference], lattice.steps[reference], measured.paths
    way = measured.centre[k] - measured.centre[reference]
    way -= (way @ axis) * axis
    sites = lattice.pq[reference] + np.rint(growing.inverses(basis) @ way).astype(int) + SQUARE
    away = np.abs(lattice.pq[others] - sites[:, None]).max(axis=2)
    sites = sites[(away > 0).all(axis=1) & (away <= FARTHEST).any(axis=1)]
    lines, spacing = places(sites, lattice.pq[others], paths[others])
    lines = lines[np.isfinite(spacing)]
    if len(lines) < 2:
        return False
    reach = np.linalg.norm(basis, axis=0).max()
    ends = [paths[k].min(axis=0) - reach, paths[k].max(axis=0) + reach]
    low, high = np.clip(np.rint(ends / steps).astype(int), 0, labels.shape)
    box = labels[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
    inside = np.argwhere(box == k + 1)
    points = (inside + low) * steps
    share = np.bincount(_nearest_line(points, lines), minlength=len(lines))
    lines = lines[np.sort(np.argsort(-share, kind="stable")[:2])]
    half = _nearest_line(points, lines).astype(bool)
    if not HALF <= half.mean() <= 1 - HALF:
        return False
    middles = np.stack([points[~half].mean(axis=0), points[half].mean(axis=0)])
    missed = middles[:, None] - lines
    missed -= (missed @ axis)[..., None] * axis
    apart = lines[1].mean(axis=0) - lines[0].mean(axis=0)
    apart -= (apart @ axis) * axis
    spread = [np.var(points @ way) for way in (apart, np.cross(axis, apart))]
    seen = np.rint(lines / steps).astype(int) - low
    valid = ((seen >= 0) & (seen < box.shape)).all(axis=2)
    seen = np.where(valid[..., None], seen, 0)
    held = valid & (box[tuple(np.moveaxis(seen, 2, 0))] == k + 1)
    good = np.linalg.norm(missed, axis=2).min(axis=1).max() < ABOUT * np.linalg.norm(apart)
    good &= spread[0] > DRAWN_OUT * spread[1] and held.mean(axis=1).min() >= WITHIN
    if good:
        box[tuple(inside[half].T)] = number
    return bool(good)


def _nearest_line(points: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return which of ``lines`` (L, D, 3) is nearest to each of ``points`` (V, 3)."""
    return cKDTree(lines.reshape(-1, 3)).query(points)[1] // lines.shape[1]
