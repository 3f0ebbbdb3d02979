"""From stacks to the files of their columns."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

import find_columns
import predict
from tests.columns.test_instances import STEPS, rods
from tests.columns.test_mending import LABELS
from utils.columns.finding import Landmarks, columns_of
from utils.columns.table import measure_columns
from utils.errors import UserError
from utils.evaluation.columns import score_lattice
from utils.stacks import StackLayout, open_stack, write_stack
from utils.stacks.place import Place


def write(path, volume, spacing=(0.5, 0.5, 0.5)):
    write_stack(path, [volume], StackLayout(volume.shape, volume.dtype, spacing))
    return path


def test_a_map_a_mask_labels_and_grey_values_are_told_apart():
    height, _ = rods()
    mask, grey = (height >= 0.5).astype(np.uint8), np.zeros(height.shape, np.uint8)
    grey[height >= 0.5] = np.random.default_rng(0).integers(180, 255, mask.sum())
    labels = columns_of(height, STEPS).labels
    gappy = np.where(labels == 7, 0, labels).astype(np.uint16) * 3
    for volume, word, count in (
        (height, "probability map", 25),
        (mask * 255, "a mask", 25),
        (grey, "Otsu", 25),
        (gappy, "labels", 24),
        (gappy.astype(np.float32), "labels", 24),
    ):
        found = columns_of(volume, STEPS)
        assert word in found.notes[0] and found.labels.max() == count
        assert len(found.measured.axis) == count


@pytest.mark.parametrize(
    ("volume", "columns"),
    [
        (np.zeros((8, 8, 8), np.uint8), 0),
        (np.full((8, 8, 8), np.nan, np.float32), 0),
        (np.ones((8, 8, 8), np.uint8), 1),
        (np.eye(8, dtype=np.uint8)[:, :, None] * np.ones(8, np.uint8), 8),
        (np.repeat([0, 1, 0, 2, 0, 3], 2)[:, None, None] * np.ones((12, 4, 9), np.uint8), 3),
    ],
    ids=["empty", "NaN", "one blob", "steps", "in a line"],
)
def test_what_is_no_lattice_is_said(volume, columns):
    found = columns_of(volume, STEPS)
    assert found.labels.max() == columns and not found.lattice.patch.any()
    assert any("none" in note for note in found.notes)


def test_a_mask_that_failed_is_told():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(64, 64, 32)), 2.0)
    noise = columns_of((mask > np.quantile(mask, 0.85)).astype(np.uint8), STEPS)
    assert any("fit the lattice without contradiction" in note for note in noise.notes)
    height, _ = rods()
    assert not any("warning" in note for note in columns_of(height, STEPS).notes)
    nearest = np.indices((48, 48)) - 1
    number = np.clip(nearest // 9, 0, 4)
    squares = (number[0] * 5 + number[1] + 1)[..., None] * np.ones(20, np.int32)
    assert any("of the room that they have" in note for note in columns_of(squares, STEPS).notes)


def test_an_image_in_2d_is_refused():
    with pytest.raises(UserError, match="an image of 2 axes"):
        columns_of(np.zeros((8, 8)), STEPS)


def test_a_voxel_that_is_not_finite_is_background():
    height, _ = rods()
    height[6, 6, 15] = np.nan
    found = columns_of(height, STEPS)
    assert found.labels[6, 6, 15] == 0 and found.labels.max() == 25
    assert "1 voxels that are not finite" in found.notes[0]


@pytest.mark.parametrize("view", ["mirrored", "turned"])
def test_the_view_changes_nothing_but_the_free_choice(view):
    """Another view of a stack has the same columns, neighbours and votes."""
    height, _ = rods(radius=4.0)
    rng = np.random.default_rng(4)
    height[:, 30:] = np.roll(height[:, 30:], 3, axis=0)  # no symmetry is left
    height = np.clip(height - 0.02 * rng.random(height.shape), 0, 1).astype(np.float32)
    turn = {"mirrored": lambda a: a[::-1], "turned": lambda a: a.transpose(1, 2, 0)[:, ::-1]}[view]
    plain, found = columns_of(height, STEPS), columns_of(np.ascontiguousarray(turn(height)), STEPS)
    both = np.stack([turn(plain.labels), found.labels]).reshape(2, -1)
    assert (((both > 0).sum(axis=0) == 1).sum() / (both > 0).any(axis=0).sum()) < 0.01
    names = np.unique(both[:, (both > 0).all(axis=0)], axis=1)
    assert names.shape == (2, 25) and len(set(names[1])) == 25
    one = names[1][np.argsort(names[0])] - 1  # row of each plain column among those found
    pairs = {tuple(pair) for pair in np.sort(one[plain.lattice.pairs], axis=1)}
    assert pairs == {tuple(pair) for pair in found.lattice.pairs}
    same = score_lattice(plain.lattice.patch, plain.lattice.pq, found.lattice.pq[one])
    assert same["pairs_right"] == same["pairs_placed"] == 1.0
    assert plain.lattice.votes == found.lattice.votes
    np.testing.assert_allclose(plain.measured.length, found.measured.length[one], rtol=0.02)


def test_renumbering_labels_renumbers_the_table_and_nothing_else():
    order = np.random.default_rng(0).permutation(LABELS.max()) + 1
    plain, found = (columns_of(x, STEPS) for x in (LABELS, np.append(0, order)[LABELS]))
    np.testing.assert_array_equal(found.measured.centre[order - 1], plain.measured.centre)
    np.testing.assert_allclose(found.measured.axis[order - 1], plain.measured.axis, atol=1e-12)
    same = score_lattice(plain.lattice.patch, plain.lattice.pq, found.lattice.pq[order - 1])
    assert same["pairs_right"] == same["pairs_placed"] == 1.0


def test_a_cylinder_s_length_diameter_and_path():
    x, y, z = np.indices((40, 40, 60)).astype(float)
    bend = 0.006 * (z - 30) ** 2
    labels = ((np.hypot(x - 15 - bend, y - 20) <= 5) & (z >= 10) & (z < 50)).astype(np.int32)
    found = measure_columns(labels, (0.5, 0.5, 0.5), labels * 0.75, {2: z})
    path = found.paths[0] / 0.5
    np.testing.assert_allclose(path[:, 0], 15 + 0.006 * (path[:, 2] - 30) ** 2, atol=0.7)
    np.testing.assert_allclose(path[:, 1], 20, atol=0.1)
    assert found.length[0] == pytest.approx(20, rel=0.05)
    assert found.count[0] == pytest.approx(math.pi * 25 * 40, rel=0.05)
    assert found.channels["score"][0] == pytest.approx(0.75)
    assert found.channels["mean_2"][0] == pytest.approx(29.5, abs=0.01)
    assert found.channels["peak_2"][0] == 49


def test_the_script_writes_labels_tables_and_side_file(tmp_path, capsys):
    height, centres = rods()
    source = write(tmp_path / "lobe.nrrd", height)
    flags = ["--input", str(source), "--hemisphere", "R", "--dorsal", "0,-1,0", "--origin", "13"]
    assert find_columns.main([*flags, "--measure", "0"]) == 0
    assert "columns: 25" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "lobe_columns.csv")
    with open_stack(tmp_path / "lobe_labels.tif") as stack:
        labels = stack.read()
        assert stack.spacing == pytest.approx((0.5, 0.5, 0.5))
    row = table.set_index("column_id").loc[labels[24, 24, 15]]
    assert [row.pos_x, row.pos_y] == pytest.approx([12, 12], abs=0.1)
    assert row.vox_x == pytest.approx(24, abs=0.2)
    assert abs(row.axis_z) == pytest.approx(1, abs=1e-3) and row.status == "detected"
    assert row.length == pytest.approx(10, rel=0.05) and 0.5 < row.score < row.peak_0 == 1
    origin = table.set_index("column_id").loc[13]
    assert (origin.p, origin.q) == (0, 0) and set(table.hemisphere) == {"R"}
    paths = pd.read_csv(tmp_path / "lobe_paths.csv")
    assert (paths.groupby("column_id").size() == 9).all() and len(paths) == 9 * len(table)
    side = json.loads((tmp_path / "lobe_lattice.json").read_text())
    assert side["landmarks"] == {"origin": 13, "dorsal": [0.0, -1.0, 0.0], "hemisphere": "R"}
    assert side["unit"] == "micrometre" and side["patches"][0]["columns"] == 25
    pictures = [tmp_path / "lobe_lattice.png", tmp_path / "lobe_columns.png"]
    assert all(path.stat().st_size > 10_000 for path in pictures)
    assert find_columns.main(flags) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    for path in pictures:
        path.unlink()
    assert find_columns.main([*flags, "--overwrite", "--no-preview"]) == 0
    assert not any(path.exists() for path in pictures)


@pytest.mark.usefixtures("unrendered")
def test_channels_of_another_file_are_measured(tmp_path, capsys):
    height, _ = rods()
    source, shape = write(tmp_path / "lobe.tif", (height >= 0.5).astype(np.uint8)), height.shape
    image = np.stack([np.full(shape, 5), np.indices(shape)[2]], axis=1)
    tifffile.imwrite(
        tmp_path / "raw.tif",
        image.transpose(3, 1, 2, 0).astype(np.uint16),
        imagej=True,
        metadata={"axes": "ZCYX"},
    )
    flags = ["--input", str(source), "--image", str(tmp_path / "raw.tif"), "--colour", "peak_1"]
    assert find_columns.main([*flags, "--measure", "0,1"]) == 0
    table = pd.read_csv(tmp_path / "lobe_columns.csv")
    assert (table[["mean_0", "peak_0"]] == 5).all(axis=None)
    np.testing.assert_allclose(table.mean_1, table.vox_z, atol=1e-3)
    assert (table.peak_1 == 24).all()
    assert find_columns.main([*flags, "--measure", "0,1", "--crop", "3:,:,:", "--overwrite"]) == 0
    box = pd.read_csv(tmp_path / "lobe_columns.csv")
    np.testing.assert_allclose(box.mean_1, box.vox_z, atol=1e-3)
    write(tmp_path / "raw.tif", height[1:])
    assert find_columns.main([*flags[:4], "--overwrite"]) == 2
    assert "has (47, 48, 30) voxels (x, y, z), the input (48, 48, 30)" in capsys.readouterr().err


@pytest.mark.usefixtures("unrendered")
def test_the_side_file_says_where_the_file_lies(tmp_path):
    """Places of the table become the file's own by what the side file says, in a box too."""
    affine = np.array([[0, -0.5, 0], [0.5, 0, 0], [0, 0, 2.0]])
    place = Place(affine, np.array([10.0, -20, 5]), space="right-anterior-superior")
    height, _ = rods()
    layout = StackLayout(height.shape, height.dtype, place.spacing, place=place)
    write_stack(tmp_path / "lobe.nrrd", [height], layout)
    flags = ["--input", str(tmp_path / "lobe.nrrd"), "--crop", "2:,10:40,10:40"]
    assert find_columns.main(flags) == 0
    told = json.loads((tmp_path / "lobe_lattice.json").read_text())["file"]
    np.testing.assert_allclose(np.transpose(told["way_to_next_voxel"]), affine)
    np.testing.assert_allclose(told["first_voxel"], place.first)
    with open_stack(tmp_path / "lobe_labels.tif") as labels:
        assert labels.shape == (30, 30, 28)


@pytest.mark.usefixtures("unrendered")
def test_a_box_keeps_the_places_of_the_file(tmp_path):
    source = write(tmp_path / "lobe.npy", rods()[0])
    given = ["--input", str(source), "--voxel_size", "2,1,1"]
    for name, crop in (("whole", []), ("box", ["--crop", "2:,10:40,10:40"])):
        files = ["--output", str(tmp_path / f"{name}_labels.npy")]
        assert find_columns.main([*given, *files, *crop]) == 0
    whole, box = (pd.read_csv(tmp_path / f"{n}_columns.csv") for n in ("whole", "box"))
    nearest = (whole.vox_x - 24).abs() + (whole.vox_y - 24).abs()
    same = (box.vox_x - 24).abs() + (box.vox_y - 24).abs()
    names = ["pos_x", "pos_y", "pos_z", "vox_x", "vox_y", "vox_z"]
    np.testing.assert_allclose(
        box.loc[same.idxmin(), names].astype(float),
        whole.loc[nearest.idxmin(), names].astype(float),
        atol=0.02,
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--memory", "0.001"], "--memory"),
        (["--origin", "99"], "--origin"),
        (["--channel", "3"], "--channel 3"),
        (["--output", "here.png"], "here.png"),
        (["--output", "lobe.npy", "--overwrite"], "is the input itself"),
        (["--colour", "mean_1", "--measure", "0"], "--colour mean_1: not measured; give one of"),
        (["--image", "lobe.npy", "--measure", "1"], "--channel 1"),
        (["--image", "lobe_labels.tif", "--overwrite"], "lobe_labels.tif: is the input itself"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lobe.npy", rods()[0])
    assert find_columns.main(["--input", "lobe.npy", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lobe.npy"]


@pytest.mark.parametrize(
    "flags", [["--dorsal", "0,0,0"], ["--measure", "a"], ["--hemisphere", "X"]]
)
def test_flags_that_cannot_be_read(flags):
    with pytest.raises(SystemExit, match="2"):
        find_columns.main(["--input", "lobe.npy", *flags])


def test_landmarks_are_free_unless_given():
    assert Landmarks() == Landmarks(None, None, None)
    assert "origin, dorsal, hemisphere" in columns_of(rods()[0], STEPS).notes[-1]


@pytest.mark.usefixtures("unrendered")
def test_predict_py_finds_the_same_columns_in_its_map(tmp_path, capsys):
    from tests.test_evaluate import THRESHOLD, make_log, thresholding_weights

    log = make_log(tmp_path / "experiment", THRESHOLD, weights=thresholding_weights())
    source = write(tmp_path / "lobe.tif", rods()[0])
    flags = ["--input", str(source), "--checkpoint", str(log), "--scale", "1"]
    asked = ["--measure", "0", "--dorsal", "0,-1,0", "--hemisphere", "L", "--origin", "7"]
    given = [*flags, "--columns", "--percentiles", "0,100", "--no-preview", *asked]
    assert predict.main(given) == 0
    assert "columns: 25" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "lobe_columns.csv").set_index("column_id")
    assert (table.peak_0 == 1).all() and (table.loc[7, ["p", "q"]] == 0).all()
    assert table.score.between(0.5, 1).all()
    probabilities = str(tmp_path / "lobe_mask_probabilities.tif")
    own = ["--input", probabilities, "--output", str(tmp_path / "own.tif"), "--image", str(source)]
    assert find_columns.main([*own, *asked]) == 0
    tables = [(tmp_path / f"{name}_columns.csv").read_text() for name in ("lobe", "own")]
    assert tables[0] == tables[1]
    assert not (tmp_path / "lobe_lattice.png").exists()
    assert predict.main([*flags, "--measure", "0"]) == 2
    assert "--measure: is of single columns; add --columns" in capsys.readouterr().err
    assert predict.main([*flags, "--columns", "--output", str(tmp_path / "lobe_mask.nrrd")]) == 2
    assert "lobe_columns.csv: exists already" in capsys.readouterr().err
    assert predict.main([*flags, "--columns", "--overwrite"]) == 0
    assert "lobe_lattice.png" in capsys.readouterr().out
    assert {"lobe_lattice.png", "lobe_columns.png"} <= {path.name for path in tmp_path.iterdir()}


def test_predict_py_refuses_columns_of_an_image_before_it_predicts(tmp_path, capsys):
    source = write(tmp_path / "plane.tif", rods()[0][..., 15], spacing=(0.5, 0.5))
    assert predict.main(["--input", str(source), "--columns"]) == 2
    assert "plane.tif is an image of two axes, not a stack" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plane.tif"]
