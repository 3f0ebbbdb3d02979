import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import RegularGridInterpolator

from utils.simulation.textures import Grid, add_grid, grid_of, noise_grid, paint_balls

SHAPE = (13, 17, 21)


def painted(grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    image = np.zeros(shape, dtype=np.float32)
    add_grid(image, grid)
    return image


def test_a_grid_is_trilinear_in_smooth_weights():
    nodes = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    at = [np.arange(n) / 3.3 for n in SHAPE]
    smooth = [np.floor(x) + (x % 1) ** 2 * (3 - 2 * (x % 1)) for x in at]
    voxels = np.stack(np.meshgrid(*smooth, indexing="ij"), axis=-1)
    expected = RegularGridInterpolator([np.arange(n) for n in nodes.shape], nodes)(voxels)
    image = np.ones(SHAPE, dtype=np.float32)
    add_grid(image, grid_of(nodes, 3.3, SHAPE))
    assert_allclose(image - 1, expected, atol=1e-6)


def test_a_grid_keeps_nodes_and_goes_on_beyond_the_last():
    nodes = np.random.default_rng(0).random((3, 3, 3), dtype=np.float32)
    out = painted(grid_of(nodes, 4.0, (12, 12, 12)), (12, 12, 12))
    assert_array_equal(out[::4, ::4, ::4], nodes)
    assert_array_equal(out[9:], np.broadcast_to(out[8], out[9:].shape))


def noise(seed: int) -> np.ndarray:
    return painted(noise_grid((64, 64, 64), 8.0, np.random.default_rng(seed)), (64, 64, 64))


def test_noise_has_its_size_and_its_seed():
    first = noise(1)
    assert abs(first.mean()) < 0.1 and first[::8, ::8, ::8].std() == pytest.approx(1.0, abs=0.1)
    assert np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(first[:-16].ravel(), first[16:].ravel())[0, 1]) < 0.1
    assert_array_equal(first, noise(1))
    assert abs(np.corrcoef(first.ravel(), noise(2).ravel())[0, 1]) < 0.1


def balls(image, owner, centre, radius, value, hollow=0.0, outside_only=False):
    arrays = (np.array(a, dtype=np.float32) for a in ([centre], [radius], [value]))
    paint_balls(image, owner, *arrays, np.float32(hollow), outside_only)


def test_a_ball_has_its_volume_its_hollow_and_leaves_columns_alone():
    owner = np.zeros((24, 24, 24), dtype=np.uint16)
    image = np.zeros(owner.shape, dtype=np.float32)
    balls(image, owner, (11.3, 12.0, 12.6), 7.0, 2.0)
    assert image.sum() / 2 == pytest.approx(4 / 3 * np.pi * 7**3, rel=0.02)
    balls(image, owner, (11.3, 12.0, 12.6), 7.0, 2.0, hollow=0.5)
    assert image[11, 12, 12] == 1.0 and image[11, 12, 18] == 2.0
    owner[:, :, 12:] = 1
    image[:] = 0.5
    balls(image, owner, (12.0, 12.0, 12.0), 30.0, 2.0, outside_only=True)
    assert (image[:, :, 12:] == 0.5).all() and (image[:, :, :12] == 2.0).all()
