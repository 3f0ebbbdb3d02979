"""Stains, and the grids and balls of their background."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.interpolate import RegularGridInterpolator

from utils.errors import UserError
from utils.simulation.labels import ColumnFields
from utils.simulation.stain import (
    CORE,
    GAP,
    NEIGHBOUR,
    OUTSIDE,
    RIM,
    SHEET,
    Grid,
    Stain,
    StainConfig,
    add_grid,
    band_profile,
    draw_stain,
    grid_of,
    noise_grid,
    paint_balls,
    paint_stain,
    visibility,
)

SPACING, SIDE, HEIGHT = 12, 4, 30
LEVELS = (0.9, 0.6, 0.3, 0.2, 0.1, 0.5)
N = SIDE**2
PLAIN = Stain(
    kind="filled",
    levels=LEVELS,
    level_sds=(0.0,) * 6,
    core_radius=0.3,
    rim_width=0.15,
    rod_offsets=(),
    rod_directions=(),
    rod_radii=(),
    rod_starts=(),
    rod_ends=(),
    band_centres=(),
    band_widths=(),
    band_contrast=0.0,
    brightness=(1.0,) * N,
    grain=0.0,
    grain_period=3.0,
    texture_period=4.0,
    cell_diameter=0.0,
    tract_radii=(),
    trachea_radii=(),
    debris_radii=(),
    haze=0.0,
)
"""Filled columns with a rim, without texture, strata or background."""


def square_lattice():
    """Straight columns along z on a square lattice; six planes at either end lie outside."""
    place = np.arange(SIDE * SPACING)
    cell, along = place // SPACING, place % SPACING - (SPACING - 1) / 2
    shape = (len(place), len(place), HEIGHT + 12)
    distance = np.hypot(along[:, None], along)[..., None] / SPACING
    owner = np.zeros(shape, dtype=np.uint16)
    owner[:, :, 6:-6] = (cell[:, None] * SIDE + cell + 1)[..., None]
    depth = np.clip((np.arange(shape[2]) - 6) / (HEIGHT - 1), 0, 1)
    fields = (np.broadcast_to(a, shape).astype(np.float32) for a in (distance, depth))
    return ColumnFields(owner, *fields, np.zeros(shape, np.uint8))


FIELDS = square_lattice()


def paint(fields=FIELDS, seed=0, **changes):
    return paint_stain(replace(PLAIN, **changes), fields, SPACING, np.random.default_rng(seed))


def places(low, high):
    return (FIELDS.owner > 0) & (FIELDS.distance > low) & (FIELDS.distance < high)


@pytest.mark.parametrize("levels", [LEVELS, (0.1, 0.4, 0.8, 0.2, 0.7, 0.5)])
def test_each_structure_has_its_level_where_it_should_be(levels):
    image = paint(levels=levels)
    assert_allclose(image[places(-1, 0.25)], levels[CORE], rtol=1e-5)
    assert_allclose(image[places(0.35, 0.4)], levels[RIM], rtol=1e-5)
    assert_allclose(image[places(0.5, 0.8)], levels[GAP], rtol=1e-5)
    assert_allclose(image[FIELDS.owner == 0], levels[OUTSIDE], rtol=1e-5)


def test_far_from_all_columns_is_plain_sheet():
    far = replace(FIELDS, distance=FIELDS.distance + np.float32(1.1))
    assert_allclose(paint(far)[FIELDS.owner > 0], LEVELS[SHEET], rtol=1e-5)


def test_lone_rims_are_hollow():
    image = paint(kind="rims")
    assert_allclose(image[places(-1, 0.25)], LEVELS[GAP], rtol=1e-5)
    assert_allclose(image[places(0.35, 0.4)], LEVELS[RIM], rtol=1e-5)


@pytest.mark.parametrize("width, voxels", [(0.01, 1), (0.15, 1.8), (0.9, 3)])
def test_rims_are_one_to_three_voxels_thick(width, voxels):
    """The rim's area in a cell is that of a ring: pi ((r + w)^2 - r^2)."""
    image = paint(kind="rims", core_radius=0.2, rim_width=width)
    share = (image - LEVELS[GAP]) / (LEVELS[RIM] - LEVELS[GAP])
    area = share[:SPACING, :SPACING, 20].sum()
    radius = 0.2 * SPACING
    assert area == pytest.approx(np.pi * ((radius + voxels) ** 2 - radius**2), rel=0.1)


def test_brightness_scales_a_column_and_0_leaves_none_of_it():
    brightness = np.linspace(0, 1.5, N)
    image = paint(brightness=tuple(brightness.tolist()))
    core = places(-1, 0.25)
    for k, bright in enumerate(brightness):
        expected = LEVELS[GAP] + bright * (LEVELS[CORE] - LEVELS[GAP])
        assert_allclose(image[core & (FIELDS.owner == k + 1)], expected, rtol=1e-5)
    assert_allclose(image[places(-1, 0.8) & (FIELDS.owner == 1)], LEVELS[GAP], rtol=1e-5)


@pytest.mark.parametrize("contrast", [1.0, 0.4])
def test_strata_are_shared_by_all_columns(contrast):
    bands = {"band_centres": (0.25, 0.8), "band_widths": (0.1, 0.15), "band_contrast": contrast}
    image = paint(**bands)
    u = np.abs(FIELDS.depth[..., None] - bands["band_centres"]) / bands["band_widths"]
    there = 1 - contrast * (1 - np.max(np.maximum(1 - u**2, 0) ** 2, axis=-1))
    core = places(-1, 0.25)
    expected = LEVELS[SHEET] + there * (LEVELS[CORE] - LEVELS[SHEET])
    assert_allclose(image[core], expected[core], atol=0.03)
    profile = band_profile(replace(PLAIN, **bands))
    assert profile.max() == pytest.approx(1.0, abs=1e-3) and profile.min() >= 1 - contrast - 1e-6


def test_rods_stand_off_the_axis_over_their_part_of_the_depth():
    rods = {
        "rod_offsets": (0.25, 0.2),
        "rod_directions": (1.0, 0.0, 0.0, 0.0, 0.6, 0.8),
        "rod_radii": (0.12, 0.12),
        "rod_starts": (0.0, 0.5),
        "rod_ends": (0.45, 1.0),
    }
    image = paint(kind="rods", **rods)
    share = (image - LEVELS[GAP]) / (LEVELS[CORE] - LEVELS[GAP])
    cell = share[SPACING : 2 * SPACING, SPACING : 2 * SPACING]
    at = np.arange(SPACING) - (SPACING - 1) / 2
    for plane, centre in ((12, (0.25, 0.0)), (30, (0.0, 0.2))):
        seen = cell[:, :, plane]
        assert seen.sum() == pytest.approx(np.pi * (0.12 * SPACING) ** 2, rel=0.2)
        found = [np.sum(seen * at[:, None]), np.sum(seen * at)] / seen.sum() / SPACING
        assert_allclose(found, centre, atol=0.03)


def test_textures_have_each_structures_deviation():
    sds = (0.02, 0.0, 0.05, 0.0, 0.01, 0.0)
    image = paint(level_sds=sds, texture_period=1.0)
    assert image[places(-1, 0.25)].std() == pytest.approx(sds[CORE], rel=0.1)
    assert image[places(0.5, 0.8)].std() == pytest.approx(sds[GAP], rel=0.1)
    assert image[FIELDS.owner == 0].std() == pytest.approx(sds[OUTSIDE], rel=0.1)


@pytest.mark.parametrize(
    "part, inside_too",
    [
        ({"cell_diameter": 0.6}, False),
        ({"tract_radii": (1.0,) * 5}, False),
        ({"trachea_radii": (0.5,) * 9}, True),
        ({"debris_radii": (0.3,) * 20}, True),
    ],
)
def test_backgrounds_stay_where_they_belong(part, inside_too):
    changed = paint(**part) != paint()
    within = FIELDS.owner > 0
    assert changed[~within].any() and changed[within].any() == inside_too


def test_a_neighbouring_neuropil_of_the_fields_is_painted_where_it_lies():
    neighbour = np.zeros(FIELDS.owner.shape, dtype=np.uint8)
    neighbour[:9, :, :9] = 1
    image = paint(replace(FIELDS, neighbour=neighbour))
    there = (neighbour > 0) & (FIELDS.owner == 0)
    assert_allclose(image[there], LEVELS[NEIGHBOUR], rtol=1e-5)
    assert_array_equal(image[~there], paint()[~there])


def test_haze_is_a_share_of_the_light():
    assert paint(haze=0.5).sum() / paint().sum() == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_stains_are_plain_numbers_within_their_ranges(seed):
    left_out = np.arange(N) % 3 == 0
    stain = draw_stain(StainConfig(), N, left_out, np.random.default_rng(seed))
    assert Stain.from_dict(json.loads(json.dumps(stain.to_dict()))) == stain
    assert not np.any(np.array(stain.brightness)[left_out])
    assert abs(stain.levels[CORE] - stain.levels[GAP]) >= 0.2 or stain.levels[OUTSIDE] < 0.36
    first, again = (paint_stain(stain, FIELDS, SPACING, np.random.default_rng(7)) for _ in "ab")
    assert_array_equal(first, again)
    assert first.dtype == np.float32 and first.min() >= 0 and np.isfinite(first).all()


def drawn(number=300, **changes):
    config = StainConfig(**changes)
    left_out = np.zeros(N, dtype=bool)
    return [draw_stain(config, N, left_out, np.random.default_rng(seed)) for seed in range(number)]


def test_parts_come_with_their_probabilities():
    stains = drawn()
    inverted = np.mean([stain.levels[CORE] < stain.levels[GAP] for stain in stains])
    assert inverted == pytest.approx(0.3, abs=0.08)
    kinds = [stain.kind for stain in stains]
    assert kinds.count("rims") / 300 == pytest.approx(0.15, abs=0.06)
    assert kinds.count("rods") / 300 == pytest.approx(0.2, abs=0.07)
    assert np.mean([bool(s.cell_diameter) for s in stains]) == pytest.approx(0.8 * 0.4, abs=0.08)
    assert np.mean([len(s.band_centres) > 0 for s in stains]) == pytest.approx(0.7, abs=0.08)


def test_a_contrast_may_take_all_of_the_levels():
    for stain in drawn(20, contrast=(0.78, 0.78), inverted_probability=1.0):
        assert stain.levels[CORE] == pytest.approx(0.1)
        assert stain.levels[GAP] == pytest.approx(0.88)


def test_no_background_and_one_polarity_where_the_configuration_says_so():
    for stain in drawn(40, background_probability=0.0, inverted_probability=1.0):
        parts = (stain.cell_diameter, stain.tract_radii, stain.trachea_radii, stain.debris_radii)
        assert not any((*parts, stain.haze))
        assert stain.levels[GAP] - stain.levels[CORE] >= 0.2


def test_visibility_is_contrast_over_its_spread():
    """Core less near gap is 0.1 b for each column, with b from 1 to 2, and noise adds to it."""
    columns = 1.0 + np.arange(N) / (N - 1)
    level = np.append(0.0, 0.1 * columns)[FIELDS.owner]
    image = np.where(FIELDS.distance <= 0.35, 0.5 + level, 0.5).astype(np.float32)
    none = np.zeros(N, dtype=bool)
    low, middle, high = 0.1 * np.percentile(columns, [16, 50, 84])
    expected = middle / ((high - low) / 2)
    assert visibility(image, FIELDS, none) == pytest.approx(expected, rel=1e-3)
    assert visibility(1 - image, FIELDS, none) == pytest.approx(expected, rel=1e-3)
    rng = np.random.default_rng(0)
    noisy = image + rng.normal(0, 0.5, image.shape).astype(np.float32)
    spread = np.sqrt(((high - low) / 2) ** 2 + 0.25 / 8)
    assert visibility(noisy, FIELDS, none) == pytest.approx(middle / spread, rel=0.15)


def test_visibility_leaves_out_what_is_left_out():
    image = paint(brightness=(1.0,) * 8 + (0.0,) * 8)
    left_out = np.arange(N) >= 8
    assert visibility(image, FIELDS, left_out) > 5
    assert visibility(image, FIELDS, ~left_out) == pytest.approx(0.0, abs=1e-3)
    assert visibility(image, FIELDS, np.ones(N, dtype=bool)) == 0.0


@pytest.mark.parametrize(
    "field, value",
    [
        ("level", (0.1, 1.2)),
        ("level", (0.5, 0.4)),
        ("contrast", (0.2, 0.9)),
        ("inverted_probability", -0.1),
        ("haze_probability", np.nan),
        ("rods", (0, 2)),
        ("rod_radius", (0.0, 0.2)),
        ("bands", (1,)),
        ("brightness_sigma", (-1.0, 1.0)),
        ("texture_period", (0.5, 3.0)),
        ("rims_probability", 0.9),
        ("clouds_probability", 0.7),
        ("cloud_sigma", (0.3, np.inf)),
    ],
)
def test_bad_configurations_are_named(field, value):
    with pytest.raises(UserError, match=field):
        StainConfig(**{field: value})


GRID_SHAPE = (13, 17, 21)


def painted(grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    image = np.zeros(shape, dtype=np.float32)
    add_grid(image, grid)
    return image


def test_a_grid_is_trilinear_in_smooth_weights():
    nodes = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    at = [np.arange(n) / 3.3 for n in GRID_SHAPE]
    smooth = [np.floor(x) + (x % 1) ** 2 * (3 - 2 * (x % 1)) for x in at]
    voxels = np.stack(np.meshgrid(*smooth, indexing="ij"), axis=-1)
    expected = RegularGridInterpolator([np.arange(n) for n in nodes.shape], nodes)(voxels)
    image = np.ones(GRID_SHAPE, dtype=np.float32)
    add_grid(image, grid_of(nodes, 3.3, GRID_SHAPE))
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
