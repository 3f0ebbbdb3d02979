"""Clouds along paths: the reference's numbers, where they lie, how bright, and for whom."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from utils.simulation import VolumeConfig, WideConfig, sample_rng, simulate_volume
from utils.simulation.path_clouds import (
    PIECE,
    POINT_SD,
    SIMPLIFY_FACTOR,
    _pieces,
    paint_path_clouds,
)
from utils.simulation.sheet import SheetConfig
from utils.simulation.stain import StainConfig

SHAPE, SPACING, SIDE, DEPTHS = (60, 50, 72), 12.0, 4, 9
NONE_LEFT_OUT = np.zeros(SIDE**2, bool)


def bundle() -> tuple[np.ndarray, np.ndarray]:
    """16 columns along z, 54 voxels long, that bend along x by 6 voxels on the way."""
    t = np.linspace(0.0, 1.0, DEPTHS)
    x, y = (SPACING * (0.7 + axis.ravel()[:, None] + 0.0 * t) for axis in np.indices((SIDE, SIDE)))
    paths = np.stack([x + 6.0 * t**2, y, 9.0 + 54.0 * (t + 0.0 * x)], axis=2)
    return paths.astype(np.float32), np.full((SIDE**2, DEPTHS), SPACING, np.float32)


def paint(left_out: np.ndarray = NONE_LEFT_OUT, seed: int = 0, sigma: float = 0.5) -> np.ndarray:
    return paint_path_clouds(*bundle(), left_out, SHAPE, sigma, np.random.default_rng(seed))


def test_the_numbers_are_the_references() -> None:
    config = VolumeConfig()
    assert PIECE == config.cone_length
    assert SIMPLIFY_FACTOR == config.simplify_factor
    assert POINT_SD == config.v_std / config.baseline_intensity
    assert StainConfig().cloud_sigma == config.std_intensity_range


def test_clouds_lie_along_the_bent_paths() -> None:
    light = paint()
    assert light.dtype == np.float32 and light.shape == SHAPE and light.min() == 0.0
    assert light[light > 0].mean() == pytest.approx(1.0, rel=1e-4)
    x, y, z = np.indices(SHAPE) + 0.5
    away = np.full(SHAPE, np.inf)
    for path in bundle()[0]:
        to_x, to_y = x - np.interp(z, path[:, 2], path[:, 0]), y - path[0, 1]
        away = np.minimum(away, np.hypot(to_x, to_y) / SPACING)
    along = (z > 12) & (z < 60)
    core, gap = (light[along & near].mean() for near in (away < 0.25, (away > 0.5) & (away < 0.7)))
    assert core > 4 * gap
    places = np.argwhere(light > 0)
    lit = np.bincount(places[:, 2], minlength=SHAPE[2])
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
