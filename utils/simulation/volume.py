"""Simulated 3D fluorescence volumes: configurations, records, and the stages in order.

Preset reference has one kind of lobe and of microscope. Preset wide has columns of many shapes
under many stains and microscopes, configured in parts: where columns stand (``sheet``, or a table
of real ones), what glows (``stain``), how it is seen (``microscope``).

Axis order is (x, y, z) everywhere. Lengths of preset reference are in units of the cube's edge
(1.0), those of preset wide voxels, unless a name or text says otherwise; intensities are in the
units of ``baseline_intensity``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.random import Generator

from utils.errors import UserError
from utils.simulation import fluorescence, geometry, imaging
from utils.simulation.configuration import PlainConfig, Range, Shape, limited
from utils.simulation.geometry import GeometryError, LobeParameters, OpticLobe
from utils.simulation.labels import ColumnFields, paint_cones, paint_fields
from utils.simulation.microscope import MicroscopeConfig, draw_microscope, take_picture
from utils.simulation.sheet import (
    DEPTHS,
    Columns,
    ColumnTable,
    SheetConfig,
    by_axis,
    draw_columns,
    draw_left_out,
    nearest_distances,
)
from utils.simulation.stain import StainConfig, draw_stain, paint_stain, visibility
from utils.simulation.streams import Purpose, draw_key, make_rng

LOOKS = 4  # stains and microscopes that are tried on a geometry before another one is drawn


@dataclass(frozen=True)
class VolumeConfig(PlainConfig):
    """All that governs a random volume; ranges are (low, high) of uniform draws.

    Defaults are those of the reference generator.
    """

    shape: Shape = limited((128, 128, 128), 2, is_range=False)
    """Voxels along x, y, z; they always sample the same unit cube."""
    lattice_intervals: tuple[int, int] = limited((8, 15), 1)
    """n, inclusive; an icosahedron edge has n + 1 intervals: more intervals, finer columns."""
    axis_scales: Range = limited((0.7, 1.5), 1e-3)  # Half axes of the ellipsoid, cube edges
    min_columns: int = limited(100, 2)
    """A geometry is drawn again until at least this many entry points lie inside the cube."""
    max_tries: int = limited(2000, 1)  # Number of geometries drawn before giving up
    cone_length: float = limited(2.25, 1e-3)  # Length of a column, in spacings
    cone_radius: float = limited(0.35, 1e-3)  # Radius of a column at its entry point, in spacings
    simplify_factor: float = limited(1.25, 1e-3)  # Divides the widths of all clouds (ratio)
    baseline_intensity: float = limited(50.0, 1e-3)  # Of clouds and neurites, arbitrary units
    v_std: float = limited(1.0, 0.0)  # Sd of a point's intensity about its cloud's, those units
    std_intensity_range: Range = limited((0.3, 1.2), 0.0)
    """Sigma of the lognormal cloud intensity, one draw per volume, nepers."""
    cube_kernel_size: int = limited(2, 1)  # Edge of the box point spread, in voxels
    background_sigma: float = limited(10.0, 0.0)  # Sigma of the background's blur, in voxels
    background_range: Range = limited((0.0005, 0.0025), 0.0)  # Weight of the background (ratio)
    gain_range: tuple[int, int] = limited((10, 29), 1, 15_000)
    """Photons per unit of image, integer, inclusive, one draw per volume; counts are 16-bit."""
    contrast_range: Range = limited((0.7, 1.0), 1e-3)
    """Factor on the deviation of the log intensity from its mean (ratio), one draw per volume."""


@dataclass(frozen=True)
class LobeConfig(PlainConfig):
    """Columns of preset reference, straight, in some volumes of preset wide."""

    share: float = limited(0.0, 0.0, 1.0)  # Share of the volumes in which they replace a sheet's
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


Config = VolumeConfig | WideConfig


PRESETS: Mapping[str, type[Config]] = {"reference": VolumeConfig, "wide": WideConfig}
"""What ``--preset`` takes, and the configuration whose defaults it is."""


@dataclass(frozen=True)
class VolumeParameters(LobeParameters):
    """The parameters drawn for one volume: scalars (int or float) and tuples of three floats."""

    cone_length: float  # length of a cone along e_r, to be multiplied by the norm of e_r
    cone_radius: float
    """Radius of a cone at its entry point, to be multiplied by the norms of e_theta and e_phi."""
    cone_taper: float  # radius at the cone's outer end divided by the radius at the entry point
    std_intensity: float
    background_weight: float
    gain: int
    contrast: float

    def spacing_voxels(self, shape: Shape) -> list[float]:
        """Return the spacing along x, y, z in voxels, which fill the unit cube."""
        return [self.spacing * edge for edge in shape]


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


@dataclass(frozen=True)
class SimulatedVolume:
    """One sample: image, exact labels, the geometry behind them, and the parameters drawn.

    N is the number of columns; row k of every per-column array belongs to instance id k + 1.
    """

    image: np.ndarray  # (X, Y, Z) float32, raw intensities >= 0
    instances: np.ndarray
    """(X, Y, Z) uint16: 0 background, k + 1 inside the cone of column k; left-out columns too."""
    entry_points: np.ndarray  # (N, 3) float32, unit cube coordinates (may lie outside the cube)
    e_r: np.ndarray  # (N, 3) float32, column axis, outward; neither unit nor orthogonal
    e_theta: np.ndarray  # (N, 3) float32
    e_phi: np.ndarray  # (N, 3) float32
    column_type: np.ndarray  # (N,) uint8: 0 left out, 1 A (dense), 2 B (clumped), 3 C (ring)
    control_points: np.ndarray  # (4, N, 3) float32: the neurites' Bezier control points
    lattice_coordinates: np.ndarray  # (N, 3) int32: icosahedron face 0..19, then grid (i, j) on it
    lattice_neighbours: np.ndarray  # (E, 2) int32: adjacent columns (k, l), k < l
    parameters: VolumeParameters | WideParameters

    @property
    def mask(self) -> np.ndarray:
        """(X, Y, Z) uint8: 1 inside any column."""
        return (self.instances > 0).astype(np.uint8)

    @property
    def sheet(self) -> np.ndarray:
        """(X, Y, Z) uint8: 1 in the whole sheet in which the columns stand.

        The union of cones of the columns' length and taper whose radius is the circumscribed
        circle's of a lattice cell, spacing / sqrt(3). As a segmentation it finds the sheet and no
        column; where the lattice is whole it scores IoU pi 0.35^2 / (sqrt(3) / 2) = 0.44: the
        baseline to beat. Painted anew at each call.
        """
        cell = self.parameters.spacing / np.sqrt(3.0)
        size = self.parameters.cone_length, cell, self.parameters.cone_taper
        frames = self.e_r, self.e_theta, self.e_phi
        cones = paint_cones(self.instances.shape, self.entry_points, frames, *size)
        return (cones > 0).astype(np.uint8)

    @property
    def points(self) -> np.ndarray:
        """(N, 3) float32: the columns' mid-points, half a cone length out from the entry points."""
        half = np.float32(0.5 * self.parameters.cone_length)
        return self.entry_points + half * self.e_r


@dataclass(frozen=True)
class WideVolume(SimulatedVolume):
    """A sample of preset wide: columns with bent paths of D points, of one unnamed type each.

    ``e_r`` is the chord from the proximal to the distal end, ``e_theta`` and ``e_phi`` are at right
    angles to it in the volume, as long as the spacing at the proximal end; ``column_type`` is 1
    where a column is stained, ``lattice_coordinates`` are (chart, p, q), and there are no neurites.
    """

    paths: np.ndarray
    """(N, D, 3) float32, voxels: the axes from proximal to distal; voxel i's centre is i + 0.5."""
    path_spacing: np.ndarray
    """(N, D) float32, voxels: distance to the nearest neighbour there; radius over it is fixed."""
    parameters: WideParameters

    @property
    def fields(self) -> ColumnFields:
        """Where each voxel stands among the columns, without neuropil; painted at each call."""
        columns = self.paths, self.path_spacing, self.lattice_neighbours
        return paint_fields(*columns, self.instances.shape, np.zeros((0, 4, 3)))

    @property
    def sheet(self) -> np.ndarray:
        """(X, Y, Z) uint8: 1 in the sheets in which columns stand, gaps included."""
        return (self.fields.owner > 0).astype(np.uint8)


def sample_rng(seed: int, index: int) -> Generator:
    """Return the generator of volume ``index`` of a seed, which is at least 0 and below 2^32."""
    return make_rng(Purpose.VOLUME, seed, index)


def simulate_volume(config: Config, rng: Generator) -> SimulatedVolume:
    """Simulate one volume of either preset; a :class:`WideVolume` of a :class:`WideConfig`.

    Equal generators, best made by :func:`sample_rng`, give equal volumes to the bit on any number
    of cores. Raises GeometryError if no geometry has ``min_columns`` columns within ``max_tries``,
    or no volume of preset wide shows its columns within ``max_redraws``, and UserError if more than
    a thousandth of the voxels would be too bright.
    """
    if isinstance(config, WideConfig):
        return _simulate_wide(config, rng)
    return _simulate_reference(config, rng)


def _simulate_wide(config: WideConfig, rng: Generator) -> WideVolume:
    """Draw columns, stain and microscope until the columns can be seen."""
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
            clouds = fluorescence.paint_path_clouds(*where, stain.cloud_sigma, rng)
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
    drawn = {
        "geometry": {**columns.parameters, "neuropil": columns.neuropil.tolist()},
        "stain": stain.to_dict(),
        "microscope": microscope.to_dict(),
    }
    parameters = WideParameters(
        spacing=spacing / float(np.mean(config.shape)),
        cone_length=1.0,
        cone_radius=config.sheet.radius,
        cone_taper=float(np.mean(columns.spacing[:, -1] / columns.spacing[:, 0])),
        visibility=seen,
        redraws=redraws,
        drawn=json.dumps(drawn),
    )
    proximal, distal = columns.paths[:, [0, -1]].astype(np.float64).swapaxes(0, 1)
    _, *across = geometry.spherical_frames(distal - proximal)
    shape = np.array(config.shape)
    e_theta, e_phi = (v * columns.spacing[:, :1] / shape for v in across)
    return WideVolume(
        image=image,
        instances=fields.instances(config.sheet.radius),
        entry_points=(proximal / shape).astype(np.float32),
        e_r=((distal - proximal) / shape).astype(np.float32),
        e_theta=e_theta.astype(np.float32),
        e_phi=e_phi.astype(np.float32),
        column_type=(~columns.left_out).astype(np.uint8),
        control_points=np.zeros((4, 0, 3), np.float32),
        lattice_coordinates=columns.lattice,
        lattice_neighbours=columns.neighbours,
        paths=columns.paths,
        path_spacing=columns.spacing,
        parameters=parameters,
    )


def _draw_columns(config: WideConfig, rng: Generator) -> Columns:
    if config.table is None and rng.random() < config.lobe.share:
        return _draw_lobe(config, rng)
    if config.table is not None and not len(config.table.p):
        raise UserError(f"the columns of {config.table.name} are missing: give --columns_table")
    return draw_columns(config.sheet, config.shape, rng, config.table)


def _draw_lobe(config: WideConfig, rng: Generator) -> Columns:
    """Return the reference's columns as straight paths."""
    ranges = config.lobe.lattice_intervals, config.lobe.axis_scales
    lobe = geometry.draw_optic_lobe(rng, *ranges, config.sheet.min_columns, config.sheet.max_tries)
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


def _simulate_reference(config: VolumeConfig, rng: Generator) -> SimulatedVolume:
    """Draw the geometry, render the labels, the fluorescence, the image."""
    ranges = config.lattice_intervals, config.axis_scales
    lobe = geometry.draw_optic_lobe(rng, *ranges, config.min_columns, config.max_tries)
    parameters = _draw_parameters(config, lobe, rng)
    control_points = geometry.draw_control_points(rng, lobe)
    column_type = fluorescence.draw_column_types(rng, len(lobe.entry_points))
    frames = lobe.e_r, lobe.e_theta, lobe.e_phi
    size = parameters.cone_length, parameters.cone_radius, parameters.cone_taper
    instances = paint_cones(config.shape, lobe.entry_points, frames, *size)
    canvas = np.zeros(config.shape, dtype=np.float32)
    brightness = config.baseline_intensity, parameters.std_intensity
    widths = parameters.spacing, config.simplify_factor
    clouds = fluorescence.draw_clouds(rng, column_type, *widths, *brightness)
    middles = lobe.entry_points + np.float32(0.5 * parameters.cone_length) * lobe.e_r
    fluorescence.paint_clouds(canvas, clouds, middles, frames, config.v_std, draw_key(rng))
    neurites = fluorescence.draw_neurite_intensities(rng, len(column_type), *brightness)
    jitter = fluorescence.NEURITE_JITTER * parameters.spacing
    fluorescence.paint_neurites(canvas, control_points, neurites, jitter, draw_key(rng))
    return SimulatedVolume(
        image=_take_image(config, parameters, canvas, rng),
        instances=instances,
        column_type=column_type,
        control_points=control_points,
        parameters=parameters,
        **{name: value for name, value in vars(lobe).items() if isinstance(value, np.ndarray)},
    )


def _draw_parameters(config: VolumeConfig, lobe: OpticLobe, rng: Generator) -> VolumeParameters:
    """Draw the imaging parameters and derive the cones' size from the lattice."""
    length = config.cone_length * lobe.spacing
    ends = lobe.entry_points + np.float32(length) * lobe.e_r
    drawn = {field.name: getattr(lobe, field.name) for field in fields(LobeParameters)}
    return VolumeParameters(
        **drawn,
        cone_length=length,
        cone_radius=config.cone_radius * lobe.spacing,
        cone_taper=geometry.mean_nearest_distance(ends) / lobe.spacing,
        std_intensity=float(rng.uniform(*config.std_intensity_range)),
        background_weight=float(rng.uniform(*config.background_range)),
        gain=int(rng.integers(config.gain_range[0], config.gain_range[1] + 1)),
        contrast=float(rng.uniform(*config.contrast_range)),
    )


def _take_image(
    config: VolumeConfig, parameters: VolumeParameters, canvas: np.ndarray, rng: Generator
) -> np.ndarray:
    """Return the microscope's image (X, Y, Z) float32 of the canvas."""
    across, box = imaging.box_sum(canvas, config.cube_kernel_size)
    light = imaging.background(across, config.background_sigma)
    del across  # here and below: the next arrays take its memory, which spares page faults
    image = imaging.compose(box, light, parameters.background_weight)
    del box, light
    most = imaging.MOST_PHOTONS / parameters.gain
    imaging.check_cut_off(image, most, "the gain, the background or baseline_intensity")
    counts = imaging.shot_noise(image, parameters.gain, draw_key(rng))
    sd = imaging.read_noise_sd(counts)
    taken = imaging.read_noise_and_contrast(counts, sd, parameters.contrast, draw_key(rng))
    imaging.check_cut_off(taken, imaging.MOST_STORED, "the gain or the contrast")
    return taken


def preset(name: str, **fields: Any) -> Config:
    """Return the configuration of a preset, ``fields`` changed; UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name](**fields)


def preset_of(config: Config) -> str:
    """Return the name of a configuration's preset."""
    return next(name for name, kind in PRESETS.items() if isinstance(config, kind))


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Return the configuration that ``to_dict`` of either preset has made plain."""
    return (WideConfig if "sheet" in values else VolumeConfig).from_dict(values)


def compile_kernels(*configs: Config) -> list[SimulatedVolume]:
    """Compile, or load, what volumes of the configurations' presets need: before a fork, once.

    Return small volumes, by which what comes after them can be compiled too.
    """
    shape = (32, 32, 32)
    reference = VolumeConfig(shape, lattice_intervals=(4, 5), min_columns=5)
    sheet, stain = SheetConfig(min_columns=2), StainConfig(clouds_probability=0.2)
    wide = WideConfig(shape, min_visibility=0.0, sheet=sheet, stain=stain)
    # as many volumes as it takes to call each kernel
    tiny: dict[type[Config], list[Config]] = {VolumeConfig: [reference], WideConfig: [wide] * 12}
    kinds = dict.fromkeys(map(type, configs))
    return [simulate_volume(c, sample_rng(0, i)) for k in kinds for i, c in enumerate(tiny[k])]


@dataclass(frozen=True)
class Mixture:
    """Configurations of volumes of one shape, and the share of the volumes that each makes.

    Raises UserError for shares that do not add up to 1, and shapes that differ.
    """

    parts: tuple[tuple[Config, float], ...]

    def __post_init__(self) -> None:
        shares = [share for _, share in self.parts]
        if not all(share > 0 for share in shares) or not np.isclose(sum(shares), 1.0):
            raise UserError(f"shares {shares}: must be above 0 and add up to 1")
        if len({config.shape for config, _ in self.parts}) != 1:
            raise UserError(f"shapes {[config.shape for config, _ in self.parts]}: must be equal")

    @property
    def configs(self) -> list[Config]:
        """The configurations."""
        return [config for config, _ in self.parts]

    def choose(self, seed: int, epoch: int, index: int) -> Config:
        """Return the configuration of a volume, drawn with the shares from its place alone."""
        if len(self.parts) == 1:
            return self.parts[0][0]
        draw = make_rng(Purpose.PRESET, seed, epoch, index).random()
        bounds = np.cumsum([share for _, share in self.parts])[:-1]
        return self.parts[int(np.searchsorted(bounds, draw, side="right"))][0]

    def to_dict(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return plain JSON types: the one configuration, or preset, share and fields of each."""
        if len(self.parts) == 1:
            return self.parts[0][0].to_dict()
        return [
            {"preset": preset_of(config), "share": share, **config.to_dict()}
            for config, share in self.parts
        ]
