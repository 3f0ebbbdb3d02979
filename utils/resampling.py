"""Stacks resampled to other voxel sizes, slab by slab, as if the whole had been resampled at once.

One matrix an axis: linear between the centres of voxels; where voxels grow, the triangle widens
with them, so that nothing finer than the new voxels is folded into them. Borders repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from utils.errors import UserError

SLAB_BYTES = 16 << 20
"""Size of the slabs in which a stack is read for its percentiles, and an output is written."""
PLAUSIBLE = (1e-4, 1e5)
"""Micrometres that the edge of a voxel may have: a tenth of a nanometre to ten centimetres."""
LARGEST_FACTOR = 200.0
"""Enlargement along an axis beyond which a voxel size is a mistake: sections of 10 um whose voxels
are 0.1 um wide, enlarged twice, are just within it."""


@dataclass(frozen=True)
class Resampling:
    """From one number of voxels along each axis to another, over the same extent."""

    matrices: tuple[sparse.csr_array, ...]  # of each axis (target, source) float32, rows sum to 1

    @classmethod
    def between(cls, source: tuple[int, ...], target: tuple[int, ...]) -> Resampling:
        """Return the resampling from one shape to another."""
        return cls(tuple(_matrix(*lengths) for lengths in zip(source, target, strict=True)))

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of source planes (last axis) from which target planes are made."""
        matrix = self.matrices[-1]
        if start >= stop:
            return matrix.shape[1], matrix.shape[1]
        columns = matrix[[start, stop - 1]].indices
        return int(columns.min()), int(columns.max()) + 1

    def apply(self, slab: np.ndarray, offset: int, start: int, stop: int) -> np.ndarray:
        """Return target planes ``start <= z < stop`` as float32 (X, Y, stop - start).

        ``slab`` (X, Y, n) holds the source planes from ``offset`` on, all that are needed.
        """
        last = self.matrices[-1][start:stop, offset : offset + slab.shape[-1]]
        slab = slab.astype(np.float32, copy=False)
        for axis, matrix in enumerate((*self.matrices[:-1], last)):
            if matrix.shape[0] == matrix.shape[1] and axis < slab.ndim - 1:
                continue  # equal lengths: the identity
            front = np.moveaxis(slab, axis, 0)
            product = matrix @ front.reshape(len(front), -1)
            slab = np.moveaxis(product.reshape(-1, *front.shape[1:]), 0, axis)
        return slab

    def stream(
        self, slabs: Iterator[tuple[int, np.ndarray]], first: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Turn (start, slab) of source planes in order into (start, slab) of target planes.

        The source begins no later than plane ``needed(first, ...)[0]``; the target at ``first``.
        """
        matrix = self.matrices[-1]
        ends = np.maximum.reduceat(matrix.indices, matrix.indptr[:-1]) + 1  # of what planes need
        done, offset, kept = first, 0, None
        for start, slab in slabs:
            offset = start if kept is None else offset
            kept = slab.copy() if kept is None else np.concatenate([kept, slab], axis=-1)
            ready = int(np.searchsorted(ends, start + slab.shape[-1], side="right"))
            if ready > done:
                yield done, self.apply(kept, offset, done, ready)
                done = ready
            begin = max(self.needed(done, len(ends))[0], offset)
            kept, offset = kept[..., begin - offset :], begin


def planes_at_once(plane_bytes: int) -> int:
    """Return how many planes make a slab of :data:`SLAB_BYTES`, at least one."""
    return max(1, SLAB_BYTES // plane_bytes)


def cube_factors(spacing: tuple[float, ...], scale: float) -> tuple[float, ...]:
    """Return how much each axis is enlarged to make voxels cubes, ``scale`` times finer than they.

    The cubes have the finest edge of ``spacing``, along x, y, z (or x, y) in micrometres. Raises
    UserError for an enlargement of more than :data:`LARGEST_FACTOR`, and for edges that are not
    :data:`PLAUSIBLE`.
    """
    factors = tuple(scale * size / min(spacing) for size in spacing)
    if max(factors) > LARGEST_FACTOR:
        raise UserError(
            f"{_voxels(spacing)} would be enlarged {max(factors):.4g} times, {LARGEST_FACTOR:g} at "
            "most are possible: give the right --voxel_size, or a smaller --scale"
        )
    check_spacing(spacing)
    return factors


def check_spacing(spacing: tuple[float, ...]) -> None:
    """Raise UserError if edges of voxels, in micrometres, are not :data:`PLAUSIBLE`."""
    if not PLAUSIBLE[0] <= min(spacing) <= max(spacing) <= PLAUSIBLE[1]:
        raise UserError(
            f"{_voxels(spacing)} are none of a microscope, whose edges lie in "
            f"{PLAUSIBLE[0]:g}..{PLAUSIBLE[1]:g} um: give the right --voxel_size"
        )


def _voxels(spacing: tuple[float, ...]) -> str:
    sizes = " x ".join(f"{size:g}" for size in reversed(spacing))
    return f"voxels of {sizes} um ({' x '.join(reversed('xyz'[: len(spacing)]))})"


def scaled_shape(shape: tuple[int, ...], factors: tuple[float, ...]) -> tuple[int, ...]:
    """Return the shape whose voxels are smaller by ``factors``, at least one voxel an axis."""
    return tuple(max(1, round(n * f)) for n, f in zip(shape, factors, strict=True))


def _matrix(old: int, new: int) -> sparse.csr_array:
    """Return the (new, old) matrix of one axis."""
    width = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    reach = int(np.ceil(width))
    columns = np.floor(centres).astype(int)[:, None] + np.arange(-reach + 1, reach + 1)
    weights = np.maximum(0.0, 1 - np.abs(columns - centres[:, None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    starts = np.arange(new + 1) * columns.shape[1]  # of the rows among all entries
    entries = (weights.ravel(), np.clip(columns, 0, old - 1).ravel(), starts)
    matrix = sparse.csr_array(entries, shape=(new, old))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix.astype(np.float32)
