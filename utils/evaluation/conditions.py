"""What made a simulated volume easy or hard: noise, spacing and curvature, from what is stored."""

import math

import numpy as np

from utils.simulation import SimulatedVolume
from utils.simulation.volume import WideParameters

CONDITIONS = ("gain", "std_intensity", "contrast", "spacing_voxels", "curvature")


def describe_conditions(volume: SimulatedVolume) -> dict[str, float]:
    """Return :data:`CONDITIONS` of one volume; of preset wide all but the spacing are NaN.

    ``gain`` is photons per unit of image, the fewer the noisier; ``std_intensity`` the sigma of the
    clouds' lognormal intensity, how unevenly columns are labelled; ``spacing_voxels`` the mean
    nearest-neighbour distance of the entry points, in voxels (mean of the axes); ``curvature`` that
    of :func:`sheet_curvature`.
    """
    parameters = volume.parameters
    known = {"spacing_voxels": parameters.spacing * float(np.mean(volume.image.shape))}
    if not isinstance(parameters, WideParameters):
        known |= {name: getattr(parameters, name) for name in CONDITIONS[:3]}
        known["curvature"] = sheet_curvature(volume)
    return {name: known.get(name, math.nan) for name in CONDITIONS}


def sheet_curvature(volume: SimulatedVolume) -> float:
    """Return the ellipsoid's mean curvature where the columns stand, in 1 / edge of the cube.

    Averaged over the entry points inside the cube (over all, if none is). A sphere has one over its
    radius everywhere, and its columns turn by spacing x curvature radians from one to the next. On
    p^T A p = 1 with g = A p, mean curvature is (|g|^2 tr A - g^T A g) / (2 |g|^3) (Goldman 2005,
    Curvature formulas for implicit curves and surfaces). A needs no angles: every column's frame is
    the sphere's orthonormal one scaled by the axes and turned, so that A^-1 is the frame's
    e_r e_r^T + e_theta e_theta^T + e_phi e_phi^T, and e_r runs from the ellipsoid's centre to p.
    """
    points = volume.entry_points
    inside = np.all((points >= 0) & (points <= 1), axis=1)
    chosen = inside if inside.any() else np.ones(len(points), bool)
    frames = np.stack([volume.e_r, volume.e_theta, volume.e_phi], axis=1).astype(np.float64)
    shape = np.linalg.inv(np.einsum("nki,nkj->ij", frames, frames) / len(frames))
    gradients = volume.e_r[chosen].astype(np.float64) @ shape
    square = np.sum(gradients**2, axis=1)
    bent = np.einsum("ni,ij,nj->n", gradients, shape, gradients)
    return float(np.mean((square * np.trace(shape) - bent) / (2 * square**1.5)))
