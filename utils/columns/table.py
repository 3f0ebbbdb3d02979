"""Columns as a table: where each stands, its axis, path, size and brightness.

A table has a row a column; fields and units as in docs/columns.md: micrometres along x, y, z from
the centre of the file's voxel 0 (voxels, where nobody knows their size), vox_* the same in voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

from utils.columns.blocks import slabs
from utils.columns.instances import Moments, smooth_axes, sums_of
from utils.columns.lattice import Lattice
from utils.errors import UserError

MAPPED = "length diameter volume n_voxels score lattice_residual n_neighbors".split()
"""Fields that may colour a map, beside mean_C and peak_C of the channels measured."""
SLICES = 7
"""Slices across the axis whose centroids make the path; with both ends nine points."""


@dataclass(frozen=True)
class Measured:
    """What is measured of N instances; lengths are micrometres from the centre of voxel 0."""

    centre: np.ndarray
    """(N, 3) centroids."""
    axis: np.ndarray
    """(N, 3), unit; towards the side where columns spread."""
    paths: np.ndarray
    """(N, SLICES + 2, 3) from the proximal to the distal end."""
    count: np.ndarray
    """(N,) voxels."""
    channels: dict[str, np.ndarray]
    """(N,) each: ``score``, ``mean_C`` and ``peak_C`` by name."""

    @property
    def length(self) -> np.ndarray:
        """(N,) along the path."""
        return np.linalg.norm(np.diff(self.paths, axis=1), axis=2).sum(axis=1)

    def values(self, steps: tuple[float, ...], lattice: Lattice) -> dict[str, np.ndarray]:
        """Return the fields (N,) of the table that may colour a map, by name."""
        return {
            "length": self.length,
            "diameter": self.diameter(steps),
            "volume": self.count * float(np.prod(steps)),
            "n_voxels": self.count,
            **self.channels,
            "lattice_residual": lattice.residual,
            "n_neighbors": lattice.n_neighbors,
        }

    def diameter(self, steps: tuple[float, ...]) -> np.ndarray:
        """Return those (N,) of cylinders as long and as large; voxels have edges ``steps``."""
        volume = self.count * float(np.prod(steps))
        return 2 * np.sqrt(volume / (np.pi * np.maximum(self.length, 1e-9)))


def check_colour(field: str | None, channels: Sequence[int]) -> None:
    """Raise UserError unless a map can be coloured by ``field``; ``channels`` are measured."""
    names = [f"{what}_{number}" for number in channels for what in ("mean", "peak")]
    if field is not None and field not in (known := [*MAPPED, *names]):
        raise UserError(f"--colour {field}: not measured; give one of {', '.join(known)}")


def measure_columns(
    labels: np.ndarray,
    steps: tuple[float, ...],
    score: np.ndarray | None = None,
    channels: Mapping[int, np.ndarray] | None = None,
) -> Measured:
    """Return what the instances 1..N of ``labels`` (X, Y, Z) are like.

    Args:
        labels: integer, 0 for background, each of 1..N at least once.
        steps: edge of a voxel along x, y, z.
        score: (X, Y, Z) probabilities, whose mean within a column is its score; NaN without them.
        channels: grey values (X, Y, Z) by the channel's number.
    """
    n = max(int(slab.max(initial=0)) for _, slab in slabs(labels))
    sums = np.zeros((n, 10))
    for start, slab in slabs(labels):
        sums += sums_of(slab, n, start)
    moments = Moments.of_sums(sums, steps)
    axis = smooth_axes(moments)
    given = {"score": score} | {str(name): values for name, values in (channels or {}).items()}
    total = {name: np.zeros(n) for name in given}
    peak = {name: np.full(n, -np.inf) for name in given}
    # A cylinder's length is sqrt(12) standard deviations along its axis.
    variance = np.einsum("na,nab,nb->n", axis, moments.covariance, axis)
    half = np.maximum(np.sqrt(3 * variance), min(steps) / 2)
    slices = np.zeros((n, SLICES, 4))
    for start, slab in slabs(labels):
        _add_slices(slab, start, np.array(steps), moments.centre, axis, half, slices)
        for name, values in given.items():
            if values is not None:
                planes = values[..., start : start + slab.shape[2]]
                _add_values(slab, planes, total[name], peak[name])
    found: dict[str, np.ndarray] = {"score": np.full(n, np.nan)}
    for name, values in given.items():
        mean = total[name] / np.maximum(moments.count, 1)
        if name != "score":
            found |= {f"mean_{name}": mean, f"peak_{name}": peak[name]}
        elif values is not None:
            found["score"] = mean
    paths = _paths(slices * [1, *steps], moments, axis, half)
    return Measured(moments.centre, axis, paths, moments.count, found)


@numba.njit(cache=True)
def _add_slices(labels, start, steps, centre, axis, half, slices):
    """Add 1, x, y, z of all voxels to ``slices`` (N, SLICES, 4) across the axes of 1..N.

    ``labels`` (X, Y, Z) integer; its first plane has z = ``start``.
    """
    nx, ny, nz = labels.shape
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                n = int(labels[i, j, k]) - 1
                if n >= 0:
                    along = (i * steps[0] - centre[n, 0]) * axis[n, 0]
                    along += (j * steps[1] - centre[n, 1]) * axis[n, 1]
                    along += ((k + start) * steps[2] - centre[n, 2]) * axis[n, 2]
                    place = int((along / half[n] + 1) * (SLICES / 2))
                    row = slices[n, min(max(place, 0), SLICES - 1)]
                    row[0] += 1.0
                    row[1] += i
                    row[2] += j
                    row[3] += k + start


@numba.njit(cache=True)
def _add_values(labels, values, total, peak):
    """Add the finite ``values`` of 1..N to ``total`` (N,), and the greatest ones to ``peak``."""
    nx, ny, nz = labels.shape
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                n = int(labels[i, j, k]) - 1
                if n >= 0:
                    value = float(values[i, j, k])
                    value = value if np.isfinite(value) else 0.0
                    total[n] += value
                    peak[n] = max(peak[n], value)


def _paths(slices: np.ndarray, moments: Moments, axis: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Return smoothed centroids of slices across the axis, and the ends (N, SLICES + 2, 3).

    ``slices`` (N, SLICES, 4): sums of 1, x, y, z; ``half`` (N,): half the length that they divide.
    """
    count = slices[:, :, :1]
    middle = slices[:, :, 1:] / np.maximum(count, 1)
    places = (2 * np.arange(SLICES) + 1) / SLICES - 1
    straight = moments.centre[:, None] + (half[:, None] * places)[:, :, None] * axis[:, None]
    away = np.where(count > 0, middle - straight, 0)
    away -= np.sum(away * axis[:, None], axis=2, keepdims=True) * axis[:, None]
    weight = np.maximum(count, 1e-9)  # of the three slices about each
    sums = [np.pad(x, ((0, 0), (1, 1), (0, 0))) for x in (away * weight, weight)]
    smooth, total = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:] for x in sums)
    path = straight + smooth / total
    ends = [path[:, a] + (path[:, a] - path[:, b]) / 2 for a, b in ((0, 1), (-1, -2))]
    return np.concatenate([ends[0][:, None], path, ends[1][:, None]], axis=1)


def table_of(
    measured: Measured,
    lattice: Lattice,
    steps: tuple[float, ...],
    shift: tuple[float, ...],
    hemisphere: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of columns, found and inferred ones, and that of their paths.

    Args:
        measured: the columns that were found; column_id is the label, 1..N.
        lattice: of their centres, axes and paths; its inferred columns follow, from N + 1 on.
        steps: edge of a voxel along x, y, z.
        shift: way from the file's voxel 0 to the labels' one.
        hemisphere: ``L`` or ``R``, if known.
    """
    inferred, n, m = lattice.inferred, len(measured.axis), len(lattice.inferred.patch)
    centre = np.concatenate([measured.centre, inferred.paths[:, 0]]) + shift
    paths = np.concatenate([measured.paths, inferred.paths[:, 1:]]) + np.array(shift)
    axis = np.concatenate([measured.axis, inferred.axes])
    patch = np.concatenate([lattice.patch, inferred.patch])
    pq = pd.DataFrame(np.concatenate([lattice.pq, inferred.pq]), columns=["p", "q"], dtype="Int64")
    volume = measured.count * float(np.prod(steps))
    unknown = np.full(m, np.nan)
    table = pd.DataFrame({"column_id": np.arange(1, n + m + 1), "patch": patch})
    table["hemisphere"] = hemisphere or ""
    table[["p", "q"]] = pq.mask(np.stack([patch == 0] * 2, axis=1))
    for name, vectors in {
        "pos": centre,
        "axis": axis,
        "proximal": paths[:, 0],
        "distal": paths[:, -1],
        "vox": centre / steps,
    }.items():
        table[[f"{name}_{a}" for a in "xyz"]] = vectors
    table["length"] = np.concatenate([measured.length, unknown])
    table["diameter"] = np.concatenate([measured.diameter(steps), unknown])
    table["volume"] = np.concatenate([volume, unknown])
    table["n_voxels"] = np.concatenate([measured.count, np.zeros(m, np.int64)])
    for name, values in measured.channels.items():
        table[name] = np.concatenate([values, unknown])
    table["status"] = ["detected"] * n + ["inferred"] * m
    table["lattice_residual"] = np.concatenate([lattice.residual, unknown])
    table["n_neighbors"] = np.concatenate([lattice.n_neighbors, inferred.n_neighbors])
    points = paths.shape[1]
    path_table = pd.DataFrame(paths.reshape(-1, 3), columns=list("xyz"))
    path_table.insert(0, "step", np.tile(np.arange(points), n + m))
    path_table.insert(0, "column_id", np.repeat(table["column_id"].to_numpy(), points))
    return table, path_table
