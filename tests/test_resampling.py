import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.resampling import LARGEST_FACTOR, Resampling, cube_factors, scaled_shape

LENGTHS = st.integers(1, 24)
SHAPES = st.tuples(LENGTHS, LENGTHS, LENGTHS)


def ramp(shape, slopes=(1.0, 2.0, 3.0)):
    """Return a field that is linear in the unit cube."""
    centres = [(np.arange(n) + 0.5) / n for n in shape]
    grid = np.meshgrid(*centres, indexing="ij")
    return sum(s * g for s, g in zip(slopes, grid, strict=False)).astype(np.float32)


def test_a_linear_field_stays_linear_away_from_the_border():
    resampling = Resampling.between((20, 16, 12), (30, 40, 12))
    got = resampling.apply(ramp((20, 16, 12)), 0, 0, 12)
    np.testing.assert_allclose(got[1:-1, 2:-2], ramp((30, 40, 12))[1:-1, 2:-2], atol=1e-5)


def test_larger_voxels_average_what_they_hold():
    checkers = np.indices((24, 24, 24)).sum(axis=0) % 2
    got = Resampling.between((24,) * 3, (8,) * 3).apply(checkers.astype(np.float32), 0, 0, 8)
    assert np.abs(got - 0.5).max() < 0.03


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(source=SHAPES, target=SHAPES, data=st.data())
def test_slabs_are_those_of_the_whole(source, target, data):
    volume = np.random.default_rng(0).random(source).astype(np.float32)
    resampling = Resampling.between(source, target)
    whole = resampling.apply(volume, 0, 0, target[-1])
    assert whole.shape == target and whole.dtype == np.float32
    assert volume.min() - 1e-6 <= whole.min() and whole.max() <= volume.max() + 1e-6
    start = data.draw(st.integers(0, target[-1] - 1))
    stop = data.draw(st.integers(start + 1, target[-1]))
    begin, end = resampling.needed(start, stop)
    part = resampling.apply(volume[..., begin:end], begin, start, stop)
    np.testing.assert_allclose(part, whole[..., start:stop], atol=1e-6)

    def slabs(z):
        while z < source[-1]:
            thickness = data.draw(st.integers(1, 6))
            yield z, volume[..., z : z + thickness]
            z += thickness

    streamed = list(resampling.stream(slabs(begin), start))
    assert streamed[0][0] == start
    np.testing.assert_allclose(
        np.concatenate([slab for _, slab in streamed], axis=-1), whole[..., start:], atol=1e-6
    )


def test_shapes():
    assert scaled_shape((10, 11, 3), (1.5, 1.0, 0.1)) == (15, 11, 1)
    volume = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    same = Resampling.between(volume.shape, volume.shape).apply(volume, 0, 0, 6)
    np.testing.assert_allclose(same, volume, atol=1e-7)


def test_voxels_become_cubes_of_the_finest_edge():
    assert cube_factors((0.5, 0.6, 2.0), 1.0) == pytest.approx((1, 1.2, 4))
    assert cube_factors((0.5, 0.25), 2.0) == pytest.approx((4, 2))
    assert cube_factors((0.1, 0.1, 10.0), 2.0)[2] == pytest.approx(LARGEST_FACTOR)
    with pytest.raises(UserError, match="voxels of 1e-05 x 1e-05 um .* none of a microscope"):
        cube_factors((1e-5, 1e-5), 1.0)
    with pytest.raises(
        UserError, match=r"20 x 0.1 x 0.1 um \(z x y x x\).* 201 times, 200 .*scale"
    ):
        cube_factors((0.1, 0.1, 20.0), 1.005)
    with pytest.raises(UserError, match=r"1 x 1000 um \(y x x\) .* 1000 times, 200 at most"):
        cube_factors((1000.0, 1.0), 1.0)


@pytest.mark.parametrize("axes", [2, 3])
def test_there_and_back(axes):
    shape = (16, 12, 10)[:axes]
    finer = tuple(2 * n for n in shape)
    volume = ramp(shape)
    fine = Resampling.between(shape, finer).apply(volume, 0, 0, finer[-1])
    again = Resampling.between(finer, shape).apply(fine, 0, 0, shape[-1])
    inner = (slice(1, -1),) * axes
    np.testing.assert_allclose(again[inner], volume[inner], atol=1e-5)
