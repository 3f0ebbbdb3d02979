import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from utils.simulation.voxels import inside, to_voxels, voxel_centres


def test_points_and_voxel_centres_agree_on_any_shape():
    shape = (4, 6, 9)
    grids = np.meshgrid(*(voxel_centres(shape, a) for a in range(3)), indexing="ij")
    centres = np.stack(grids, axis=-1)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    assert_array_equal(to_voxels(centres.reshape(-1, 3), shape), indices.reshape(-1, 3))
    assert_allclose(voxel_centres(shape, 0), [0.125, 0.375, 0.625, 0.875])


def test_inside_is_half_open():
    voxels = to_voxels(np.array([[0.0, 0.0], [0.999, 0.5], [1.0, 0.5], [-1e-9, 0.5]]), (10, 10))
    assert inside(voxels, (10, 10)).tolist() == [True, True, False, False]
