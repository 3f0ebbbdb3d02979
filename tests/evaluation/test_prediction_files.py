import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation.prediction_files import (
    find_predictions,
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


def names(found):
    return {index: path.name for index, path in found.paths.items()}


def test_the_last_number_in_a_name_is_the_volume(tmp_path, mask):
    for name in ("seed9999_volume_012_mask.tif", "3.nii.gz", "a7.ome.tif", "v5.zarr"):
        write(tmp_path / name, mask)
    for name in ("notes.txt", ".0.tif"):
        (tmp_path / name).touch()
    found = find_predictions([tmp_path], [SHAPE] * 64)
    assert names(found) == {
        3: "3.nii.gz",
        5: "v5.zarr",
        7: "a7.ome.tif",
        12: "seed9999_volume_012_mask.tif",
    }
    assert list(found.paths) == [3, 5, 7, 12] and list(found.describe()["predictions"])[0] == "3"


def test_probabilities_go_before_the_mask_beside_them(tmp_path, mask):
    paths = [tmp_path / name for name in ("v0.tif", "v0_probabilities.tif", "v1.tif")]
    for path in paths:
        write(path, mask)
    assert names(find_predictions(paths[:2], [SHAPE] * 2)) == {0: "v0_probabilities.tif"}
    both = {0: "v0_probabilities.tif", 1: "v1.tif"}
    assert names(find_predictions([tmp_path], [SHAPE] * 2)) == both


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.tif"], "a.tif: the last number in its name must say"),
        (["a2.tif", "b_2.nrrd"], "both named for volume 2"),
        (["a9.tif"], "a9.tif: .* from 0 to 3"),
        (["notes.txt"], "nor a folder with one; they end in .tif"),
    ],
)
def test_names_that_do_not_say_the_volume_are_refused(tmp_path, mask, names, message):
    for name in names:
        write(tmp_path / name, mask) if name != "notes.txt" else (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        find_predictions([tmp_path], [SHAPE] * 4)


def test_paths_that_are_no_predictions(tmp_path):
    (tmp_path / "notes1.txt").touch()
    for path in (tmp_path / "nothing", tmp_path / "notes1.txt"):
        with pytest.raises(UserError, match="neither a stack nor a folder"):
            find_predictions([path], [SHAPE] * 4)
        assert stacks_at(path) == []
    assert stacks_at(tmp_path) == []
    (tmp_path / "1.tif").touch()
    assert stacks_at(tmp_path) == stacks_at(tmp_path / "1.tif") == [tmp_path / "1.tif"]


@pytest.mark.parametrize("name", ["m.tif", "m.h5", "m.nrrd", "m.nii.gz", "m.zarr", "m.npy"])
def test_masks_of_any_format_and_any_foreground(tmp_path, mask, name):
    for factor in (1, 255):
        path = write(tmp_path / f"{factor}{name}", mask * np.uint8(factor))
        found, spacing = read_prediction(path)
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == np.float32 and spacing is None


def test_probabilities_are_kept_with_the_voxel_size(tmp_path, mask):
    chances = mask * np.float32(0.75)
    path = write(tmp_path / "p.tif", chances, (0.5, 0.5, 2.0))
    found, spacing = read_prediction(path)
    np.testing.assert_array_equal(found, chances)
    assert spacing == pytest.approx((0.5, 0.5, 2.0))


@pytest.mark.parametrize("value", [np.nan, -0.5, 1.5, 255.0])
def test_fractions_outside_0_to_1_are_refused(tmp_path, mask, value):
    chances = mask.astype(np.float32)
    chances[1, 2, 3] = value
    with pytest.raises(UserError, match="no probabilities"):
        read_prediction(write(tmp_path / "p.npy", chances))


def test_other_shapes_and_damaged_files_are_refused(tmp_path, mask):
    path = write(tmp_path / "p0.tif", mask)
    with pytest.raises(UserError, match="p0.tif: has shape"):
        find_predictions([path], [SHAPE[::-1]])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="p0.tif: damaged, cut"):
        read_prediction(path)
