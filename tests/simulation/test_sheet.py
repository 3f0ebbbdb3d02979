"""Columns of drawn sheets, and of tables of measured ones."""

from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

from utils.errors import UserError
from utils.simulation import GeometryError, sample_rng
from utils.simulation.sheet import (
    CLEARANCE,
    ColumnTable,
    Placement,
    SheetConfig,
    draw_columns,
    draw_placement,
    lattice_neighbours,
    nearest_distances,
    placed_columns,
)

SHAPE = (96, 96, 96)
HEXAGONS = np.array([[1.0, -0.5], [0.0, np.sqrt(0.75)]])
NONE = (0.0, 0.0)
FLAT = SheetConfig(
    **{"spacing": (8.0, 10.0), "length": (2.0, 4.0), "taper": (1.0, 1.0), "curvature": NONE},
    **{"spacing_change": (1.0, 1.0), "jitter": NONE, "tilt": NONE, "bend": NONE, "border": 0.0},
    **{"holes": (0, 0), "second_sheet": 0.0, "neuropil": 0.0, "left_out": NONE},
)


def draw(config, index=0, shape=SHAPE):
    return draw_columns(config, shape, sample_rng(3, index))


def cells(columns, depth):
    """The (n, 3, 2) steps p and q at a node of the columns that have both neighbours."""
    at = dict(zip(map(tuple, columns.lattice.tolist()), columns.paths[:, depth], strict=True))
    return np.array(
        [
            np.stack([at[c, p + 1, q] - place, at[c, p, q + 1] - place], axis=1)
            for (c, p, q), place in at.items()
            if (c, p + 1, q) in at and (c, p, q + 1) in at
        ],
        dtype=float,
    )


def singular_values(columns, depth=4):
    return np.linalg.svd(cells(columns, depth) @ np.linalg.inv(HEXAGONS), compute_uv=False)


@pytest.mark.parametrize("index", range(6))
def test_a_flat_sheet_is_one_sheared_lattice_of_straight_columns(index):
    columns = draw(FLAT, index)
    drawn = columns.parameters
    values = singular_values(columns)
    assert_allclose(np.sqrt(values.prod(axis=1)), drawn["spacing"], rtol=1e-3)
    assert_allclose(values[:, 0] / values[:, 1], drawn["anisotropy"], rtol=2e-3)
    chords = columns.paths[:, -1] - columns.paths[:, 0]
    assert_allclose(np.linalg.norm(chords, axis=1), drawn["length"] * drawn["spacing"], rtol=1e-5)
    assert_allclose(
        np.diff(columns.paths, axis=1), chords[:, None] / 8 * np.ones((8, 1)), atol=1e-4
    )
    axis = [drawn[f"axis_{a}"] for a in "xyz"]
    assert_allclose(chords[0] / np.linalg.norm(chords[0]), axis, atol=1e-5)
    volume = np.einsum("ni,i->n", np.cross(*np.moveaxis(cells(columns, 4), 2, 0)), axis)
    assert (np.sign(volume) == (-1 if drawn["mirrored"] else 1)).all()
    assert_allclose(columns.spacing, columns.spacing[0, 0], rtol=1e-3)


@pytest.mark.parametrize("anisotropy", [1.0, np.sqrt(3)])
def test_an_anisotropy_of_root_three_along_a_step_makes_squares(anisotropy):
    config = replace(FLAT, anisotropy=(anisotropy, anisotropy), stretch_angle=NONE)
    columns = draw(config)
    middles = columns.paths[:, 4]
    inner = np.argmin(cdist([middles.mean(axis=0)], middles))
    distances = np.sort(cdist(middles[[inner]], middles)[0])[1:9]
    if anisotropy == 1.0:
        assert_allclose(distances[:6], columns.parameters["spacing"], rtol=1e-4)
        assert distances[6] > 1.5 * columns.parameters["spacing"]
    else:
        assert_allclose(distances[:4], distances[0], rtol=1e-4)
        assert_allclose(distances[4:8], np.sqrt(2) * distances[0], rtol=1e-4)


def test_the_stretch_is_the_drawn_angle_away_from_a_step():
    columns = draw(replace(FLAT, anisotropy=(1.5, 1.5), stretch_angle=(10.0, 15.0)))
    stretched, (long, short), regular = np.linalg.svd(
        cells(columns, 4)[0] @ np.linalg.inv(HEXAGONS), full_matrices=False
    )
    assert long > short
    angle = np.degrees(np.arctan2(regular[0, 1], regular[0, 0])) % 60.0
    assert_allclose(angle, columns.parameters["stretch_angle"], atol=0.05)


@pytest.mark.parametrize("index", range(4))
def test_taper_is_what_the_curvatures_of_a_sheet_make_of_its_length(index):
    config = replace(FLAT, taper=(1.2, 1.4), curvature=(0.0, 0.11), length=(6.0, 9.0))
    columns = draw(config, index)
    drawn = columns.parameters
    k, h = np.array([drawn["curvature_1"], drawn["curvature_2"]]), drawn["length"]
    assert_allclose(drawn["taper"], np.sqrt(((1 + k * h / 2) / (1 - k * h / 2)).prod()), rtol=1e-6)
    outer, inner = (singular_values(columns, d).prod(axis=1) ** 0.5 for d in (-1, 0))
    assert_allclose(np.median(outer / inner), drawn["taper"], rtol=0.03)


def test_spacing_changes_along_one_direction_by_the_drawn_factor():
    config = replace(FLAT, spacing=(6.0, 6.0), spacing_change=(1.4, 1.4), shift=0.0)
    columns = draw(config)
    values = singular_values(columns)
    spacing = np.sqrt(values.prod(axis=1))
    assert_allclose(values[:, 0] / values[:, 1], columns.parameters["anisotropy"], rtol=0.05)
    corner = np.sqrt(3.0) * 1.1  # the sheet may lie along a diagonal, and reaches a little outside
    assert 1.25 < spacing.max() / spacing.min() < 1.4**corner


@pytest.mark.parametrize("bend", [0.2, 0.4])
def test_bend_is_the_deviation_from_the_chord(bend):
    columns = draw(replace(FLAT, bend=(bend, bend), own_bend=0.0, length=(8.0, 8.0)))
    paths = columns.paths.astype(float)
    chord = paths[:, -1] - paths[:, 0]
    chord /= np.linalg.norm(chord, axis=1, keepdims=True)
    off = paths - paths[:, :1]
    off -= np.sum(off * chord[:, None], axis=2, keepdims=True) * chord[:, None]
    most = np.linalg.norm(off, axis=2).max(axis=1)
    assert_allclose(most, bend * columns.parameters["spacing"], rtol=1e-3)


def test_tilt_is_the_angle_to_the_normal():
    columns = draw(replace(FLAT, tilt=(15.0, 15.0)))
    chord = columns.paths[0, -1] - columns.paths[0, 0]
    normal = [columns.parameters[f"axis_{a}"] for a in "xyz"]
    assert_allclose(np.degrees(np.arccos(chord @ normal / np.linalg.norm(chord))), 15.0, atol=0.01)


def test_jitter_has_the_drawn_spread_within_the_sheet():
    config = replace(FLAT, spacing=(6.0, 6.0), jitter=(0.1, 0.1))
    assert draw(replace(config, jitter=(0.05, 0.1))).parameters["jitter"] > 0.05
    still, moved = draw(replace(config, jitter=NONE)), draw(config)
    common = set(map(tuple, still.lattice.tolist())) & set(map(tuple, moved.lattice.tolist()))
    rows = [
        [c.lattice.tolist().index(list(site)) for site in sorted(common)] for c in (still, moved)
    ]
    off = (moved.paths[rows[1]] - still.paths[rows[0]]).astype(float)
    assert_allclose(off - off[:, :1], 0, atol=1e-4)  # the same along the whole path
    assert_allclose(np.sqrt((off[:, 0] ** 2).sum(axis=1).mean() / 2), 0.6, rtol=0.15)


def test_holes_and_borders_take_columns_and_leave_spacings_alone():
    whole = draw(FLAT, 1)
    index = {tuple(site): k for k, site in enumerate(whole.lattice.tolist())}
    for change in ({"holes": (1, 1), "hole_radius": (1.5, 1.5)}, {"border": 1.0}):
        part = draw(replace(FLAT, min_columns=2, **change), 1)
        radius, border = (part.parameters.get(name) for name in ("hole_radius_1", "border"))
        assert (radius, border) == ((1.5, 0.0) if "holes" in change else (None, 1.0))
        rows = [index[tuple(site)] for site in part.lattice.tolist()]
        assert len(rows) < len(whole.paths)
        assert_array_equal(part.paths, whole.paths[rows])
        assert_array_equal(part.spacing, whole.spacing[rows])


def test_a_second_sheet_is_another_chart_and_keeps_clear_of_the_first():
    config = replace(FLAT, second_sheet=1.0, gap=(0.5, 1.0), length=(1.5, 2.0))
    drawn = [draw(config, index) for index in range(6)]  # a second sheet may lie outside
    columns = max(drawn, key=lambda columns: np.count_nonzero(columns.lattice[:, 0]))
    first = columns.lattice[:, 0] == 0
    assert set(columns.lattice[:, 0].tolist()) == {0, 1}
    a, b = (columns.paths[rows].reshape(-1, 3) for rows in (first, ~first))
    drawn = columns.parameters
    assert 0.5 <= drawn["second_gap"] <= 1.0 and drawn["second_border"] == 0.0
    assert cdist(a, b).min() >= CLEARANCE * (drawn["spacing"] + drawn["second_spacing"]) - 1e-3
    assert (first[columns.neighbours[:, 0]] == first[columns.neighbours[:, 1]]).all()


def test_a_neuropil_lies_beyond_an_end_of_the_sheet():
    columns = draw(replace(FLAT, neuropil=1.0, gap=(1.0, 1.0)))
    centre, *axes = columns.neuropil[0]
    drawn = columns.parameters
    normal = np.array([drawn[f"axis_{a}"] for a in "xyz"])
    away = abs((centre - [drawn[f"centre_{a}"] for a in "xyz"]) @ normal)
    reach = np.linalg.norm(axes[2]) + (drawn["length"] / 2 + 1.0) * drawn["spacing"]
    assert_allclose(away, reach, rtol=1e-4)
    radii = np.linalg.norm(axes, axis=1) / drawn["spacing"]
    assert ((radii >= 3) & (radii <= 12)).all()


def test_left_out_columns_have_the_drawn_share():
    columns = draw(replace(FLAT, spacing=(5.0, 5.0), left_out=(0.4, 0.4)))
    assert columns.left_out.dtype == bool
    assert abs(columns.left_out.mean() - 0.4) < 0.1
    assert not draw(FLAT).left_out.any()


@pytest.mark.parametrize("index", range(4))
def test_the_same_seed_gives_the_same_columns_in_their_types(index):
    first, again = draw(SheetConfig(), index), draw(SheetConfig(), index)
    for name in ("paths", "spacing", "lattice", "neighbours", "left_out", "neuropil"):
        assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.parameters == again.parameters
    assert all(type(value) is float for value in first.parameters.values())
    n, e = len(first.paths), len(first.neighbours)
    assert first.paths.shape == (n, 9, 3) and first.paths.dtype == np.float32
    assert first.spacing.shape == (n, 9) and first.spacing.dtype == np.float32
    assert first.lattice.shape == (n, 3) and first.lattice.dtype == np.int32
    assert first.neighbours.shape == (e, 2) and first.neighbours.dtype == np.int32
    middle = first.paths[:, 4]
    assert np.all((middle >= 0) & (middle < SHAPE), axis=1).sum() >= 30
    assert not np.array_equal(first.paths[:2], draw(SheetConfig(), index + 50).paths[:2])


def test_too_few_columns_are_an_error_that_says_how_many_there_were():
    config = replace(FLAT, min_columns=5000, max_tries=2)
    with pytest.raises(GeometryError, match=r"at least 5000 columns .* in 2 tries \(most found: "):
        draw(config)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 1), st.integers(-4, 4), st.integers(-3, 5)), max_size=40))
def test_neighbours_are_the_six_steps_apart(sites):
    sites = sorted(sites, key=lambda s: (s[2] * 7 + s[1] * 3) % 11)
    steps = {(1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)}
    expected = [
        (k, m)
        for k, (c, p, q) in enumerate(sites)
        for m, (d, r, s) in enumerate(sites)
        if k < m and c == d and (r - p, s - q) in steps
    ]
    pairs = lattice_neighbours(np.array(sites, dtype=np.int32).reshape(-1, 3))
    assert_array_equal(pairs, np.array(expected, dtype=np.int32).reshape(-1, 2))


def test_nearest_distances_are_those_of_all_pairs():
    paths = np.random.default_rng(0).normal(size=(30, 4, 3))
    for d in range(4):
        all_pairs = cdist(paths[:, d], paths[:, d]) + np.diag([np.inf] * 30)
        assert_allclose(nearest_distances(paths)[:, d], all_pairs.min(axis=1))


def test_a_configuration_survives_plain_types():
    config = SheetConfig(spacing=(6.0, 7.0), holes=(1, 2))
    assert SheetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spacing", (1.0, 5.0), "at least 2"),
        ("spacing", (9.0, 5.0), "low <= high"),
        ("spacing", (5.0,), "low, high"),
        ("anisotropy", (0.9, 1.5), "at least 1"),
        ("anisotropy", (1.0, np.nan), "at least 1"),
        ("stretch_angle", (-40.0, 0.0), "at least -30"),
        ("stretch_angle", (0.0, 40.0), "at most 30"),
        ("spacing_change", (0.5, 1.0), "at least 1"),
        ("jitter", (-0.1, 0.1), "at least 0"),
        ("length", (0.0, 1.0), "at least 0.1"),
        ("taper", (0.9, 1.0), "at least 1"),
        ("curvature", (-0.1, 0.1), "at least 0"),
        ("tilt", (0.0, 80.0), "at most 60"),
        ("bend", (-1.0, 0.0), "at least 0"),
        ("border", 1.5, "at most 1"),
        ("second_sheet", -0.1, "at least 0"),
        ("neuropil", 2.0, "at most 1"),
        ("holes", (-1, 2), "at least 0"),
        ("left_out", (0.0, 1.2), "at most 1"),
        ("radius", 0.0, "at least 0.001"),
        ("min_columns", 1, "at least 2"),
        ("max_tries", 0, "at least 1"),
    ],
)
def test_bad_values_are_named(field, value, message):
    with pytest.raises(UserError, match=rf"^{field} .*{message}"):
        SheetConfig(**{field: value})


TABLE_SHAPE = (64, 64, 64)
TABLE_CONFIG = SheetConfig(spacing=(8.0, 8.0), min_columns=10, left_out=(0.3, 0.3))
AT_REST = Placement(2.0, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0.0, False)


def hexagons(spacing=12.0, reach=12, length=40.0):
    """Upright columns on a regular lattice about 0, in micrometres."""
    steps = np.arange(-reach, reach + 1)
    p, q = (a.ravel() for a in np.meshgrid(steps, steps, indexing="ij"))
    x, y = spacing * (p - 0.5 * q), spacing * np.sqrt(0.75) * q
    proximal, distal = (np.stack([x, y, np.full(len(p), z)], axis=1) for z in (-0.5, 0.5))
    return ColumnTable("t.csv", "0", p, q, proximal * [1, 1, length], distal * [1, 1, length])


def handedness(columns):
    """Sign of (p x q) . distal of any column that has both steps."""
    at = dict(zip(map(tuple, columns.lattice.tolist()), columns.paths.astype(float), strict=True))
    for (chart, p, q), path in at.items():
        if (chart, p + 1, q) in at and (chart, p, q + 1) in at:
            to_p, to_q = at[chart, p + 1, q][0] - path[0], at[chart, p, q + 1][0] - path[0]
            return np.sign(np.cross(to_p, to_q) @ (path[-1] - path[0]))
    raise AssertionError("no column has both steps")


def test_spacing_is_that_of_the_cell_also_where_the_lattice_is_sheared():
    table = hexagons()
    assert_allclose(table.spacing, 12.0)
    shear = np.array([[1.5, 0.4, 0.0], [0.0, 1 / 1.5, 0.0], [0.0, 0.0, 1.0]])  # of determinant 1
    sheared = replace(table, proximal=table.proximal @ shear.T, distal=table.distal @ shear.T)
    assert_allclose(sheared.spacing, 12.0)
    apart = replace(table, p=10 * table.p, q=10 * table.q)
    assert_allclose(apart.spacing, 12.0)  # without a cell: the nearest distance


def test_a_given_placement_takes_micrometres_to_voxels_and_crops():
    table = hexagons()
    columns = placed_columns(table, AT_REST, TABLE_SHAPE)
    middle = columns.lattice.tolist().index([0, 0, 0])
    assert_allclose(columns.paths[middle, [0, -1]], [[32, 32, 22], [32, 32, 42]], atol=1e-5)
    at = columns.lattice.tolist().index([0, 2, -1])
    step = [12 * 2.5 / 2, -12 * np.sqrt(0.75) / 2, 0]
    assert_allclose(columns.paths[at] - columns.paths[middle], np.tile(step, (9, 1)), atol=1e-5)
    assert_allclose(columns.spacing, 6.0, rtol=1e-5)
    outside = np.maximum(-columns.paths, columns.paths - 64).max(axis=2).min(axis=1)
    assert len(columns.paths) < len(table.p) and 0 < outside.max() < 1.5 * 6.0
    drawn = draw_columns(TABLE_CONFIG, TABLE_SHAPE, sample_rng(0, 0), table)
    assert abs(drawn.left_out.mean() - 0.3) < 0.12 and not columns.left_out.any()


def test_the_place_is_the_point_at_the_centre_and_the_axis_that_of_upright_columns():
    at = Placement(2.0, (12.0, 0.0, 5.0), (0.6, 0.0, 0.8), 1.0, False)
    columns = placed_columns(hexagons(), at, TABLE_SHAPE)
    path = columns.paths[columns.lattice.tolist().index([0, 1, 0])]
    axis = np.array([0.6, 0.0, 0.8])
    assert_allclose(path[4], 32 - 2.5 * axis, atol=1e-4)  # z = 0 is 5 um below the centre
    assert_allclose(path[-1] - path[0], 20 * axis, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_lobe_is_one_of_the_other_side(mirrored):
    at = replace(AT_REST, axis=(0.0, 0.6, 0.8), turn=2.0, mirrored=mirrored)
    columns = placed_columns(hexagons(), at, TABLE_SHAPE)
    assert handedness(columns) == (-1 if mirrored else 1)
    assert columns.parameters["mirrored"] == float(mirrored)


def test_paths_are_taken_where_given():
    table = hexagons()
    bent = table.nodes[:, ::4] + np.array([[0.0], [3.0], [0.0]]) * [1.0, 0.0, 0.0]
    columns = placed_columns(replace(table, paths=bent), AT_REST, TABLE_SHAPE)
    path = columns.paths[columns.lattice.tolist().index([0, 0, 0])]
    assert_allclose(path, [[32, 32, 22], [33.5, 32, 32], [32, 32, 42]], atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_what_was_drawn_places_the_columns_again(index):
    table = hexagons()
    first = draw_columns(TABLE_CONFIG, TABLE_SHAPE, sample_rng(1, index), table)
    again = draw_columns(TABLE_CONFIG, TABLE_SHAPE, sample_rng(1, index), table)
    assert_array_equal(first.paths, again.paths)
    assert_array_equal(first.left_out, again.left_out)
    drawn = first.parameters
    assert_allclose(drawn["spacing"], 8.0)
    at = Placement(
        voxel_size=drawn["voxel_size"],
        place=(drawn["place_x"], drawn["place_y"], drawn["place_z"]),
        axis=(drawn["axis_x"], drawn["axis_y"], drawn["axis_z"]),
        turn=drawn["turn"],
        mirrored=bool(drawn["mirrored"]),
    )
    assert_array_equal(placed_columns(table, at, TABLE_SHAPE).paths, first.paths)


def test_placements_are_drawn_within_their_ranges():
    table, config = hexagons(), replace(TABLE_CONFIG, spacing=(6.0, 12.0), shift=0.0)
    drawn = [draw_placement(table, config, TABLE_SHAPE, sample_rng(2, i)) for i in range(40)]
    sizes = np.array([at.voxel_size for at in drawn])
    assert 1.0 <= sizes.min() < 1.2 and 1.7 < sizes.max() <= 2.0
    nodes = table.nodes.reshape(-1, 3)
    assert all(np.abs(nodes - at.place).sum(axis=1).min() < 1e-9 for at in drawn)
    assert {at.mirrored for at in drawn} == {False, True}
    assert len({astuple(at) for at in drawn}) == 40


def test_a_placement_outside_of_the_table_is_an_error(monkeypatch):
    far = replace(AT_REST, place=(1e4, 0.0, 0.0))
    monkeypatch.setattr("utils.simulation.sheet.draw_placement", lambda *_: far)
    config = replace(TABLE_CONFIG, max_tries=2)
    with pytest.raises(GeometryError, match=r"at least 10 columns .*most found: 0"):
        draw_columns(config, TABLE_SHAPE, sample_rng(0, 0), hexagons())
