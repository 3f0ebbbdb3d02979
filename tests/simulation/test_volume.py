import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from utils.errors import UserError
from utils.simulation import GeometryError, VolumeConfig, sample_rng, simulate_volume

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
