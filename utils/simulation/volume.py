"""A simulated 3D fluorescence volume of the optic lobe: configuration, record, and the stages in order.

Axis order is (x, y, z) everywhere. Lengths are in units of the cube's edge (1.0), intensities in the
units of ``baseline_intensity``, unless a name says voxels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

EMPTY, DENSE, CLUMPED, RING = 0, 1, 2, 3
"""Column types: left out of the rendering, A (dense), B (clumped) and C (ring)."""


@dataclass(frozen=True)
class VolumeConfig:
    """All that governs a random volume; ranges are (low, high) of uniform draws.

    Defaults are those of the reference generator. Raises ValueError, naming the field, for a value
    outside its range.
    """

    shape: tuple[int, int, int] = (128, 128, 128)
    """Voxels along x, y, z; they always sample the same unit cube."""
    lattice_intervals: tuple[int, int] = (8, 15)
    """Intervals per icosahedron edge, inclusive: more intervals, finer columns."""
    axis_scales: tuple[float, float] = (0.7, 1.5)
    """Scale of each ellipsoid axis."""
    min_columns: int = 100
    """A geometry is drawn again until at least this many entry points lie inside the cube."""
    max_tries: int = 2000
    """Geometries drawn before giving up."""
    cone_length: float = 2.25
    """Length of a column, in spacings."""
    cone_radius: float = 0.35
    """Radius of a column at its entry point, in spacings."""
    simplify_factor: float = 1.25
    """Divides the widths of all clouds."""
    baseline_intensity: float = 50.0
    """Intensity scale of clouds and neurites."""
    v_std: float = 1.0
    """Standard deviation of a point's intensity about its cloud's."""
    std_intensity_range: tuple[float, float] = (0.3, 1.2)
    """Range of the sigma of the lognormal cloud intensity, one draw per volume."""
    cube_kernel_size: int = 2
    """Edge of the box point spread, in voxels."""
    background_sigma: float = 10.0
    """Sigma of the background blur, in voxels (``--NF_size``)."""
    background_range: tuple[float, float] = (0.0005, 0.0025)
    """Weight of the background, one draw per volume."""
    gain_range: tuple[int, int] = (10, 29)
    """Photons per unit of image, integer, inclusive, one draw per volume."""
    contrast_range: tuple[float, float] = (0.7, 1.0)
    """Factor on the deviation of the log intensity from its mean, one draw per volume."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types (tuples as lists); ``from_dict`` is the inverse."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VolumeConfig:
        """Build a configuration from :meth:`to_dict`'s result."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class VolumeParameters:
    """The parameters drawn for one volume: scalars (int or float) and tuples of three floats."""

    lattice_intervals: int
    axis_scales: tuple[float, float, float]
    shift: tuple[float, float, float]
    angles: tuple[float, float, float]
    """Turns about z, y, x in radians, in this order."""
    centre: tuple[float, float, float]
    """Centre of the ellipsoid, where the neurites run to."""
    cutoff_point: tuple[float, float, float]
    cutoff_normal: tuple[float, float, float]
    tries: int
    """Geometries drawn until this one was accepted."""
    spacing: float
    """Mean nearest-neighbour distance of the entry points."""
    cone_length: float
    """Length of a cone along e_r, to be multiplied by the norm of e_r."""
    cone_radius: float
    """Radius of a cone at its entry point, to be multiplied by the norms of e_theta and e_phi."""
    cone_taper: float
    """Radius at the cone's outer end divided by the radius at the entry point."""
    std_intensity: float
    background_weight: float
    gain: int
    contrast: float


@dataclass(frozen=True)
class SimulatedVolume:
    """One sample: image, exact labels, the geometry behind them, and the parameters drawn.

    N is the number of columns; row k of every per-column array belongs to instance id k + 1.
    """

    image: np.ndarray
    """(X, Y, Z) float32, raw intensities >= 0."""
    instances: np.ndarray
    """(X, Y, Z) uint16: 0 background, k + 1 inside the cone of column k; left-out columns too."""
    entry_points: np.ndarray
    """(N, 3) float32, unit cube coordinates (may lie outside the cube)."""
    e_r: np.ndarray
    """(N, 3) float32, column axis, outward; neither unit nor orthogonal to the others."""
    e_theta: np.ndarray
    """(N, 3) float32."""
    e_phi: np.ndarray
    """(N, 3) float32."""
    column_type: np.ndarray
    """(N,) uint8: EMPTY, DENSE, CLUMPED or RING."""
    control_points: np.ndarray
    """(4, N, 3) float32: the neurites' Bezier control points."""
    lattice_coordinates: np.ndarray
    """(N, 3) int32: icosahedron face 0..19, then grid coordinates (i, j) on it."""
    lattice_neighbours: np.ndarray
    """(E, 2) int32: pairs (k, l), k < l, of columns adjacent on the lattice."""
    parameters: VolumeParameters

    @property
    def mask(self) -> np.ndarray:
        """(X, Y, Z) uint8: 1 inside any column."""
        return (self.instances > 0).astype(np.uint8)

    @property
    def points(self) -> np.ndarray:
        """(N, 3) float32: the columns' mid-points, half a cone length out from the entry points."""
        half = np.float32(0.5 * self.parameters.cone_length)
        return self.entry_points + half * self.e_r


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator of sample ``index`` of ``seed`` (both >= 0; 0 is a seed like any other)."""
    return np.random.default_rng((seed, index))
