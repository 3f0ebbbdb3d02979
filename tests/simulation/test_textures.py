import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import RegularGridInterpolator

from utils.simulation.textures import cell_noise, paint_balls, upsampled, value_noise

SHAPE = (13, 17, 21)


def test_upsampling_is_trilinear():
    grid = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    nodes = [np.arange(n) * 3.3 for n in grid.shape]
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    expected = RegularGridInterpolator(nodes, grid)(voxels)
    assert_allclose(upsampled(grid, 3.3, SHAPE, smooth=False), expected, atol=1e-6)


@pytest.mark.parametrize("smooth", [True, False])
def test_upsampling_keeps_nodes_and_goes_on_beyond_the_last(smooth):
    grid = np.random.default_rng(0).random((3, 3, 3), dtype=np.float32)
    out = upsampled(grid, 4.0, (12, 12, 12), smooth=smooth)
    assert_array_equal(out[::4, ::4, ::4], grid)
    assert_array_equal(out[9:], np.broadcast_to(out[8], out[9:].shape))


def test_value_noise_has_its_size_and_its_seed():
    noise = value_noise((64, 64, 64), 8.0, np.random.default_rng(1))
    assert abs(noise.mean()) < 0.1 and noise[::8, ::8, ::8].std() == pytest.approx(1.0, abs=0.1)
    assert np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(noise[:-16].ravel(), noise[16:].ravel())[0, 1]) < 0.1
    assert_array_equal(noise, value_noise((64, 64, 64), 8.0, np.random.default_rng(1)))


def nearest_points(shape, period, seed):
    """Distances to the nearest point, in cells, and its number: all points against all nodes."""
    rng = np.random.default_rng(seed)
    cells = [int(n / period) + 4 for n in shape]
    points = rng.random((*cells, 3), dtype=np.float32) * np.float32(0.9)
    numbers = rng.standard_normal(cells, dtype=np.float32).ravel()
    points = (points + np.moveaxis(np.indices(cells), 0, -1) - 1).reshape(-1, 3)
    step = period / 4
    nodes = np.stack(
        np.meshgrid(*(np.arange(int((n - 1) / step) + 2) for n in shape), indexing="ij"), axis=-1
    )
    distance = np.sqrt(((nodes[..., None, :] * (step / period) - points) ** 2).sum(axis=-1))
    return distance.min(axis=-1), numbers[distance.argmin(axis=-1)], step


@pytest.mark.parametrize("kind", ["worley", "voronoi"])
def test_cells_are_those_of_the_nearest_point(kind):
    distance, number, step = nearest_points((20, 24, 17), 12.0, 3)
    nodes = distance if kind == "worley" else number
    nodes = ((nodes - nodes.mean()) / nodes.std()).astype(np.float32)
    expected = upsampled(nodes, step, (20, 24, 17), smooth=False)
    noise = cell_noise((20, 24, 17), 12.0, kind, np.random.default_rng(3))
    assert_allclose(noise, expected, atol=1e-4)


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
