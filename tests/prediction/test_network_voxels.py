import numpy as np
import pytest
from scipy import ndimage

from utils.prediction.network_voxels import CALIBRATION, estimate_spacing
from utils.stacks import open_stack


def hexagonal_lattice(spacing, edge, tilt):
    """Return the lattice points within a square, (N, 2), turned by ``tilt`` radians."""
    steps = np.stack(np.meshgrid(*[np.arange(-edge, edge)] * 2), axis=-1).reshape(-1, 2)
    points = spacing * steps @ np.array([[1, 0], [0.5, np.sqrt(0.75)]])
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    points = points @ turn + edge / 2
    return points[np.all((points >= 0) & (points < edge - 0.5), axis=1)]


def columns(spacing, *, depth=64, edge=96, seed=0):
    """Return noisy columns along z in the middle third of a volume (X, Y, Z)."""
    image = np.zeros((edge, edge, depth), np.float32)
    x, y = np.round(hexagonal_lattice(spacing, edge, 0.3)).astype(int).T
    image[x, y, depth // 3 : 2 * depth // 3] = 200
    image = ndimage.gaussian_filter(image, 0.2 * spacing)
    image *= 20 / image.max()
    return np.random.default_rng(seed).poisson(image + 1).astype(np.float32)


@pytest.fixture
def estimate(tmp_path):
    def run(image, voxel_size=None):
        np.save(tmp_path / "a.npy", image.T)
        with open_stack(tmp_path / "a.npy", voxel_size=voxel_size) as stack:
            return estimate_spacing(stack)

    return run


@pytest.mark.parametrize("spacing", [6.0, 8.0, 11.0, 14.0])
def test_spacing_of_a_lattice(estimate, spacing):
    found = estimate(columns(spacing))
    assert found.sure
    assert found.spacing * CALIBRATION == pytest.approx(spacing, rel=0.12)
    assert found.low <= found.spacing <= found.high
    assert f"{found.spacing:.1f} voxels" in found.describe()


def test_spacing_of_an_image(estimate):
    found = estimate(columns(9.0)[..., 32])
    assert found.sure
    assert found.spacing * CALIBRATION == pytest.approx(9.0, rel=0.12)


def test_flat_voxels_count_by_their_finest_edge(estimate):
    image = columns(9.0)[..., ::3]
    assert estimate(image, (1.5, 0.5, 0.5)).spacing * CALIBRATION == pytest.approx(9.0, rel=0.12)


@pytest.mark.parametrize("blur", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_has_no_spacing(estimate, blur, seed):
    noise = np.random.default_rng(seed).normal(size=(96, 96, 64))
    image = ndimage.gaussian_filter(noise, blur) if blur else noise
    assert not estimate(image.astype(np.float32) * 30 + 5).sure


def test_where_there_is_nothing_to_see(estimate):
    assert estimate(np.full((40, 40, 40), 3, np.uint8)) is None
    assert estimate(np.zeros((40, 40, 40), np.uint8)) is None
    found = estimate(np.random.default_rng(0).random((6, 6, 6)))
    assert found is None or not found.sure


@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
def test_what_lies_outside_of_the_view_is_not_looked_at(estimate, outside):
    image = columns(9.0)
    whole = estimate(image)
    image[:3] = outside
    found = estimate(image)
    assert found.sure and found.spacing == pytest.approx(whole.spacing, rel=0.05)


def test_a_ring_at_the_limit_of_sampling_is_not_sure(estimate):
    image = ndimage.zoom(columns(9.0, edge=64, depth=48), 2, order=1)
    found = estimate(image)
    assert not found.sure or found.spacing * CALIBRATION == pytest.approx(18, rel=0.15)
