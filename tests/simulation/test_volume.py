"""Volumes of both presets: seeds, records, configurations, and mixtures of presets."""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial import cKDTree

from utils.errors import UserError
from utils.simulation import (
    GeometryError,
    Mixture,
    VolumeConfig,
    WideConfig,
    WideVolume,
    config_from_dict,
    preset,
    sample_rng,
    simulate_volume,
)
from utils.simulation.sheet import ColumnTable, SheetConfig
from utils.simulation.volume import PRESETS, LobeConfig, preset_of

SMALL = VolumeConfig(shape=(48, 48, 48), lattice_intervals=(4, 6), min_columns=15)


EXPECTED = (56, 24789, 77.9773481846787, 4.412604385284895)


def small_volume(seed_and_index):
    return simulate_volume(SMALL, sample_rng(*seed_and_index))


def assert_same(first, second):
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if field.name == "parameters":
            assert a == b
        else:
            assert a.dtype == b.dtype
            assert_array_equal(a, b)


def test_shapes_and_dtypes():
    config = VolumeConfig(shape=(40, 44, 30), lattice_intervals=(4, 6), min_columns=15)
    volume = simulate_volume(config, sample_rng(0, 0))
    n = len(volume.entry_points)
    assert volume.image.shape == volume.instances.shape == volume.mask.shape == (40, 44, 30)
    assert volume.image.dtype == np.float32 and volume.instances.dtype == np.uint16
    assert volume.mask.dtype == np.uint8 and set(np.unique(volume.mask)) == {0, 1}
    for name in ("entry_points", "e_r", "e_theta", "e_phi", "points"):
        array = getattr(volume, name)
        assert array.shape == (n, 3) and array.dtype == np.float32
    assert volume.control_points.shape == (4, n, 3)
    assert volume.column_type.shape == (n,) and volume.column_type.dtype == np.uint8
    assert volume.lattice_coordinates.shape == (n, 3)
    assert volume.lattice_neighbours.max() < n
    assert np.isfinite(volume.image).all() and volume.image.min() >= 0
    assert volume.instances.max() <= n


def test_same_seed_same_bits_and_other_seed_other_volume():
    assert_same(small_volume((0, 5)), small_volume((0, 5)))
    first, second, third = (small_volume(s) for s in ((0, 5), (0, 6), (1, 5)))
    assert first.parameters != second.parameters != third.parameters != first.parameters


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_and_order_do_not_change_a_bit(method):
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        there = list(pool.map(small_volume, [(0, i) for i in (3, 1, 2)]))
    for i, volume in zip((3, 1, 2), there, strict=True):
        assert_same(volume, small_volume((0, i)))


def test_the_number_of_linear_algebra_threads_does_not_change_a_bit():
    code = (
        "import hashlib;from tests.simulation.test_volume import small_volume as f;v=f((0,1));"
        "print(hashlib.sha256(v.image.tobytes()+v.instances.tobytes()+v.e_r.tobytes()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "4")
    }
    assert len(hashes) == 1


def test_numbers_have_not_drifted():
    """Sums of one small sample as of format version 1; a change here belongs into CHANGELOG.md."""
    volume = small_volume((0, 0))
    found = (
        len(volume.entry_points),
        int(volume.mask.sum()),
        float(volume.entry_points.astype(float).sum()),
        float(volume.image.astype(float).mean()),
    )
    assert found == pytest.approx(EXPECTED, rel=1e-5)


def test_left_out_columns_are_labelled():
    for i in range(4):
        volume = small_volume((2, i))
        labelled = np.unique(volume.instances)[1:] - 1
        assert (volume.column_type[labelled] == 0).any()


def test_left_out_columns_are_darker_than_rendered_ones():
    config = VolumeConfig(std_intensity_range=(0.3, 0.3), contrast_range=(1.0, 1.0))
    volume = simulate_volume(config, sample_rng(1, 1))
    kind = np.append(0, volume.column_type + 1)[volume.instances]
    median = [np.median(volume.image[kind == k]) for k in range(1, 5)]
    assert median[0] < 0.7 * min(median[1:])


def test_the_same_cube_with_other_voxels():
    """Another number of voxels along z samples the same geometry."""
    flat = dataclasses.replace(SMALL, shape=(48, 48, 24))
    full, half = small_volume((0, 4)), simulate_volume(flat, sample_rng(0, 4))
    assert full.parameters == half.parameters
    assert_array_equal(full.entry_points, half.entry_points)
    coarse = full.mask.reshape(48, 48, 24, 2).mean(axis=3)
    whole = coarse != 0.5  # pairs of voxels that a wall does not part
    assert (coarse[whole] == half.mask[whole]).mean() > 0.995
    assert half.mask.mean() == pytest.approx(full.mask.mean(), rel=0.03)


def test_statistics_land_on_the_reference_s_medians():
    """Twelve default volumes; the spread of such a median is 0.1 to 0.2, tolerances three times.

    So it sees gross changes only: test_reference.py holds each number in closed form, and
    benchmarks/bench_statistics.py compares 200 volumes with the tolerances asked for.
    """
    rows = []
    for i in range(12):
        volume = simulate_volume(VolumeConfig(), sample_rng(77, i))
        low, high = np.percentile(volume.image, (1, 99))
        scaled = np.clip((volume.image - low) / (high - low), 0, 1)
        inside = volume.mask == 1
        rows.append((inside.mean(), len(volume.entry_points), high, scaled[inside].mean()))
    labelled, kept, high, mean_inside = np.median(rows, axis=0)
    assert labelled == pytest.approx(0.078, rel=0.6)
    assert kept == pytest.approx(256, rel=0.4)
    assert high == pytest.approx(17.9, rel=0.6)
    assert mean_inside == pytest.approx(0.539, rel=0.2)


def test_configurations_survive_json():
    config = dataclasses.replace(SMALL, gain_range=(3, 4), background_sigma=2.5)
    assert VolumeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": (128, 128)}, "shape"),
        ({"shape": (128, 128, 0)}, "shape"),
        ({"lattice_intervals": (0, 3)}, "lattice_intervals"),
        ({"lattice_intervals": (9, 8)}, "lattice_intervals"),
        ({"axis_scales": (0.0, 1.0)}, "axis_scales"),
        ({"std_intensity_range": (0.5, 0.4)}, "std_intensity_range"),
        ({"gain_range": (0, 4)}, "gain_range"),
        ({"gain_range": (10, 1_000_000)}, "gain_range .*: must be at most 15000"),
        ({"contrast_range": (0.0, 1.0)}, "contrast_range"),
        ({"background_range": (-0.1, 1.0)}, "background_range"),
        ({"min_columns": 0}, "min_columns"),
        ({"max_tries": 0}, "max_tries"),
        ({"cube_kernel_size": 0}, "cube_kernel_size"),
        ({"background_sigma": -1.0}, "background_sigma"),
        ({"simplify_factor": 0.0}, "simplify_factor"),
        ({"baseline_intensity": float("nan")}, "baseline_intensity"),
        ({"v_std": -1.0}, "v_std"),
    ],
)
def test_bad_configurations_name_the_field(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(VolumeConfig(), **change)


def test_the_largest_gain_leaves_the_contrast():
    bright = dataclasses.replace(SMALL, gain_range=(15_000, 15_000), contrast_range=(1.0, 1.0))
    many = simulate_volume(bright, sample_rng(0, 1)).image
    few = small_volume((0, 1)).image
    assert np.mean(many > 59_000) < 0.001
    assert np.percentile(many, 99) / np.median(many) > 0.5 * np.percentile(few, 99) / np.median(few)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline_intensity": 1e6}, "too bright and cut off: lower the gain"),
        ({"background_range": (9.0, 9.0)}, "too bright and cut off"),
        ({"contrast_range": (9.0, 9.0)}, "cut off: lower the gain or the contrast"),
    ],
)
def test_images_that_would_be_cut_off_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        simulate_volume(dataclasses.replace(SMALL, **change), sample_rng(0, 0))


def test_an_impossible_number_of_columns_stops_with_what_was_tried():
    config = dataclasses.replace(SMALL, min_columns=3000, max_tries=20)
    with pytest.raises(GeometryError, match="3000 columns.*20 tries"):
        simulate_volume(config, sample_rng(0, 0))


@pytest.mark.parametrize("seed, index", [(-1, 0), (0, -1)])
def test_negative_seeds_are_refused(seed, index):
    with pytest.raises(ValueError):
        sample_rng(seed, index)


SMALL_WIDE = WideConfig(shape=(40, 36, 32), sheet=SheetConfig(spacing=(5.0, 7.0), min_columns=4))


def wide(place: tuple[int, int]) -> WideVolume:
    volume = simulate_volume(SMALL_WIDE, sample_rng(*place))
    assert isinstance(volume, WideVolume)
    return volume


def square_table() -> ColumnTable:
    """49 straight columns 8 micrometres apart, 40 long."""
    p, q = (axis.ravel() for axis in np.indices((7, 7)))
    proximal = np.stack([8.0 * p, 8.0 * q, np.zeros(49)], axis=1)
    return ColumnTable("square.csv", "0" * 64, p, q, proximal, proximal + [0.0, 0.0, 40.0])


def assert_same_wide(a: WideVolume, b: WideVolume) -> None:
    for field in dataclasses.fields(a):
        assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_any_number_of_workers_gives_the_same_bits() -> None:
    places = [(0, 2), (0, 0), (0, 1)]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        there = list(pool.map(wide, places))
    for place, volume in zip(places, there, strict=True):
        assert_same_wide(volume, wide(place))
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
    assert_array_equal(volume.instances, volume.fields.instances(SMALL_WIDE.sheet.radius))
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
    strict = dataclasses.replace(SMALL_WIDE, min_visibility=0.9)
    volumes = [simulate_volume(strict, sample_rng(0, i)) for i in range(6)]
    assert all(volume.parameters.visibility >= 0.9 for volume in volumes)
    assert any(volume.parameters.redraws for volume in volumes)
    never = dataclasses.replace(SMALL_WIDE, min_visibility=1e9, max_redraws=5)
    with pytest.raises(
        GeometryError, match=r"no volume of 5 .* min_visibility 1000000000.0 \(most"
    ):
        simulate_volume(never, sample_rng(0, 0))


def test_neuropils_without_columns_are_told() -> None:
    sheet = dataclasses.replace(SMALL_WIDE.sheet, neuropil=1.0, neuropil_radius=(3.0, 4.0))
    volume = simulate_volume(dataclasses.replace(SMALL_WIDE, sheet=sheet), sample_rng(0, 0))
    drawn = json.loads(volume.parameters.drawn)["geometry"]
    radii = np.linalg.norm(np.array(drawn["neuropil"])[0, 1:], axis=1) / drawn["spacing"]
    assert radii.shape == (3,) and (radii > 2.99).all() and (radii < 4.01).all()


def test_measured_columns_stand_where_their_placement_says() -> None:
    config = dataclasses.replace(SMALL_WIDE, table=square_table())
    volume = simulate_volume(config, sample_rng(0, 0))
    drawn = json.loads(volume.parameters.drawn)["geometry"]
    assert_allclose(volume.path_spacing, 8.0 / drawn["voxel_size"], rtol=1e-4)
    lengths = np.linalg.norm(volume.paths[:, -1] - volume.paths[:, 0], axis=1)
    assert_allclose(lengths, 40.0 / drawn["voxel_size"], rtol=1e-4)
    assert set(map(tuple, volume.lattice_coordinates[:, 1:])) <= set(np.ndindex(7, 7))


def test_the_reference_s_columns_can_stand_in_a_share_of_the_volumes() -> None:
    lobe = LobeConfig(share=1.0, lattice_intervals=(4, 6))
    volume = simulate_volume(dataclasses.replace(SMALL_WIDE, lobe=lobe), sample_rng(0, 0))
    alike = dataclasses.replace(SMALL_WIDE, lobe=dataclasses.replace(lobe, share=0.5))
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


def test_wide_configurations_survive_json() -> None:
    config = dataclasses.replace(SMALL_WIDE, sheet=SheetConfig(bend=(0.1, 0.2)), min_visibility=0.5)
    assert WideConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_of_a_table_name_and_hash_are_kept_and_its_columns_asked_for() -> None:
    config = dataclasses.replace(SMALL_WIDE, table=square_table())
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
def test_bad_wide_configurations_name_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message} "):
        WideConfig.from_dict({**SMALL_WIDE.to_dict(), **change})


def test_presets_are_the_defaults() -> None:
    assert preset("reference") == VolumeConfig() and preset("wide") == WideConfig()
    assert preset("wide", shape=(8, 8, 8)).shape == (8, 8, 8)
    for name in PRESETS:
        config = preset(name)
        assert preset_of(config) == name and config_from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="preset 'narrow': must be one of reference, wide"):
        preset("narrow")


def test_volumes_are_chosen_by_their_shares_and_their_place_alone() -> None:
    mixture = Mixture(((preset("wide"), 0.7), (preset("reference"), 0.3)))
    places = [(epoch, index) for epoch in range(4) for index in range(250)]
    chosen = {place: preset_of(mixture.choose(0, *place)) for place in places}
    share = np.mean([name == "wide" for name in chosen.values()])
    assert share == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / 1000) ** 0.5)
    assert all(preset_of(mixture.choose(0, *place)) == chosen[place] for place in places[::-7])
    other = [preset_of(mixture.choose(1, *place)) for place in places]
    assert other != list(chosen.values())


def test_a_mixture_says_what_it_is() -> None:
    mixture = Mixture(((preset("wide"), 0.7), (preset("reference"), 0.3)))
    wide, reference = mixture.to_dict()
    assert (wide["preset"], wide["share"]) == ("wide", 0.7) and "sheet" in wide
    assert reference == {"preset": "reference", "share": 0.3, **VolumeConfig().to_dict()}
    alone = Mixture(((preset("reference"), 1.0),))
    assert alone.to_dict() == VolumeConfig().to_dict()
    assert alone.choose(0, 1, 2) == VolumeConfig()


@pytest.mark.parametrize("shares", [(0.7, 0.4), (1.0, 0.0), (1.5, -0.5)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="shares .*: must be above 0 and add up to 1"):
        Mixture(((preset("wide"), shares[0]), (preset("reference"), shares[1])))


def test_volumes_of_a_mixture_have_one_shape() -> None:
    with pytest.raises(UserError, match="shapes .*: must be equal"):
        Mixture(((preset("wide", shape=(8, 8, 8)), 0.5), (preset("reference"), 0.5)))
