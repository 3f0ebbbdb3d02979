"""Spherical frames and rotations for whole stacks of vectors: (N, 3) in, (N, 3) out, float64.

Angles are radians. theta is the polar angle from +z, phi the azimuth from +x towards +y.
"""

import numpy as np


def spherical_frames(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the orthonormal local frames (e_r, e_theta, e_phi), each (N, 3), of directions.

    ``directions`` (N, 3) float64 are from the origin, none of them zero. e_r x e_theta = e_phi; on
    the z axis phi is taken as 0.
    """
    e_r = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    phi = np.arctan2(e_r[:, 1], e_r[:, 0])
    cos_phi, sin_phi = np.cos(phi), np.sin(phi)
    cos_theta, sin_theta = e_r[:, 2], np.hypot(e_r[:, 0], e_r[:, 1])
    e_theta = np.stack([cos_theta * cos_phi, cos_theta * sin_phi, -sin_theta], axis=1)
    e_phi = np.stack([-sin_phi, cos_phi, np.zeros_like(phi)], axis=1)
    return e_r, e_theta, e_phi


def axis_rotation(axis: int, angle: float) -> np.ndarray:
    """Return the (3, 3) right-handed rotation by ``angle`` radians about axis 0, 1 or 2."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def rotation_to_z(direction: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation that turns ``direction`` (3,) to +z along the shortest arc.

    Rodrigues' formula, R = I + K + K^2 / (1 + cos), with K the cross-product matrix of
    direction x z; a direction of exactly -z is turned about x.
    """
    u = direction / np.linalg.norm(direction)
    if u[2] < -1.0 + 1e-12:
        return axis_rotation(0, np.pi)
    k = np.array([[0.0, 0.0, -u[0]], [0.0, 0.0, -u[1]], [u[0], u[1], 0.0]])
    return np.eye(3) + k + rotate(k, k.T).T / (1.0 + u[2])


def rotate(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) ``matrix`` to each row of ``vectors`` (N, 3).

    einsum and not ``@``: no BLAS, hence the same bits on any number of cores.
    """
    return np.einsum("ij,nj->ni", matrix, vectors)
