"""A simulated 3D fluorescence volume: configuration, record, and the stages in order.

Axis order is (x, y, z) everywhere. Lengths are in units of the cube's edge (1.0), intensities in
the units of ``baseline_intensity``, unless a name says voxels.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.random import Generator

from utils.simulation import fluorescence, geometry, imaging
from utils.simulation.configuration import PlainConfig, Range, Shape, limited
from utils.simulation.coordinates import spherical_frames
from utils.simulation.geometry import LobeParameters, OpticLobe
from utils.simulation.labels import paint_cones
from utils.simulation.neurites import draw_control_points
from utils.simulation.random_bits import draw_key
from utils.simulation.sheet_fields import ColumnFields, paint_fields
from utils.simulation.streams import Purpose, make_rng
from utils.simulation.wide import WideConfig, WideParameters, draw_wide


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
    baseline_intensity: float = limited(50.0, 1e-3)
    """Intensity of clouds and neurites, arbitrary units."""
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


def simulate_volume(config: VolumeConfig | WideConfig, rng: Generator) -> SimulatedVolume:
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
    """Draw columns, stain and microscope, and describe the columns as all volumes do."""
    image, instances, columns, parameters = draw_wide(config, rng)
    shape = np.array(config.shape)
    ends = columns.paths[:, [0, -1]].astype(np.float64)
    frame = spherical_frames(ends[:, 1] - ends[:, 0])[1:]
    e_theta, e_phi = (v * columns.spacing[:, :1] / shape for v in frame)
    return WideVolume(
        image=image,
        instances=instances,
        entry_points=(ends[:, 0] / shape).astype(np.float32),
        e_r=((ends[:, 1] - ends[:, 0]) / shape).astype(np.float32),
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


def _simulate_reference(config: VolumeConfig, rng: Generator) -> SimulatedVolume:
    """Draw the geometry, render the labels, the fluorescence, the image."""
    ranges = config.lattice_intervals, config.axis_scales
    lobe = geometry.draw_optic_lobe(rng, *ranges, config.min_columns, config.max_tries)
    parameters = _draw_parameters(config, lobe, rng)
    control_points = draw_control_points(rng, lobe)
    column_type = fluorescence.draw_column_types(rng, len(lobe.entry_points))
    frames = lobe.e_r, lobe.e_theta, lobe.e_phi
    size = parameters.cone_length, parameters.cone_radius, parameters.cone_taper
    instances = paint_cones(config.shape, lobe.entry_points, frames, *size)
    canvas = _render_fluorescence(config, parameters, lobe, control_points, column_type, rng)
    arrays = {name: value for name, value in vars(lobe).items() if isinstance(value, np.ndarray)}
    return SimulatedVolume(
        image=_take_image(config, parameters, canvas, rng),
        instances=instances,
        column_type=column_type,
        control_points=control_points,
        parameters=parameters,
        **arrays,
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


def _render_fluorescence(
    config: VolumeConfig,
    parameters: VolumeParameters,
    lobe: OpticLobe,
    control_points: np.ndarray,
    column_type: np.ndarray,
    rng: Generator,
) -> np.ndarray:
    """Return the canvas (X, Y, Z) float32 of clouds and neurites before the microscope."""
    canvas = np.zeros(config.shape, dtype=np.float32)
    intensities = {
        "baseline_intensity": config.baseline_intensity,
        "std_intensity": parameters.std_intensity,
    }
    widths = {"spacing": parameters.spacing, "simplify_factor": config.simplify_factor}
    clouds = fluorescence.draw_clouds(rng, column_type, **widths, **intensities)
    middles = lobe.entry_points + np.float32(0.5 * parameters.cone_length) * lobe.e_r
    frames = lobe.e_r, lobe.e_theta, lobe.e_phi
    key = draw_key(rng)
    fluorescence.paint_clouds(canvas, clouds, middles, frames, v_std=config.v_std, key=key)
    neurites = fluorescence.draw_neurite_intensities(rng, len(column_type), **intensities)
    jitter, key = fluorescence.NEURITE_JITTER * parameters.spacing, draw_key(rng)
    fluorescence.paint_neurites(canvas, control_points, neurites, jitter=jitter, key=key)
    return canvas


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
