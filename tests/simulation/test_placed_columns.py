from dataclasses import astuple, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from utils.simulation import GeometryError, sample_rng
from utils.simulation.placed_columns import (
    ColumnTable,
    Placement,
    draw_placement,
    place_columns,
)
from utils.simulation.sheet import SheetConfig

SHAPE = (64, 64, 64)
CONFIG = SheetConfig(spacing=(8.0, 8.0), min_columns=10, left_out=(0.3, 0.3))
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
    columns = place_columns(table, CONFIG, SHAPE, sample_rng(0, 0), AT_REST)
    middle = columns.lattice.tolist().index([0, 0, 0])
    assert_allclose(columns.paths[middle, [0, -1]], [[32, 32, 22], [32, 32, 42]], atol=1e-5)
    at = columns.lattice.tolist().index([0, 2, -1])
    step = [12 * 2.5 / 2, -12 * np.sqrt(0.75) / 2, 0]
    assert_allclose(columns.paths[at] - columns.paths[middle], np.tile(step, (9, 1)), atol=1e-5)
    assert_allclose(columns.spacing, 6.0, rtol=1e-5)
    outside = np.maximum(-columns.paths, columns.paths - 64).max(axis=2).min(axis=1)
    assert len(columns.paths) < len(table.p) and 0 < outside.max() < 1.5 * 6.0
    assert abs(columns.left_out.mean() - 0.3) < 0.12


def test_the_place_is_the_point_at_the_centre_and_the_axis_that_of_upright_columns():
    at = Placement(2.0, (12.0, 0.0, 5.0), (0.6, 0.0, 0.8), 1.0, False)
    columns = place_columns(hexagons(), CONFIG, SHAPE, sample_rng(0, 0), at)
    path = columns.paths[columns.lattice.tolist().index([0, 1, 0])]
    axis = np.array([0.6, 0.0, 0.8])
    assert_allclose(path[4], 32 - 2.5 * axis, atol=1e-4)  # z = 0 is 5 um below the centre
    assert_allclose(path[-1] - path[0], 20 * axis, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_lobe_is_one_of_the_other_side(mirrored):
    at = replace(AT_REST, axis=(0.0, 0.6, 0.8), turn=2.0, mirrored=mirrored)
    columns = place_columns(hexagons(), CONFIG, SHAPE, sample_rng(0, 0), at)
    assert handedness(columns) == (-1 if mirrored else 1)
    assert columns.parameters["mirrored"] == float(mirrored)


def test_paths_are_taken_where_given():
    table = hexagons()
    bent = table.nodes[:, ::4] + np.array([[0.0], [3.0], [0.0]]) * [1.0, 0.0, 0.0]
    columns = place_columns(replace(table, paths=bent), CONFIG, SHAPE, sample_rng(0, 0), AT_REST)
    path = columns.paths[columns.lattice.tolist().index([0, 0, 0])]
    assert_allclose(path, [[32, 32, 22], [33.5, 32, 32], [32, 32, 42]], atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_what_was_drawn_places_the_columns_again(index):
    table = hexagons()
    first = place_columns(table, CONFIG, SHAPE, sample_rng(1, index))
    again = place_columns(table, CONFIG, SHAPE, sample_rng(1, index))
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
    assert_array_equal(place_columns(table, CONFIG, SHAPE, sample_rng(9, 9), at).paths, first.paths)


def test_placements_are_drawn_within_their_ranges():
    table, config = hexagons(), replace(CONFIG, spacing=(6.0, 12.0), shift=0.0)
    drawn = [draw_placement(table, config, SHAPE, sample_rng(2, i)) for i in range(40)]
    sizes = np.array([at.voxel_size for at in drawn])
    assert 1.0 <= sizes.min() < 1.2 and 1.7 < sizes.max() <= 2.0
    nodes = table.nodes.reshape(-1, 3)
    assert all(np.abs(nodes - at.place).sum(axis=1).min() < 1e-9 for at in drawn)
    assert {at.mirrored for at in drawn} == {False, True}
    assert len({astuple(at) for at in drawn}) == 40


def test_a_placement_outside_of_the_table_is_an_error():
    far = replace(AT_REST, place=(1e4, 0.0, 0.0))
    with pytest.raises(GeometryError, match=r"at least 10 columns .*most found: 0"):
        place_columns(hexagons(), replace(CONFIG, max_tries=2), SHAPE, sample_rng(0, 0), far)
