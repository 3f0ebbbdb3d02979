"""Preset wide: columns of many shapes under many stains and microscopes, configured in parts.

Where columns stand (``sheet``, or a table of real ones), what glows (``stain``), how it is seen
(``microscope``). Axis order is (x, y, z), lengths are voxels unless a name or text says otherwise.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from utils.errors import UserError
from utils.simulation.configuration import PlainConfig, Range, Shape, limited
from utils.simulation.geometry import GeometryError, draw_optic_lobe
from utils.simulation.microscope import MicroscopeConfig, draw_microscope, take_picture
from utils.simulation.path_clouds import paint_path_clouds
from utils.simulation.placed_columns import ColumnTable, place_columns
from utils.simulation.sheet import (
    DEPTHS,
    Columns,
    SheetConfig,
    by_axis,
    draw_columns,
    draw_left_out,
    nearest_distances,
)
from utils.simulation.sheet_fields import paint_fields
from utils.simulation.stain import StainConfig, draw_stain, paint_stain, visibility

LOOKS = 4  # stains and microscopes that are tried on a geometry before another one is drawn


@dataclass(frozen=True)
class LobeConfig(PlainConfig):
    """Columns of preset reference, straight, in some volumes of preset wide."""

    share: float = limited(0.0, 0.0, 1.0)
    """Share of the volumes in which they stand instead of those of a sheet."""
    lattice_intervals: tuple[int, int] = limited((8, 15), 1)
    """n, inclusive; an icosahedron edge has n + 1 intervals."""
    axis_scales: Range = limited((0.7, 1.5), 1e-3)  # Half axes of the ellipsoid, cube edges
    length: float = limited(2.25, 0.1)  # Length of a column, in spacings


@dataclass(frozen=True)
class WideConfig(PlainConfig):
    """All that governs a random volume of preset wide, in parts."""

    shape: Shape = limited((128, 128, 128), 2, is_range=False)
    """Voxels along x, y, z."""
    min_visibility: float = limited(0.6, 0.0)
    """Least contrast of columns and gaps over its spread (ratio), else a volume is redrawn."""
    max_redraws: int = limited(40, 1)  # Number of volumes drawn before giving up
    sheet: SheetConfig = field(default_factory=SheetConfig)  # Where columns stand
    lobe: LobeConfig = field(default_factory=LobeConfig)  # Where they stand in a share of volumes
    stain: StainConfig = field(default_factory=StainConfig)  # What glows
    microscope: MicroscopeConfig = field(default_factory=MicroscopeConfig)  # How it is seen
    table: ColumnTable | None = field(default=None, compare=False)
    """Measured columns, which are placed in the volume instead of drawn ones."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; of a table, if there is one, its name and hash alone."""
        plain, table = super().to_dict(), self.table
        del plain["table"]
        return plain if table is None else {**plain, "table": [table.name, table.hash]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from :meth:`to_dict`'s result; a table comes back without rows."""
        config = super().from_dict({k: v for k, v in values.items() if k != "table"})
        if "table" not in values:
            return config
        return replace(config, table=ColumnTable(*values["table"], *[np.zeros((0, 3))] * 4))


@dataclass(frozen=True)
class WideParameters:
    """What was drawn for one volume; the first four mean what they mean in the reference."""

    spacing: float  # mean distance of nearest neighbours along columns, in mean edges of the volume
    cone_length: float  # 1: e_r is the whole column
    cone_radius: float  # radius of a column, in its distance to the nearest neighbour at that depth
    cone_taper: float  # mean of the columns' distal over proximal spacing
    visibility: float  # contrast of columns and gaps over its spread, by ``microscope.visibility``
    redraws: int  # volumes drawn until this one was accepted
    drawn: str  # JSON: parameters of the geometry, the stain and the microscope

    def spacing_voxels(self, shape: Shape) -> list[float]:
        """Return the spacing along x, y, z in voxels, which are cubes."""
        return [self.spacing * float(np.mean(shape))] * 3


def draw_wide(
    config: WideConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Columns, WideParameters]:
    """Draw volumes until one's columns can be seen; GeometryError after ``config.max_redraws``.

    Return image (X, Y, Z) float32, instances (X, Y, Z) uint16, the columns, and what was drawn.
    """
    best = 0.0
    for redraws in range(config.max_redraws):
        if redraws % LOOKS == 0:
            columns = _draw_columns(config, rng)
            lattice = columns.paths, columns.spacing, columns.neighbours
            fields = paint_fields(*lattice, config.shape, columns.neuropil)
            spacing = float(columns.spacing.mean())
        stain = draw_stain(config.stain, len(columns.paths), columns.left_out, rng)
        microscope = draw_microscope(config.microscope, rng, spacing)
        clouds = None
        if stain.kind == "clouds":
            where = columns.paths, columns.spacing, columns.left_out, config.shape
            clouds = paint_path_clouds(*where, stain.cloud_sigma, rng)
        image = take_picture(microscope, paint_stain(stain, fields, spacing, rng, clouds), rng)
        seen = visibility(image, fields, columns.left_out)
        if seen >= config.min_visibility:
            break
        best = max(best, seen)
    else:
        raise GeometryError(
            f"no volume of {config.max_redraws} shows its columns with min_visibility "
            f"{config.min_visibility} (most: {best:.2f}): ask for less, or for clearer stains"
        )
    geometry: dict[str, Any] = {**columns.parameters, "neuropil": columns.neuropil.tolist()}
    drawn = {"geometry": geometry, "stain": stain.to_dict(), "microscope": microscope.to_dict()}
    parameters = WideParameters(
        spacing=spacing / float(np.mean(config.shape)),
        cone_length=1.0,
        cone_radius=config.sheet.radius,
        cone_taper=float(np.mean(columns.spacing[:, -1] / columns.spacing[:, 0])),
        visibility=seen,
        redraws=redraws,
        drawn=json.dumps(drawn),
    )
    return image, fields.instances(config.sheet.radius), columns, parameters


def _draw_columns(config: WideConfig, rng: np.random.Generator) -> Columns:
    if config.table is None:
        if rng.random() < config.lobe.share:
            return _draw_lobe(config, rng)
        return draw_columns(config.sheet, config.shape, rng)
    if not len(config.table.p):
        raise UserError(f"the columns of {config.table.name} are missing: give --columns_table")
    return place_columns(config.table, config.sheet, config.shape, rng)


def _draw_lobe(config: WideConfig, rng: np.random.Generator) -> Columns:
    """Return the reference's columns as straight paths."""
    ranges = config.lobe.lattice_intervals, config.lobe.axis_scales
    lobe = draw_optic_lobe(rng, *ranges, config.sheet.min_columns, config.sheet.max_tries)
    lengths = np.linspace(0.0, config.lobe.length * lobe.spacing, DEPTHS)[:, None]
    paths = (lobe.entry_points[:, None] + lengths * lobe.e_r[:, None]) * np.array(config.shape)
    drawn = {"lattice_intervals": float(lobe.lattice_intervals), "tries": float(lobe.tries)}
    for name in ("axis_scales", "shift", "angles", "cutoff_point", "cutoff_normal"):
        drawn |= by_axis(name, getattr(lobe, name))
    columns = Columns(
        paths=paths.astype(np.float32),
        spacing=nearest_distances(paths).astype(np.float32),
        lattice=lobe.lattice_coordinates,
        neighbours=lobe.lattice_neighbours,
        left_out=np.zeros(len(paths), bool),
        parameters=drawn,
    )
    return draw_left_out(config.sheet, columns, rng)
