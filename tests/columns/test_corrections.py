"""Corrections by hand: what is read of them, and how the lattice grows around them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import find_columns
from tests.columns.test_finding import write
from tests.columns.test_instances import rods
from tests.columns.test_lattice import disk, plane
from utils.columns.corrections import fixed_columns, numbered, read_corrections
from utils.columns.diagonal import HEXAGON, SYMMETRIES
from utils.columns.lattice import fit_lattice
from utils.errors import UserError


def test_there_are_twelve_symmetries_and_the_first_changes_nothing() -> None:
    assert len(np.unique(SYMMETRIES, axis=0)) == 12 and (SYMMETRIES[0] == np.eye(2)).all()
    six = {tuple(step) for step in HEXAGON}
    for symmetry in SYMMETRIES:
        assert {tuple(step) for step in HEXAGON @ symmetry.T} == six


@pytest.mark.parametrize("symmetry", SYMMETRIES[[0, 3, 7]])
def test_a_patch_grows_from_fixed_columns_in_their_frame(symmetry: np.ndarray) -> None:
    pq = disk(5)
    points, axes = plane(pq)
    wanted = pq @ symmetry.T + [4, -7]
    rows = np.array([3, 40, 41, 60])
    lattice = fit_lattice(points, axes, fixed=(rows, wanted[rows]))
    assert (lattice.patch == 1).all()
    np.testing.assert_array_equal(lattice.pq, wanted)


def test_one_fixed_column_moves_the_origin_and_nothing_else() -> None:
    points, axes = plane(disk(4))
    before = fit_lattice(points, axes)
    after = fit_lattice(points, axes, fixed=(np.array([9]), before.pq[[9]] + [2, 1]))
    np.testing.assert_array_equal(after.pq, before.pq + [2, 1])


def test_a_column_that_fits_nowhere_keeps_what_a_person_gave() -> None:
    points, axes = plane(disk(4))
    pq = disk(4)
    points[5] += 0.5 * 7.0 * np.array([0.5, 0.8, 0.0])
    lattice = fit_lattice(points, axes)
    assert lattice.patch[5] == 0
    fixed = fit_lattice(points, axes, fixed=(np.arange(len(pq)), pq))
    np.testing.assert_array_equal(fixed.pq, pq)
    assert (fixed.patch == 1).all()


def test_only_the_patch_that_was_corrected_changes() -> None:
    big, small = disk(4), disk(3)
    points = np.concatenate([plane(big)[0], plane(small)[0] + [0.0, 200.0, 0.0]])
    axes = np.tile([0.0, 0.0, 1.0], (len(points), 1))
    before = fit_lattice(points, axes)
    after = fit_lattice(points, axes, fixed=(np.array([0]), before.pq[[0]] + [1, 0]))
    own = before.patch == 1
    np.testing.assert_array_equal(after.pq[own], before.pq[own] + [1, 0])
    np.testing.assert_array_equal(after.pq[~own], before.pq[~own])


def test_one_place_for_two_columns_is_refused() -> None:
    points, axes = plane(disk(4))
    with pytest.raises(UserError, match=r"two columns .* p = 1, q = 2"):
        fit_lattice(points, axes, fixed=(np.array([1, 8]), np.array([[1, 2], [1, 2]])))


def test_a_row_that_was_changed_takes_the_place_of_one_that_was_not() -> None:
    pq = disk(4)
    points, axes = plane(pq)
    points = np.concatenate([points, points[:1] + [2.5, 1.5, 0.0]])  # two stand on one site
    axes = np.tile(axes[:1], (len(points), 1))
    before = fit_lattice(points, axes)
    assert sorted(before.patch[[0, -1]]) == [0, 1]
    lost = 0 if before.patch[0] == 0 else len(points) - 1
    held = len(points) - 1 - lost
    rows = np.append(np.flatnonzero(before.patch), lost)
    wanted = np.concatenate([before.pq[rows[:-1]], before.pq[[held]]])
    after = fit_lattice(points, axes, fixed=(rows, wanted))
    assert (after.patch[lost], after.patch[held]) == (1, 0)
    np.testing.assert_array_equal(after.pq[lost], before.pq[held])
    others = np.setdiff1d(rows, [lost, held])
    np.testing.assert_array_equal(after.pq[others], before.pq[others])


def test_labels_are_numbered_in_order() -> None:
    np.testing.assert_array_equal(
        numbered(np.array([[0, 7, -1], [9, 7, 0]]), np.zeros((2, 3), int)), [[0, 1, 0], [2, 1, 0]]
    )
    np.testing.assert_array_equal(numbered(np.array([4.0, 2.0]), np.zeros(2, int)), [2, 1])
    assert numbered(np.array([0.0, np.nan]), np.zeros(2, int)).max() == 0


def test_rows_name_columns_by_number_or_by_place() -> None:
    labels = np.zeros((6, 4, 3), np.int32)
    labels[1], labels[4] = 1, 2
    at = {"pos_x": [12.0], "pos_y": [1.0], "pos_z": [0.0], "p": [3], "q": [-1]}
    rows, pq = fixed_columns(pd.DataFrame(at), labels, (2.0, 1.0, 1.0), (4.0, 0.0, 0.0))
    assert rows.tolist() == [1] and pq.tolist() == [[3, -1]]
    by_number = pd.DataFrame({"column_id": [2], "p": [3], "q": [-1]})
    assert fixed_columns(by_number, labels, (1.0,) * 3, (0.0,) * 3)[0].tolist() == [1]
    for wrong in ({"column_id": [3], "p": [0], "q": [0]}, at | {"pos_x": [8.0]}):
        with pytest.raises(UserError, match="line 2"):
            fixed_columns(pd.DataFrame(wrong), labels, (2.0, 1.0, 1.0), (4.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.csv",
            "\ufeffcolumn_id,p,q,pos_x,pos_y,pos_z,status\n7,3,-1,,,,detected\n,4,0,1.5,2,3,\n",
        ),
        ("a.CSV", "column_id;p;q;pos_x;pos_y;pos_z\n7;3;-1;;;\n;4;0;1,5;2;3\n"),
        ("a.tsv", "column_id\tp\tq\tpos_x\tpos_y\tpos_z\n7.0\t3.0\t-1\t\t\t\n\t4\t0\t1.5\t2\t3\n"),
        (
            "Results.csv",
            " ,column_id,p,q,pos_x,pos_y,pos_z,status\n1,7,3,-1,NaN,NaN,NaN,detected\n"
            "2,NaN,4,0,1.500,2,3,detected\n3,8,1,1,0,0,0,inferred\n4,9,NaN,NaN,0,0,0,detected\n",
        ),
    ],
    ids=["byte order mark", "semicolons", "tabs", "Fiji"],
)
def test_tables_as_programs_save_them(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    rows = read_corrections(path, (2, 2, 2)).rows
    assert rows is not None
    assert rows[["p", "q"]].to_numpy().tolist() == [[3, -1], [4, 0]]
    assert rows["column_id"].tolist()[0] == 7 and np.isnan(rows["column_id"].tolist()[1])
    labels = np.zeros((3, 3, 7), np.int32)
    labels[2, 2, 2], labels[0, 0, 6] = 4, 7
    found, pq = fixed_columns(rows, labels, (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    assert found.tolist() == [6, 3] and pq.tolist() == [[3, -1], [4, 0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("column_id,p\n1,2\n", "must have the columns p, q"),
        ("p,q\n1,2\n", "must have the columns p, q and column_id"),
        ("column_id,p,q\n1,2,x\n", "line 2"),
        ("column_id,p,q\n1,0,0\n2,1.5,0\n", "line 3"),
        ("column_id,p,q\n1,,\n", "no row"),
        ("column_id,p,q\n,1,2\n", "line 2"),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_says_nothing(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_corrections(path, (2, 2, 2))


def test_the_script_takes_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    height, _ = rods()
    source = write(tmp_path / "lobe.npy", height)
    flags = ["--input", str(source), "--no-preview", "--overwrite"]
    assert find_columns.main(flags) == 0
    path = tmp_path / "lobe_columns.csv"
    before = pd.read_csv(path)
    rows = before[["column_id", "p", "q"]].assign(p=before.p + 10).iloc[[0, 7]]
    rows.to_csv(tmp_path / "mended.csv", index=False)
    assert find_columns.main([*flags, "--corrections", str(tmp_path / "mended.csv")]) == 0
    assert "grown around 2 columns" in capsys.readouterr().out
    after = pd.read_csv(path)
    pd.testing.assert_series_equal(after.p, before.p + 10)
    pd.testing.assert_series_equal(after.q, before.q)
    assert find_columns.main([*flags, "--corrections", str(path)]) == 0, "its own table"
    pd.testing.assert_frame_equal(pd.read_csv(path), after)
    given = [*flags, "--corrections", str(path), "--origin", "3"]
    assert find_columns.main(given) == 2 and "--origin" in capsys.readouterr().err

    labels = np.zeros(height.shape, np.uint16)
    labels[3:9, 3:9, 5:25], labels[12:18, 3:9, 5:25] = 7, 4
    edited = write(tmp_path / "edited.tif", labels)
    assert find_columns.main([*flags, "--corrections", str(edited)]) == 0
    table = pd.read_csv(path)
    assert table.n_voxels.tolist() == [6 * 6 * 20] * 2
    assert (table.score < 1).all(), "the map is what scores them"
    small = write(tmp_path / "small.tif", labels[:9])
    assert find_columns.main([*flags, "--corrections", str(small)]) == 2
    assert "the input (48, 48, 30)" in capsys.readouterr().err
    assert find_columns.main([*flags, "--corrections", str(source)]) == 2
    assert "labels are whole numbers" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "channels.tif", labels.T, imagej=True, metadata={"axes": "CYX"})
    assert find_columns.main([*flags, "--corrections", str(tmp_path / "channels.tif")]) == 0
    assert pd.read_csv(path).n_voxels.tolist() == [6 * 6 * 20] * 2
