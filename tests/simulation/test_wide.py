"""Preset wide: the same seed, what a volume holds, redraws, tables, and bad configurations."""

import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial import cKDTree

from utils.errors import UserError
from utils.simulation import GeometryError, WideConfig, WideVolume, sample_rng, simulate_volume
from utils.simulation.placed_columns import ColumnTable
from utils.simulation.sheet import SheetConfig
from utils.simulation.wide import LobeConfig

SMALL = WideConfig(shape=(40, 36, 32), sheet=SheetConfig(spacing=(5.0, 7.0), min_columns=4))


def wide(place: tuple[int, int]) -> WideVolume:
    volume = simulate_volume(SMALL, sample_rng(*place))
    assert isinstance(volume, WideVolume)
    return volume


def square_table() -> ColumnTable:
    """49 straight columns 8 micrometres apart, 40 long."""
    p, q = (axis.ravel() for axis in np.indices((7, 7)))
    proximal = np.stack([8.0 * p, 8.0 * q, np.zeros(49)], axis=1)
    return ColumnTable("square.csv", "0" * 64, p, q, proximal, proximal + [0.0, 0.0, 40.0])


def assert_same(a: WideVolume, b: WideVolume) -> None:
    for field in dataclasses.fields(a):
        assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_any_number_of_workers_gives_the_same_bits() -> None:
    places = [(0, 2), (0, 0), (0, 1)]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        there = list(pool.map(wide, places))
    for place, volume in zip(places, there, strict=True):
        assert_same(volume, wide(place))
    assert len({volume.parameters for volume in there}) == 3


def test_the_record_is_that_of_all_volumes() -> None:
    volume = wide((0, 0))
    n, depths = volume.path_spacing.shape
    assert n >= 4 and volume.paths.shape == (n, depths, 3)
    assert volume.image.shape == volume.instances.shape == (40, 36, 32)
    assert volume.image.dtype == np.float32 and volume.instances.dtype == np.uint16
    assert np.isfinite(volume.image).all() and volume.image.min() >= 0
    assert volume.instances.max() <= n and volume.control_points.shape == (4, 0, 3)
    for name in ("entry_points", "e_r", "e_theta", "e_phi", "points"):
        array = getattr(volume, name)
        assert array.shape == (n, 3) and array.dtype == np.float32
    assert_allclose(volume.entry_points * volume.image.shape, volume.paths[:, 0], rtol=1e-5)
    ends = volume.entry_points + volume.parameters.cone_length * volume.e_r
    assert_allclose(ends * volume.image.shape, volume.paths[:, -1], rtol=1e-4, atol=1e-3)
    frame = np.stack([volume.e_theta, volume.e_phi]) * volume.image.shape
    assert_allclose(np.sum(frame * (volume.e_r * volume.image.shape), axis=2), 0.0, atol=1e-2)
    lengths = np.linalg.norm(frame, axis=2)
    assert_allclose(lengths, np.tile(volume.path_spacing[:, 0], (2, 1)), rtol=1e-4)
    assert set(json.loads(volume.parameters.drawn)) == {"geometry", "stain", "microscope"}


def test_labels_lie_along_the_paths_and_in_the_sheet() -> None:
    volume = wide((0, 1))
    assert_array_equal(volume.instances, volume.fields.instances(SMALL.sheet.radius))
    assert not (volume.mask > volume.sheet).any()
    assert 0.2 < volume.mask.sum() / volume.sheet.sum() < 0.6
    middle = np.floor(volume.paths[:, 4]).astype(int)
    inside = np.all((middle >= 0) & (middle < volume.image.shape), axis=1)
    owners = volume.instances[tuple(middle[inside].T)]
    assert (owners == np.flatnonzero(inside) + 1).mean() > 0.95


def test_columns_without_stain_are_type_0() -> None:
    for index in range(4):
        volume = wide((1, index))
        brightness = np.array(json.loads(volume.parameters.drawn)["stain"]["brightness"])
        assert_array_equal(volume.column_type, brightness > 0)


def test_volumes_whose_columns_cannot_be_seen_are_drawn_again() -> None:
    strict = dataclasses.replace(SMALL, min_visibility=0.9)
    volumes = [simulate_volume(strict, sample_rng(0, i)) for i in range(6)]
    assert all(volume.parameters.visibility >= 0.9 for volume in volumes)
    assert any(volume.parameters.redraws for volume in volumes)
    never = dataclasses.replace(SMALL, min_visibility=1e9, max_redraws=5)
    with pytest.raises(
        GeometryError, match=r"no volume of 5 .* min_visibility 1000000000.0 \(most"
    ):
        simulate_volume(never, sample_rng(0, 0))


def test_neuropils_without_columns_are_told() -> None:
    sheet = dataclasses.replace(SMALL.sheet, neuropil=1.0, neuropil_radius=(3.0, 4.0))
    volume = simulate_volume(dataclasses.replace(SMALL, sheet=sheet), sample_rng(0, 0))
    drawn = json.loads(volume.parameters.drawn)["geometry"]
    radii = np.linalg.norm(np.array(drawn["neuropil"])[0, 1:], axis=1) / drawn["spacing"]
    assert radii.shape == (3,) and (radii > 2.99).all() and (radii < 4.01).all()


def test_measured_columns_stand_where_their_placement_says() -> None:
    config = dataclasses.replace(SMALL, table=square_table())
    volume = simulate_volume(config, sample_rng(0, 0))
    drawn = json.loads(volume.parameters.drawn)["geometry"]
    assert_allclose(volume.path_spacing, 8.0 / drawn["voxel_size"], rtol=1e-4)
    lengths = np.linalg.norm(volume.paths[:, -1] - volume.paths[:, 0], axis=1)
    assert_allclose(lengths, 40.0 / drawn["voxel_size"], rtol=1e-4)
    assert set(map(tuple, volume.lattice_coordinates[:, 1:])) <= set(np.ndindex(7, 7))


def test_the_reference_s_columns_can_stand_in_a_share_of_the_volumes() -> None:
    lobe = LobeConfig(share=1.0, lattice_intervals=(4, 6))
    volume = simulate_volume(dataclasses.replace(SMALL, lobe=lobe), sample_rng(0, 0))
    alike = dataclasses.replace(SMALL, lobe=dataclasses.replace(lobe, share=0.5))
    kinds = [simulate_volume(alike, sample_rng(2, i)).parameters.drawn for i in range(10)]
    assert 0 < sum("lattice_intervals" in kind for kind in kinds) < 10
    scales = json.loads(volume.parameters.drawn)["geometry"]
    assert all(0.7 <= scales[f"axis_scales_{axis}"] <= 1.5 for axis in "xyz")
    bend = volume.paths - np.linspace(volume.paths[:, 0], volume.paths[:, -1], 9, axis=1)
    assert np.abs(bend).max() < 1e-3
    faces, degree = volume.lattice_coordinates[:, 0], np.bincount(volume.lattice_neighbours.ravel())
    assert faces.max() < 20 and degree.max() <= 6
    nearest = cKDTree(volume.entry_points).query(volume.entry_points, k=2)[0][:, 1].mean()
    lengths = np.linalg.norm(volume.e_r, axis=1) / (2.25 * nearest)
    assert lengths.min() >= 0.699 and lengths.max() <= 1.501  # the ellipsoid's half axes


def test_configurations_survive_json() -> None:
    config = dataclasses.replace(SMALL, sheet=SheetConfig(bend=(0.1, 0.2)), min_visibility=0.5)
    assert WideConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_of_a_table_name_and_hash_are_kept_and_its_columns_asked_for() -> None:
    config = dataclasses.replace(SMALL, table=square_table())
    plain = json.loads(json.dumps(config.to_dict()))
    assert plain["table"] == ["square.csv", "0" * 64]
    again = WideConfig.from_dict(plain)
    assert again.to_dict() == config.to_dict()
    with pytest.raises(UserError, match="columns of square.csv are missing: give --columns_table"):
        simulate_volume(again, sample_rng(0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (8, 8)}, "shape"),
        ({"shape": (8, 8, 1)}, "shape"),
        ({"min_visibility": -1.0}, "min_visibility"),
        ({"min_visibility": float("nan")}, "min_visibility"),
        ({"max_redraws": 0}, "max_redraws"),
        ({"lobe": {"share": 1.5}}, "share"),
        ({"lobe": {"lattice_intervals": [5, 4]}}, "lattice_intervals"),
        ({"lobe": {"length": 0.0}}, "length"),
    ],
)
def test_bad_configurations_name_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message} "):
        WideConfig.from_dict({**SMALL.to_dict(), **change})
