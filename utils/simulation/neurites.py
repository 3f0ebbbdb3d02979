"""Neurites: one cubic Bezier curve per column, from its entry point to the ellipsoid's centre.

Control points are (4, N, 3) in unit cube coordinates; the curve parameter t runs over 0..1.
"""

import numpy as np

from utils.simulation.coordinates import spherical_frames
from utils.simulation.geometry import OpticLobe

BEND_INWARD = 0.2  # p1 lies up to this far inward of the entry point, in norms of e_r
BEND_SIDEWAYS = 0.1  # p1 lies up to this far aside, in norms of e_phi and of e_theta
SPLAY = 0.25  # share of the signed distance to the sorting plane kept at the centre
END_SD = 0.05  # standard deviation of the ends about the centre, per axis


def draw_control_points(rng: np.random.Generator, lobe: OpticLobe) -> np.ndarray:
    """Draw the control points (4, N, 3) float32 of all neurites.

    p0 is the entry point; p1 is p0 bent inward and aside; p2 is the foot of p0 on a plane through
    a random column that contains that column's radial direction; p3 lies at the centre, displaced
    along the plane's normal by a share of p0's signed distance to it, and at random.
    """
    p0 = lobe.entry_points.astype(np.float64)
    n = len(p0)
    inward = rng.uniform(0.0, BEND_INWARD, size=(n, 1))
    aside = rng.uniform(0.0, BEND_SIDEWAYS, size=(2, n, 1))
    p1 = p0 - inward * lobe.e_r + aside[0] * lobe.e_phi + aside[1] * lobe.e_theta
    column = rng.integers(n)
    _, e_theta, e_phi = spherical_frames(lobe.e_r[column].astype(np.float64)[None])
    angle = rng.uniform(0.0, 2.0 * np.pi)
    normal = np.cos(angle) * e_theta[0] + np.sin(angle) * e_phi[0]
    distance = np.sum((p0 - p0[column]) * normal, axis=1, keepdims=True)
    p2 = p0 - distance * normal
    p3 = np.array(lobe.centre) + SPLAY * distance * normal + rng.normal(0.0, END_SD, size=(n, 3))
    return np.stack([p0, p1, p2, p3]).astype(np.float32)


def evaluate_curves(control_points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Evaluate all curves at once: control points (4, N, 3), ``t`` (T,) in 0..1 -> (N, T, 3).

    Bernstein form: sum over k of binomial(3, k) t^k (1 - t)^(3 - k) p_k.
    """
    s = 1.0 - t
    weights = np.stack([s**3, 3 * t * s**2, 3 * t**2 * s, t**3])
    return np.einsum("kt,knd->ntd", weights, control_points)
