"""Columns from a table of measured ones, put into a volume at any place, turn and voxel size."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator

from utils.simulation import sheet
from utils.simulation.configuration import Shape
from utils.simulation.coordinates import rotate


@dataclass(frozen=True)
class ColumnTable:
    """N >= 2 measured columns; positions in micrometres, float64."""

    name: str
    hash: str  # SHA-256 of the files that it was read from
    p: np.ndarray  # (N,) int
    q: np.ndarray  # (N,) int
    proximal: np.ndarray  # (N, 3)
    distal: np.ndarray  # (N, 3)
    paths: np.ndarray | None = None  # (N, D, 3) from proximal to distal; None: straight

    @cached_property
    def nodes(self) -> np.ndarray:
        """(N, D, 3) the paths, given or straight."""
        if self.paths is not None:
            return self.paths
        t = np.linspace(0.0, 1.0, sheet.DEPTHS)[:, None]
        return self.proximal[:, None] * (1.0 - t) + self.distal[:, None] * t

    @cached_property
    def nearest(self) -> np.ndarray:
        """(N, D) distance to the nearest other column at that depth."""
        return sheet.nearest_distances(self.nodes)

    @cached_property
    def spacing(self) -> float:
        """The median of what ``SheetConfig.spacing`` is of one cell, at the middle depth.

        A cell is spanned by a step along p and one along q, and its area is sqrt(3) / 2 of the
        squared spacing; without any cell it is the median nearest distance.
        """
        middle = self.nodes.shape[1] // 2
        sites = zip(self.p.tolist(), self.q.tolist(), strict=True)
        at = dict(zip(sites, self.nodes[:, middle], strict=True))
        areas = [
            np.linalg.norm(np.cross(at[p + 1, q] - place, at[p, q + 1] - place))
            for (p, q), place in at.items()
            if (p + 1, q) in at and (p, q + 1) in at
        ]
        if not areas:
            return float(np.median(self.nearest[:, middle]))
        return float(np.sqrt(np.median(areas) / np.sqrt(0.75)))


@dataclass(frozen=True)
class Placement:
    """Where a table lies in a volume: x becomes turn (mirror (x - place)) / voxel_size + centre."""

    voxel_size: float  # edge of a voxel in micrometres
    place: tuple[float, float, float]  # the table's point at the volume's centre, in micrometres
    axis: tuple[float, float, float]  # unit vector to which +z is turned
    turn: float  # turn about z before, in radians
    mirrored: bool  # whether x is inverted first: a right lobe becomes a left one


def draw_placement(
    table: ColumnTable, config: sheet.SheetConfig, shape: Shape, rng: Generator
) -> Placement:
    """Draw a placement that puts some column's node within ``config.shift`` of the centre.

    The voxel size is such that the table's spacing is drawn from ``config.spacing``.
    """
    voxel_size = table.spacing / rng.uniform(*config.spacing)
    nodes = table.nodes.reshape(-1, 3)
    shift = rng.uniform(-config.shift, config.shift, size=3) * shape * voxel_size
    x, y, z = (nodes[rng.integers(len(nodes))] + shift).tolist()
    axis, turn = sheet.draw_turn(rng)
    return Placement(float(voxel_size), (x, y, z), axis, turn, bool(rng.integers(2)))


def place_columns(
    table: ColumnTable,
    config: sheet.SheetConfig,
    shape: Shape,
    rng: Generator,
    placement: Placement | None = None,
) -> sheet.Columns:
    """Return the table's columns in a volume; those outside of it are cropped away.

    Without a ``placement`` it is drawn until enough columns are inside. Of ``config``, ``spacing``,
    ``shift``, ``left_out``, ``min_columns`` and ``max_tries`` are used. Raises GeometryError for
    fewer than ``min_columns`` inside, in each of the tries.
    """

    def place() -> sheet.Columns:
        at = draw_placement(table, config, shape, rng) if placement is None else placement
        turn = sheet.turn_to(at.axis, at.turn)
        turn = turn * ([-1.0, 1.0, 1.0] if at.mirrored else [1.0, 1.0, 1.0])
        places = rotate(turn, (table.nodes - at.place).reshape(-1, 3)) / at.voxel_size
        paths = places.reshape(table.nodes.shape) + 0.5 * np.array(shape)
        lattice = np.stack([np.zeros_like(table.p), table.p, table.q], axis=1)
        parameters = {
            **{"voxel_size": at.voxel_size, "spacing": table.spacing / at.voxel_size},
            **sheet.by_axis("place", at.place),
            **sheet.by_axis("axis", at.axis),
            **{"turn": at.turn, "mirrored": float(at.mirrored)},
        }
        spacing = table.nearest / at.voxel_size
        columns = sheet.near_volume(paths, spacing, lattice, shape, parameters)
        return sheet.draw_left_out(config, columns, rng)

    return sheet.draw_until_enough(place, config, shape)
