import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from utils.simulation import VolumeConfig, sample_rng, simulate_volume
from utils.simulation.labels import cone_volume, frame_inverses, paint_cones


def plain_cones(shape, entry_points, frames, length, radius, taper):
    """The slow obvious twin: every voxel against every cone, in double precision."""
    places = [((np.arange(n) + 0.5) / n).astype(np.float32).astype(float) for n in shape]
    grids = np.meshgrid(*places, indexing="ij")
    centres = np.stack(grids, axis=-1)
    best = np.full(shape, np.inf)
    instances = np.zeros(shape, dtype=np.uint16)
    e_r, e_theta, e_phi = (f.astype(float) for f in frames)
    for n, entry in enumerate(entry_points.astype(float)):
        frame = np.stack([e_theta[n], e_phi[n], e_r[n]], axis=1)
        a, b, c = np.moveaxis((centres - entry) @ np.linalg.inv(frame).T, -1, 0)
        distance = np.sqrt(a**2 + b**2)
        limit = radius * (1 + (taper - 1) * c / length)
        owned = (c >= 0) & (c <= length) & (distance <= limit) & (distance < best)
        instances[owned] = n + 1
        best[owned] = distance[owned]
    return instances


def random_cones(seed, n=12):
    rng = np.random.default_rng(seed)
    frames = [rng.normal(size=(n, 3)) for _ in range(3)]
    frames = [(f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32) for f in frames]
    return rng.uniform(0, 1, size=(n, 3)).astype(np.float32), frames


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(8, 24), st.integers(8, 24), st.integers(8, 24)),
    st.floats(0.05, 0.2),
    st.floats(0.5, 1.5),
)
def test_kernel_matches_the_plain_twin(seed, shape, radius, taper):
    points, frames = random_cones(seed)
    size = {"length": 0.4, "radius": radius, "taper": taper}
    fast = paint_cones(shape, points, frames, **size)
    slow = plain_cones(shape, points, frames, **size)
    assert (fast != slow).mean() < 2e-3  # centres within rounding of a wall or between two axes


def test_volume_matches_the_formula():
    shape, radius, length, taper = (96, 96, 96), 0.15, 0.6, 0.7
    frame = np.array([[1.1, 0.1, 0.0], [0.0, 0.9, 0.2], [0.1, 0.0, 1.0]])
    e_theta, e_phi, e_r = frame.T[:, None, :].astype(np.float32)
    entry = np.array([[0.4, 0.45, 0.2]], dtype=np.float32)
    cone = paint_cones(
        shape, entry, (e_r, e_theta, e_phi), length=length, radius=radius, taper=taper
    )
    measured = (cone > 0).mean()
    assert measured == pytest.approx(cone_volume(radius, length, taper, frame), rel=0.01)
    straight = cone_volume(radius, length, 1.0, np.diag([1.2, 0.8, 1.5]))
    assert straight == pytest.approx(np.pi * radius**2 * length * 1.2 * 0.8 * 1.5)


def test_inverses_invert():
    _, (e_r, e_theta, e_phi) = random_cones(5)
    frames = np.stack([e_theta, e_phi, e_r], axis=2)
    products = frame_inverses(e_theta, e_phi, e_r) @ frames
    assert_allclose(products, np.eye(3)[None].repeat(12, 0), atol=1e-4)


def test_overlap_goes_to_the_nearer_axis():
    entry = np.array([[0.4, 0.5, 0.0], [0.6, 0.5, 0.0]], dtype=np.float32)
    e_theta, e_phi, e_r = (np.tile(v, (2, 1)).astype(np.float32) for v in np.eye(3))
    cones = paint_cones(
        (20, 20, 20), entry, (e_r, e_theta, e_phi), length=1.0, radius=0.3, taper=1.0
    )
    assert (cones[:10, 10] == 1).sum() > 0 and (cones[:10, 10] == 2).sum() == 0
    assert (cones[10:, 10] == 2).sum() > 0 and (cones[10:, 10] == 1).sum() == 0


def test_too_many_cones_are_refused():
    points = np.zeros((65536, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="65536 cones"):
        paint_cones((4, 4, 4), points, (points,) * 3, length=1.0, radius=0.1, taper=1.0)


@pytest.fixture(scope="module")
def volumes():
    return [simulate_volume(VolumeConfig(), sample_rng(3, i)) for i in range(4)]


def test_every_axis_lies_inside_its_own_mask(volumes):
    """Voxels on the axis carry the column's id, left-out columns' too, where no other is nearer."""
    for volume in volumes:
        shape = np.array(volume.instances.shape)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            on_axis = volume.entry_points + share * volume.parameters.cone_length * volume.e_r
            voxels = np.floor(on_axis * shape).astype(int)
            seen = np.flatnonzero(np.all((voxels >= 0) & (voxels < shape), axis=1))
            ids = volume.instances[tuple(voxels[seen].T)]
            assert (ids == seen + 1).all()


def test_sheet_holds_all_columns_and_scores_the_known_iou(volumes):
    scores = []
    for volume in volumes:
        sheet, mask = volume.sheet, volume.mask
        assert sheet.dtype == np.uint8
        assert_array_equal(sheet[mask == 1], 1)
        scores.append(mask.sum() / sheet.sum())
    assert 0.30 < min(scores) and max(scores) < 0.67
