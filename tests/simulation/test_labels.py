"""Cones, disks and the fields about paths, beside plain twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from utils.errors import UserError
from utils.simulation import VolumeConfig, sample_rng, simulate_volume
from utils.simulation.labels import (
    INNER_REACH,
    NOWHERE,
    REACH,
    cone_volume,
    frame_inverses,
    paint_cones,
    paint_fields,
)
from utils.simulation.sheet import Columns, lattice_neighbours


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


NO_NEUROPIL = np.zeros((0, 4, 3), np.float32)


def columns_of(paths, spacing, sites=None, neuropil=NO_NEUROPIL):
    """Columns of given paths (N, D, 3); without ``sites`` none is another's neighbour."""
    n, depths, _ = paths.shape
    if sites is None:
        sites = np.stack([np.zeros(n), 10.0 * np.arange(n), np.zeros(n)], axis=1)
    return Columns(
        paths=paths.astype(np.float32),
        spacing=np.broadcast_to(spacing, (n, depths)).astype(np.float32),
        lattice=sites.astype(np.int32),
        neighbours=lattice_neighbours(sites.astype(np.int32)),
        left_out=np.zeros(n, dtype=bool),
        parameters={},
        neuropil=neuropil,
    )


def fields_of(columns, shape):
    parts = columns.paths, columns.spacing, columns.neighbours
    return paint_fields(*parts, shape, columns.neuropil)


def upright_square(spacing, n, shape, low, high, depths=3):
    """n x n columns along z from ``low`` to ``high``, ``spacing`` voxels apart, mid volume."""
    p, q = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    x, y = (spacing * (a - (n - 1) / 2) + size / 2 for a, size in zip((p, q), shape, strict=False))
    z = np.linspace(low, high, depths)
    paths = np.stack([np.stack([x, y, np.full(n * n, t)], axis=1) for t in z], axis=1)
    return columns_of(paths, spacing, np.stack([0 * p, p, q], axis=1))


def plain_fields(columns, shape, reach):
    """The slow obvious twin: every voxel against every segment, in double precision."""
    grid = np.meshgrid(*(np.arange(s) + 0.5 for s in shape), indexing="ij")
    centres = np.stack(grid, axis=-1)
    best = np.full(shape, np.inf)
    owner, distance, depth = np.zeros(shape, int), np.full(shape, NOWHERE), np.zeros(shape)
    paths, spacing = columns.paths.astype(float), columns.spacing.astype(float)
    last = paths.shape[1] - 2
    for n, path in enumerate(paths):
        for s in range(last + 1):
            step = path[s + 1] - path[s]
            free = (centres - path[s]) @ step / (step @ step)
            a = np.clip(free, 0.0, 1.0)
            d = np.linalg.norm(centres - path[s] - a[..., None] * step, axis=-1)
            near = (d <= reach[n, s : s + 2].max()) & (d < best)
            near &= ((s > 0) | (free >= 0)) & ((s < last) | (free <= 1))
            best[near], owner[near] = d[near], n + 1
            distance[near] = (d / (spacing[n, s] * (1 - a) + spacing[n, s + 1] * a))[near]
            depth[near] = ((s + a) / (last + 1))[near]
    return owner, distance, depth


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.0, 0.4))
def test_kernels_match_the_plain_twin(seed, depths, bend):
    rng, shape = np.random.default_rng(seed), (20, 17, 23)
    starts = rng.uniform(0, 20, size=(5, 1, 3))
    steps = rng.normal(size=(5, 1, 3))
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    steps = steps + bend * rng.uniform(-1, 1, size=(5, depths - 1, 3))
    # longer than the reach: the twin's balls about inner nodes stay within the path's ends
    steps *= 5 / np.linalg.norm(steps, axis=2, keepdims=True)
    paths = np.concatenate([starts, starts + np.cumsum(steps, axis=1)], axis=1)
    # one spacing a path: beyond a node the kernel keeps to the reach of the segment there
    spacing = np.repeat(rng.uniform(3, 6, size=(5, 1)), depths, axis=1)
    columns = columns_of(paths, spacing)
    fields = fields_of(columns, shape)
    owner, distance, depth = plain_fields(columns, shape, REACH * columns.spacing)
    same = fields.owner == owner
    assert same.mean() > 0.998  # centres within rounding of an end, a reach or two paths' middle
    assert_allclose(fields.distance[same], distance[same], atol=2e-3)
    at_depth = np.abs(fields.depth - depth)[same]
    assert np.quantile(at_depth, 0.995) < 1e-3  # a node that two segments share is either's


def test_labels_of_straight_columns_have_the_volume_of_cylinders():
    shape, spacing = (64, 64, 40), 16.0
    fields = fields_of(upright_square(spacing, 4, shape, 4.0, 36.0), shape)
    counts = np.bincount(fields.instances(0.35).ravel(), minlength=17)[1:]
    assert_allclose(counts, np.pi * (0.35 * spacing) ** 2 * 32, rtol=0.03)  # 96 of 98.5 a plane


def test_distance_and_depth_of_single_voxels():
    shape = (32, 32, 32)
    fields = fields_of(upright_square(8.0, 3, shape, 4.0, 28.0), shape)
    assert fields.owner[16, 16, 10] == 5  # the middle one of nine, beside its axis
    assert_allclose(fields.distance[16, 16, 10], np.hypot(0.5, 0.5) / 8, rtol=1e-5)
    assert_allclose(fields.depth[16, 16, 10], (10.5 - 4) / 24, rtol=1e-5)
    assert fields.owner[16, 16, 3] == 0 and fields.owner[16, 16, 28] == 0  # beyond both ends
    assert fields.owner[16, 16, 4] == 5 and fields.owner[16, 16, 27] == 5
    nowhere = fields.owner == 0
    assert (fields.distance[nowhere] == NOWHERE).all() and (fields.depth[nowhere] == 0).all()


def test_a_sheet_has_no_holes_inside_and_ends_at_its_border():
    shape, spacing = (96, 96, 12), 12.0
    columns = upright_square(spacing, 5, shape, 0.0, 12.0)
    owned = fields_of(columns, shape).owner[:, :, 6] > 0
    low, high = 24, 72  # the outer columns' axes
    assert owned[low:high, low:high].all()
    rows = np.flatnonzero(owned[48])
    mean_step = spacing * (3 + np.sqrt(2)) / 4  # of a border column: three sides, one diagonal
    assert abs((low - rows[0]) - REACH * mean_step) < 1.5
    assert REACH < INNER_REACH


def test_radius_follows_the_spacing_along_the_path():
    z = np.linspace(0, 64, 5)
    path = np.stack([np.full(5, 32.0), np.full(5, 32.0), z], axis=1)[None]
    fields = fields_of(columns_of(path, np.linspace(20, 40, 5)), (64, 64, 64))
    areas = (fields.instances(0.35) > 0).sum(axis=(0, 1))
    radii = 0.35 * (20 + 20 * (np.arange(64) + 0.5) / 64)
    assert_allclose(areas, np.pi * radii**2, rtol=0.06)


def test_a_neuropil_is_an_ellipsoid_without_the_columns():
    shape, axes = (48, 48, 48), np.diag([8.0, 12.0, 18.0])
    neuropil = np.concatenate([[[24.0, 24.0, 24.0]], axes])[None].astype(np.float32)
    far = np.array([[[-90.0, 0, 0], [-80.0, 0, 0]]])
    fields = fields_of(columns_of(far, 8.0, neuropil=neuropil), shape)
    assert_allclose(fields.neighbour.sum(), 4 / 3 * np.pi * 8 * 12 * 18, rtol=0.01)
    through = np.array([[[24.0, 24, 0], [24.0, 24, 48]]])
    fields = fields_of(columns_of(through, 8.0, neuropil=neuropil), shape)
    assert fields.neighbour[24, 24, 24] == 0 and fields.neighbour[24, 32, 24] == 1
    assert not (fields.neighbour.astype(bool) & (fields.owner > 0)).any()
    assert not fields_of(columns_of(through, 8.0), shape).neighbour.any()


def test_without_columns_nothing_is_owned():
    fields = fields_of(columns_of(np.zeros((0, 9, 3)), 1.0, np.zeros((0, 3))), (4, 5, 6))
    assert_array_equal(fields.owner, np.zeros((4, 5, 6)))


def test_more_columns_than_ids_are_refused():
    many = 1 << 16
    columns = columns_of(np.zeros((many, 2, 3)), 1.0, np.stack([np.arange(many)] * 3, axis=1))
    with pytest.raises(UserError, match="65536 columns do not fit"):
        fields_of(columns, (2, 2, 2))
