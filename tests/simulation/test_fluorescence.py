"""Clouds and neurites: the reference's numbers, where they lie, how bright, and for whom."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.simulation.test_streams import plain_splitmix64
from utils.simulation import VolumeConfig, WideConfig, sample_rng, simulate_volume
from utils.simulation import fluorescence as fl
from utils.simulation.fluorescence import (
    PIECE,
    POINT_SD,
    SIMPLIFY_FACTOR,
    _pieces,
    paint_path_clouds,
)
from utils.simulation.geometry import evaluate_curves
from utils.simulation.sheet import SheetConfig
from utils.simulation.stain import StainConfig
from utils.simulation.streams import NORMALS, draw_key

CLOUDS = {
    "spacing": 0.1,
    "simplify_factor": 1.25,
    "baseline_intensity": 50.0,
    "std_intensity": 0.5,
}


def upright(n):
    """Frames along the axes: (e_r, e_theta, e_phi) = (z, x, y) for n columns."""
    return tuple(np.tile(np.eye(3)[k], (n, 1)).astype(np.float32) for k in (2, 0, 1))


def plain_clouds(shape, clouds, mid_points, frames, v_std, key):
    """The slow obvious twin: all points one after the other, no culling."""
    canvas = np.zeros(shape, dtype=np.float32)
    e_r, e_theta, e_phi = frames
    for m in range(len(clouds.column)):
        basis = np.stack([e_theta, e_phi, e_r])[:, clouds.column[m]]
        centre = mid_points[clouds.column[m]] + clouds.offsets[m] @ basis
        sd = np.array([clouds.across[m], clouds.across[m], clouds.along[m]])
        first = m * fl.POINTS_PER_CLOUD
        words = [plain_splitmix64(int(key), first + n) for n in range(fl.POINTS_PER_CLOUD)]
        quarters = [(word >> s) & 0xFFFF for word in words for s in (0, 16, 32, 48)]
        for g in NORMALS[quarters].reshape(4, -1).T:
            voxel = np.floor((centre + (g[:3] * sd) @ basis) * np.array(shape)).astype(int)
            if np.all((voxel >= 0) & (voxel < shape)):
                canvas[tuple(voxel)] = clouds.intensity[m] + v_std * g[3]
    return canvas


@pytest.mark.parametrize("n", [11, 12, 100, 256])
def test_types_have_fixed_shares_in_random_places(n):
    rng = np.random.default_rng(0)
    first, second = fl.draw_column_types(rng, n), fl.draw_column_types(rng, n)
    counts = np.bincount(first, minlength=4)
    assert_allclose(counts, n * np.array([2, 3, 3, 3]) / 11, atol=1)
    assert_array_equal(counts, np.bincount(second, minlength=4))
    assert (first != second).any()


def test_clouds_per_column_and_their_order():
    types = np.array([0, 3, 1, 2, 1], dtype=np.uint8)
    clouds = fl.draw_clouds(np.random.default_rng(1), types, **CLOUDS)
    expected = np.repeat([2, 4, 3, 1], [100, 100, 60, 75])  # A, then B, then C; no empty column
    assert_array_equal(clouds.column, expected)


def test_cloud_statistics_follow_the_reference():
    types = np.repeat([1, 2, 3], 300).astype(np.uint8)
    clouds = fl.draw_clouds(np.random.default_rng(2), types, **CLOUDS)
    across, along = 0.12 * 0.1 / 1.25, 0.20 * 0.1 / 1.25
    kind = types[clouds.column]
    for k, levels in ((1, 2), (2, 3)):
        sd = clouds.offsets[kind == k].std(axis=0)
        assert_allclose(sd, np.sqrt(levels) * np.array([across, across, along]), rtol=0.05)
    ring = clouds.offsets[kind == 3]
    radius = np.hypot(ring[:, 0], ring[:, 1])
    assert radius.mean() == pytest.approx(0.03, rel=0.02)
    assert ring[:, 2].std() == pytest.approx(along, rel=0.02)
    assert_allclose(clouds.across[kind == 3], across / 2, rtol=1e-6)
    assert_allclose(clouds.across[kind != 3], across, rtol=1e-6)
    # N(sd, sd) floored at 0: 15.9 % zeros, mean sd (Phi(1) + phi(1))
    assert (clouds.along == 0).mean() == pytest.approx(0.1587, abs=0.01)
    assert clouds.along.mean() == pytest.approx(along * (0.8413 + 0.2420), rel=0.02)
    for k, sigma in ((1, 0.6), (2, 0.5), (3, 0.5)):
        logs = np.log(clouds.intensity[kind == k] / 50.0)
        assert logs.mean() == pytest.approx(1.0, abs=0.03)
        assert logs.std() == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("shape", [(16, 16, 16), (10, 14, 19)])
def test_cloud_kernel_matches_the_plain_twin(shape):
    """Columns inside, on the border and outside, so that culling is on trial."""
    rng = np.random.default_rng(4)
    types = np.array([1, 2, 3, 0, 2], dtype=np.uint8)
    mid = np.array([[0.5, 0.5, 0.5], [0.05, 0.5, 0.9], [0.9, 1.05, 0.5], [0.2] * 3, [1.6] * 3])
    mid = mid.astype(np.float32)
    frames = tuple((rng.normal(size=(5, 3)) / 1.7).astype(np.float32) for _ in range(3))
    clouds = fl.draw_clouds(rng, types, **CLOUDS | {"spacing": 0.3})
    key = draw_key(rng)
    canvas = np.zeros(shape, dtype=np.float32)
    fl.paint_clouds(canvas, clouds, mid, frames, v_std=1.0, key=key)
    twin = plain_clouds(shape, clouds, mid, frames, 1.0, key)
    assert ((canvas > 0) != (twin > 0)).mean() < 2e-3
    assert (np.abs(canvas - twin) > 1e-3).mean() < 1e-2  # points on a voxel's wall
    assert (canvas > 0).sum() > 50


def test_left_out_columns_have_no_cloud_of_their_own():
    types = np.array([0, 1], dtype=np.uint8)
    mid = np.array([[0.25, 0.5, 0.5], [0.75, 0.5, 0.5]], dtype=np.float32)
    clouds = fl.draw_clouds(np.random.default_rng(5), types, **CLOUDS)
    canvas = np.zeros((40, 40, 40), dtype=np.float32)
    fl.paint_clouds(canvas, clouds, mid, upright(2), v_std=1.0, key=np.uint64(3))
    assert canvas[20:].any() and not canvas[:18].any()


def test_neurite_intensities():
    intensity = fl.draw_neurite_intensities(
        np.random.default_rng(6), 20_000, baseline_intensity=50.0, std_intensity=0.7
    )
    assert (intensity == 0).mean() == pytest.approx(0.3, abs=1e-4)
    logs = np.log(intensity[intensity > 0] / 100.0)
    assert logs.mean() == pytest.approx(1.0, abs=0.03) and logs.std() == pytest.approx(
        0.7, abs=0.03
    )


def test_neurites_add_their_last_point_to_the_canvas():
    shape = (20, 20, 20)
    control = np.random.default_rng(7).uniform(0.1, 0.9, size=(4, 3, 3)).astype(np.float32)
    intensity = np.array([100.0, 0.0, 7.0], dtype=np.float32)
    canvas = np.full(shape, 5.0, dtype=np.float32)
    fl.paint_neurites(canvas, control, intensity, jitter=0.0, key=np.uint64(1))
    twin = np.full(shape, 5.0, dtype=np.float32)
    curves = evaluate_curves(control.astype(float), np.linspace(0, 1, fl.NEURITE_STEPS))
    for n in (0, 2):
        for point in curves[n]:
            twin[tuple(np.floor(point * 20).astype(int))] = 5.0 + intensity[n]
    assert (canvas != twin).sum() <= 2  # points on a voxel's wall
    assert set(np.unique(canvas)) == {5.0, 12.0, 105.0}


def test_neurite_points_scatter_with_the_jitter():
    control = np.full((4, 400, 3), 0.5, dtype=np.float32)
    canvas = np.zeros((64, 64, 64), dtype=np.float32)
    fl.paint_neurites(
        canvas, control, np.ones(400, dtype=np.float32), jitter=0.05, key=np.uint64(2)
    )
    lit = np.argwhere(canvas > 0) / 64
    assert_allclose(lit.mean(axis=0), 0.5, atol=0.02)
    assert np.abs(lit - 0.5).max() < 0.05 * 4.4 + 1 / 64


PATHS_SHAPE, SPACING, SIDE, DEPTHS = (60, 50, 72), 12.0, 4, 9
NONE_LEFT_OUT = np.zeros(SIDE**2, bool)


def bundle() -> tuple[np.ndarray, np.ndarray]:
    """16 columns along z, 54 voxels long, that bend along x by 6 voxels on the way."""
    t = np.linspace(0.0, 1.0, DEPTHS)
    x, y = (SPACING * (0.7 + axis.ravel()[:, None] + 0.0 * t) for axis in np.indices((SIDE, SIDE)))
    paths = np.stack([x + 6.0 * t**2, y, 9.0 + 54.0 * (t + 0.0 * x)], axis=2)
    return paths.astype(np.float32), np.full((SIDE**2, DEPTHS), SPACING, np.float32)


def paint(left_out: np.ndarray = NONE_LEFT_OUT, seed: int = 0, sigma: float = 0.5) -> np.ndarray:
    return paint_path_clouds(*bundle(), left_out, PATHS_SHAPE, sigma, np.random.default_rng(seed))


def test_the_numbers_are_the_references() -> None:
    config = VolumeConfig()
    assert PIECE == config.cone_length
    assert SIMPLIFY_FACTOR == config.simplify_factor
    assert POINT_SD == config.v_std / config.baseline_intensity
    assert StainConfig().cloud_sigma == config.std_intensity_range


def test_clouds_lie_along_the_bent_paths() -> None:
    light = paint()
    assert light.dtype == np.float32 and light.shape == PATHS_SHAPE and light.min() == 0.0
    assert light[light > 0].mean() == pytest.approx(1.0, rel=1e-4)
    x, y, z = np.indices(PATHS_SHAPE) + 0.5
    away = np.full(PATHS_SHAPE, np.inf)
    for path in bundle()[0]:
        to_x, to_y = x - np.interp(z, path[:, 2], path[:, 0]), y - path[0, 1]
        away = np.minimum(away, np.hypot(to_x, to_y) / SPACING)
    along = (z > 12) & (z < 60)
    core, gap = (light[along & near].mean() for near in (away < 0.25, (away > 0.5) & (away < 0.7)))
    assert core > 4 * gap
    places = np.argwhere(light > 0)
    lit = np.bincount(places[:, 2], minlength=PATHS_SHAPE[2])
    assert (lit[12:60] > 0).all() and lit[:3].sum() < 0.01 * lit.sum()


def test_left_out_columns_have_none_and_the_same_seed_gives_the_same() -> None:
    assert not paint(~NONE_LEFT_OUT).any()
    left_out = np.arange(SIDE**2) >= SIDE  # all but those of the first row along x
    assert not paint(left_out)[30:].any() and paint(left_out).any()
    assert_array_equal(paint(seed=3), paint(seed=3))
    assert not np.array_equal(paint(seed=3), paint(seed=4))


def test_pieces_are_as_long_as_the_references_columns() -> None:
    z = np.linspace(0.0, 90.0, DEPTHS)
    path = np.stack([0 * z, 0 * z, z], axis=1)[None]
    middles, steps, apart = _pieces(path, np.linspace(8.0, 12.0, DEPTHS)[None])
    assert len(middles) == round(90.0 / (PIECE * 10.0))
    assert_allclose(middles[:, 2], [11.25, 33.75, 56.25, 78.75])
    assert_allclose(apart, 8.0 + 4.0 * middles[:, 2] / 90.0)
    assert (steps[:, 2] > 0).all() and not steps[:, :2].any()
    assert len(_pieces(path[:, :2], np.full((1, 2), 100.0))[0]) == 1


def test_a_volume_of_preset_wide_can_have_them() -> None:
    stain = StainConfig(clouds_probability=1.0, rims_probability=0.0, rods_probability=0.0)
    sheet = SheetConfig(spacing=(6.0, 8.0), min_columns=4, left_out=(0.3, 0.3))
    config = WideConfig(shape=(40, 36, 32), sheet=sheet, stain=stain, min_visibility=0.3)
    volume = simulate_volume(config, sample_rng(0, 0))
    drawn = json.loads(volume.parameters.drawn)["stain"]
    assert drawn["kind"] == "clouds" and 0.3 <= drawn["cloud_sigma"] <= 1.2
    assert drawn["levels"][0] > drawn["levels"][2]  # never darker than the gaps
    assert_array_equal(volume.column_type > 0, np.array(drawn["brightness"]) > 0)
    owned = volume.column_type[volume.instances[volume.instances > 0] - 1] > 0
    values = volume.image[volume.instances > 0]
    assert values[owned].mean() > 1.1 * values[~owned].mean()
    never = replace(config, stain=replace(stain, clouds_probability=0.0))
    other = json.loads(simulate_volume(never, sample_rng(0, 0)).parameters.drawn)["stain"]
    assert other["kind"] == "filled" and other["cloud_sigma"] == 0.0
