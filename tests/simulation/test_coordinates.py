import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from utils.simulation.coordinates import (
    axis_rotation,
    rotate,
    rotation_to_z,
    spherical_frames,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_frames_are_orthonormal_and_right_handed(seed):
    directions = np.random.default_rng(seed).normal(size=(20, 3))
    e_r, e_theta, e_phi = spherical_frames(directions)
    frames = np.stack([e_r, e_theta, e_phi], axis=1)
    assert_allclose(
        np.einsum("nij,nkj->nik", frames, frames), np.eye(3)[None].repeat(20, 0), atol=1e-12
    )
    assert_allclose(np.cross(e_r, e_theta), e_phi, atol=1e-12)
    assert_allclose(e_r * np.linalg.norm(directions, axis=1, keepdims=True), directions)


def test_frames_point_along_growing_angles():
    e_r, e_theta, e_phi = spherical_frames(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    assert_allclose(e_theta[0], [0, 0, -1], atol=1e-15)  # theta grows away from +z
    assert_allclose(e_phi[0], [0, 1, 0], atol=1e-15)  # phi grows from x to y
    assert_allclose(e_r[1], [0, 0, 1])
    assert_allclose(e_theta[1], [1, 0, 0], atol=1e-15)


@given(seeds)
def test_rotation_to_z_is_a_rotation_to_z(seed):
    direction = np.random.default_rng(seed).normal(size=3)
    matrix = rotation_to_z(direction)
    assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-10)
    assert_allclose(np.linalg.det(matrix), 1.0)
    assert_allclose(matrix @ direction, [0, 0, np.linalg.norm(direction)], atol=1e-10)


@pytest.mark.parametrize("direction", [[0, 0, 1.0], [0, 0, -1.0], [1e-9, 0, -1.0]])
def test_rotation_to_z_at_the_poles(direction):
    assert_allclose(rotation_to_z(np.array(direction)) @ direction, [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("axis, turned", [(0, [0, 0, 1]), (1, [0, 1, 0]), (2, [-1, 0, 0])])
def test_axis_rotation_is_right_handed_and_in_radians(axis, turned):
    assert_allclose(axis_rotation(axis, np.pi / 2) @ [0, 1, 0], turned, atol=1e-15)


def test_rotate_applies_the_matrix_to_every_row():
    rng = np.random.default_rng(0)
    matrix, vectors = rng.normal(size=(3, 3)), rng.normal(size=(7, 3))
    assert_allclose(rotate(matrix, vectors), np.array([matrix @ v for v in vectors]))
