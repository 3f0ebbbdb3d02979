"""Labelled stacks as truth, beside a slow plain twin; predictions in files, by their names."""

import math

import numpy as np
import pytest
from scipy import ndimage

from tests.stacks.stacks import save
from utils.columns.finding import columns_of
from utils.errors import UserError
from utils.evaluation.columns import Truth, score_found
from utils.evaluation.scoring import ToScore, score_volume
from utils.evaluation.stacks import (
    LabelledSet,
    LabelledVolume,
    PredictionFiles,
    find_predictions,
    stacks_at,
)
from utils.stacks import StackLayout, write_stack

GIVEN = {"seconds": 1.0, "tolerance": 1.0, "spacing": (0.5, 0.5, 2.0)}


def rods(shape=(40, 40, 30), apart=8):
    """Upright columns of 5 x 5 voxels, each with its own number."""
    labels = np.zeros(shape, np.int32)
    corners = [(x, y) for x in range(2, 36, apart) for y in range(2, 36, apart)]
    for k, (x, y) in enumerate(corners):
        labels[x : x + 5, y : y + 5, 3:27] = k + 1
    return labels


@pytest.fixture
def volume():
    labels = rods()
    return LabelledVolume(labels * 2, labels, np.ones(labels.shape, bool), (1.0, 1.0, 1.0))


def in_part(volume, known):
    return LabelledVolume(volume.image, np.where(known, volume.instances, 0), known, volume.edges)


def plain_twin(probabilities, mask, known):
    """Voxel by voxel, of those that somebody annotated."""
    tp = fp = fn = tn = 0
    for voxel in np.argwhere(known):
        found, true = probabilities[tuple(voxel)] >= 0.5, mask[tuple(voxel)] > 0
        tp, fp = tp + (found and true), fp + (found and not true)
        fn, tn = fn + (true and not found), tn + (not true and not found)
    count = tp + fp + fn + tn
    return {
        "foreground": (tp + fn) / count,
        "found": (tp + fp) / count,
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "total_error": (fp + fn) / count,
    }


@pytest.mark.parametrize("share", [0.05, 0.6, 1.0])
def test_scores_are_those_of_the_annotated_voxels(volume, share):
    rng = np.random.default_rng(0)
    known = rng.random(volume.image.shape) < share
    chances = rng.random(known.shape).astype(np.float32)
    row = score_volume(0, in_part(volume, known), chances, **GIVEN).row
    expected = plain_twin(chances, volume.mask, known)
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    lacking = ("sheet", "baseline", "left_out", "gain", "curvature", "spacing_voxels")
    assert not [name for name in row if any(word in name for word in lacking)]


def test_what_nobody_annotated_counts_nowhere(volume):
    rng = np.random.default_rng(0)
    known = np.zeros(volume.image.shape, bool)
    known[..., [5, 6, 15]] = True
    part, chances = in_part(volume, known), rng.random(known.shape).astype(np.float32)
    row = score_volume(0, part, chances, **GIVEN).row
    for other in (np.zeros_like(chances), np.ones_like(chances)):
        changed = score_volume(0, part, np.where(known, chances, other), **GIVEN)
        assert changed.row == row
        assert np.isnan(changed.slices[2]).sum() == (~known[..., changed.z]).sum()


def test_an_annotated_box_is_scored_as_that_part_alone(volume):
    known = np.zeros(volume.image.shape, bool)
    box = (slice(0, 33), slice(9, 40), slice(2, 28))
    known[box] = True
    shown = ndimage.shift(volume.mask.astype(np.float32), (1, 0, 0), order=0)
    part = LabelledVolume(volume.image[box], volume.instances[box], known[box], volume.edges)
    whole = score_volume(0, in_part(volume, known), shown, **GIVEN).row
    assert whole == score_volume(0, part, shown[box], **GIVEN).row
    nothing = np.zeros_like(shown)
    assert score_volume(0, in_part(volume, known), nothing, **GIVEN).row["hd95"] == pytest.approx(
        math.hypot(33, 31, 26)
    )


def test_columns_with_numbers_are_counted(volume):
    shown = np.isin(volume.instances, [1, 2, 3]).astype(np.float32)
    row = score_volume(0, volume, shown, **GIVEN).row
    assert (row["columns_labelled"], row["covered_labelled"]) == (25, pytest.approx(3 / 25))
    assert row["recall_labelled"] == row["recall"] == pytest.approx(3 / 25)


def scores_of(shown, stack):
    found = columns_of(shown, stack.edges, threshold=0.5)
    return score_found(found, stack, Truth.of(stack))


@pytest.mark.parametrize("edges", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (1.0, 1.0, 3.0)])
def test_the_truth_gives_all_columns(volume, edges):
    stack = LabelledVolume(volume.image, volume.instances, volume.known, edges)
    scores = scores_of(volume.mask.astype(np.float32), stack)
    ones = [f"instance_{name}" for name in ("f1_iou30", "f1_iou50", "f1_line", "pq")]
    assert [scores[name] for name in ones] == [1.0] * 4
    assert scores["instance_axis_error"] == pytest.approx(0, abs=1e-3)
    assert scores["instance_false_splits"] == scores["instance_false_merges"] == 0
    assert not [name for name in scores if "pairs" in name or "rendered" in name]
    truth = Truth.of(stack)
    assert truth.spacing == pytest.approx(8 * edges[0])
    assert np.abs(truth.axes[:, 2]) == pytest.approx(1)


def test_columns_are_compared_where_they_are_annotated(volume):
    known = np.zeros(volume.image.shape, bool)
    known[:20, :, [8, 20]] = True
    shown = volume.mask.astype(np.float32)
    shown[20:] = 0  # nothing is found there, and nobody asks
    scores = scores_of(shown, in_part(volume, known))
    assert scores["instance_recall_iou50"] == scores["instance_precision_iou50"] == 1
    assert not [name for name in scores if "line" in name or "axis" in name]
    shown[:10] = 0
    assert scores_of(shown, in_part(volume, known))["instance_recall_iou50"] < 1


def test_columns_of_a_mask_are_not_told_apart(volume):
    mask = LabelledVolume(volume.image, volume.mask.astype(np.int32), volume.known, volume.edges)
    assert not mask.told_apart
    row = score_volume(0, mask, volume.mask.astype(np.float32), **GIVEN).row
    assert row["iou"] == 1 and not [name for name in row if "labelled" in name]


def test_stacks_are_read_as_they_were_drawn(tmp_path):
    labels = rods((12, 12, 10)).astype(np.int16)
    drawn = np.where(labels == 6, 700, labels)
    drawn[5, 5] = -1
    for name, array in {"images/b.tif": labels, "labels/b.npy": drawn.astype(np.int16)}.items():
        (tmp_path / name).parent.mkdir()
        save(tmp_path / name, array, spacing=(0.5, 0.5, 2.0))
    stacks = LabelledSet(str(tmp_path), ignore_label=-1)
    assert (len(stacks), stacks.names, stacks.shapes) == (1, ["b"], [(12, 12, 10)])
    volume = stacks.read_volume(0)
    np.testing.assert_array_equal(volume.known, drawn != -1)
    order = np.searchsorted([0, 1, 2, 7, 700], np.maximum(drawn, 0))
    np.testing.assert_array_equal(volume.instances, order)
    assert volume.edges == pytest.approx((0.5, 0.5, 2.0)) and volume.told_apart
    with stacks.opened(0) as pair:
        np.testing.assert_array_equal(pair.image.read(), labels)
    count = np.count_nonzero(volume.instances)
    assert f"1,430 annotated (99.3 %), {count:,} of these in 4 columns" in stacks.lines[0]
    assert (
        len(ToScore(PredictionFiles({}), stacks, (0,)).notes) == 2
    )  # what labels do not tell, and
    with pytest.raises(UserError, match=r"b.npy: holds the label -1"):
        LabelledSet(str(tmp_path))


def test_all_labelled_and_nothing_else(tmp_path):
    for name, value in {"i": np.arange(60), "l": np.ones(60)}.items():
        np.save(tmp_path / f"{name}.npy", value.reshape(3, 4, 5).astype(np.uint8))
    given = f"{tmp_path}/i.npy={tmp_path}/l.npy"
    assert "--ignore_label 7 marks no voxel" in LabelledSet(given, ignore_label=7).notes
    volume = LabelledSet(given).read_volume(0)
    assert (volume.instances == 1).all() and not volume.told_apart


SHAPE = (5, 6, 7)


def write(path, values, spacing=None):
    write_stack(path, [values], StackLayout(values.shape, values.dtype, spacing))
    return path


@pytest.fixture
def mask():
    return (np.random.default_rng(0).random(SHAPE) < 0.5).astype(np.uint8)


def read(path):
    return PredictionFiles({0: path}).predict(0, None)


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
        found, spacing = read(path)
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == np.float32 and spacing is None


def test_probabilities_are_kept_with_the_voxel_size(tmp_path, mask):
    chances = mask * np.float32(0.75)
    path = write(tmp_path / "p.tif", chances, (0.5, 0.5, 2.0))
    found, spacing = read(path)
    np.testing.assert_array_equal(found, chances)
    assert spacing == pytest.approx((0.5, 0.5, 2.0))


@pytest.mark.parametrize("value", [np.nan, -0.5, 1.5, 255.0])
def test_fractions_outside_0_to_1_are_refused(tmp_path, mask, value):
    chances = mask.astype(np.float32)
    chances[1, 2, 3] = value
    with pytest.raises(UserError, match="no probabilities"):
        read(write(tmp_path / "p.npy", chances))


def test_other_shapes_and_damaged_files_are_refused(tmp_path, mask):
    path = write(tmp_path / "p0.tif", mask)
    with pytest.raises(UserError, match="p0.tif: has shape"):
        find_predictions([path], [SHAPE[::-1]])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="p0.tif: damaged, cut"):
        read(path)
