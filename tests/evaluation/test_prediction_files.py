import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation.prediction_files import (
    find_predictions,
    open_predictions,
    read_prediction,
    stacks_at,
)
from utils.stacks import StackLayout, write_stack

SHAPE = (5, 6, 7)


def write(path, values, spacing=None):
    write_stack(path, [values], StackLayout(values.shape, values.dtype, spacing))
    return path


@pytest.fixture
def mask():
    return (np.random.default_rng(0).random(SHAPE) < 0.5).astype(np.uint8)


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_the_last_number_in_a_name_is_the_volume(tmp_path):
    touch(tmp_path, "seed9999_volume_012_mask.tif", "3.nii.gz", "a7.ome.tif", "notes.txt", ".0.tif")
    (tmp_path / "v5.zarr").mkdir()
    found = find_predictions([tmp_path], 64)
    assert {index: path.name for index, path in found.items()} == {
        3: "3.nii.gz",
        5: "v5.zarr",
        7: "a7.ome.tif",
        12: "seed9999_volume_012_mask.tif",
    }
    assert list(found) == [3, 5, 7, 12]


def test_probabilities_go_before_the_mask_beside_them(tmp_path):
    touch(tmp_path, "v0.tif", "v0_probabilities.tif", "v1.tif")
    found = find_predictions([tmp_path / "v0.tif", tmp_path / "v0_probabilities.tif"], 2)
    assert [path.name for path in found.values()] == ["v0_probabilities.tif"]
    assert [p.name for p in find_predictions([tmp_path], 2).values()] == [
        "v0_probabilities.tif",
        "v1.tif",
    ]


def test_the_prediction_of_a_single_volume_needs_no_number(tmp_path):
    touch(tmp_path, "brain_20x.tif")
    assert find_predictions([tmp_path], 1) == {0: tmp_path / "brain_20x.tif"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.tif", "b1.tif"], "a.tif: its name has no number"),
        (["a2.tif", "b_2.nrrd"], "both named for volume 2"),
        (["a9.tif"], "volumes are 0..3"),
        (["notes.txt"], "nor a folder with one; they end in .tif"),
    ],
)
def test_names_that_do_not_say_the_volume_are_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_predictions([tmp_path], 4)


def test_paths_that_are_no_predictions(tmp_path):
    (tmp_path / "notes1.txt").touch()
    for path, message in ((tmp_path / "nothing", "no such"), (tmp_path / "notes1.txt", "neither")):
        with pytest.raises(UserError, match=message):
            find_predictions([path], 4)
        assert stacks_at(path) == []
    assert stacks_at(tmp_path) == []
    (tmp_path / "1.tif").touch()
    assert stacks_at(tmp_path) == stacks_at(tmp_path / "1.tif") == [tmp_path / "1.tif"]


@pytest.mark.parametrize("name", ["m.tif", "m.h5", "m.nrrd", "m.nii.gz", "m.zarr", "m.npy"])
def test_masks_of_any_format_and_any_foreground(tmp_path, mask, name):
    for factor in (1, 255):
        path = write(tmp_path / f"{factor}{name}", mask * np.uint8(factor))
        found, spacing = read_prediction(path, SHAPE)
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == np.float32 and spacing is None


def test_probabilities_are_kept_with_the_voxel_size(tmp_path, mask):
    chances = mask * np.float32(0.75)
    path = write(tmp_path / "p.tif", chances, (0.5, 0.5, 2.0))
    found, spacing = read_prediction(path, SHAPE)
    np.testing.assert_array_equal(found, chances)
    assert spacing == pytest.approx((0.5, 0.5, 2.0))


@pytest.mark.parametrize("value", [np.nan, -0.5, 1.5, 255.0])
def test_fractions_outside_0_to_1_are_refused(tmp_path, mask, value):
    chances = mask.astype(np.float32)
    chances[1, 2, 3] = value
    with pytest.raises(UserError, match="no probabilities"):
        read_prediction(write(tmp_path / "p.npy", chances), SHAPE)


def test_other_shapes_and_damaged_files_are_refused(tmp_path, mask):
    path = write(tmp_path / "p.tif", mask)
    with pytest.raises(UserError, match="shape"):
        read_prediction(path, SHAPE[::-1])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="p.tif: damaged, cut"):
        read_prediction(path, SHAPE)


def test_the_first_volumes_are_chosen_and_looked_at(tmp_path, mask):
    for index in (0, 1, 2):
        write(tmp_path / f"v_{index}.ome.zarr", mask)
    next(file for file in (tmp_path / "v_1.ome.zarr" / "0").rglob("0") if file.is_file()).unlink()
    chosen = open_predictions([tmp_path], SHAPE, 5, 2)
    assert list(chosen.paths) == [0, 1] and list(chosen.describe()["predictions"]) == ["0", "1"]
    assert len(chosen.warnings) == 1 and "v_1.ome.zarr: 1 of the 1 chunks" in chosen.warnings[0]
    with pytest.raises(UserError, match="--volumes 4: no prediction for volume 3"):
        open_predictions([tmp_path], SHAPE, 5, 4)
    with pytest.raises(UserError, match="has shape"):
        open_predictions([tmp_path], (5, 6, 8), 5, None)
