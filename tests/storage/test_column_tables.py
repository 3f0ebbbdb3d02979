import hashlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from utils.errors import UserError
from utils.storage.column_tables import read_column_table

HEAD = "column_id,p,q,proximal_x,proximal_y,proximal_z,distal_x,distal_y,distal_z"
ROWS = ["1,0,0,0,0,0,0,0,9.5", "2,1,0,5,0,0,5,0,9", "3,0,-1,0,5,0,0,5,9"]
PATH_HEAD = "p,q,depth,x,y,z"
PATHS = [f"{p},{q},{d},{5 * p},{-5 * q},{z}" for p, q in ((1, 0), (0, -1), (0, 0))
         for d, z in ((10, 5), (0, 0), (120, 9))]  # fmt: skip


def write(path, head, rows):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_ends_are_read_in_the_order_of_the_table(tmp_path):
    file = write(tmp_path / "columns.csv", HEAD, ROWS)
    table = read_column_table(file)
    assert table.name == "columns.csv" and table.paths is None
    assert table.hash == hashlib.sha256(file.read_bytes()).hexdigest()
    assert_array_equal(table.p, [0, 1, 0])
    assert_array_equal(table.q, [0, 0, -1])
    assert_array_equal(table.proximal, [[0, 0, 0], [5, 0, 0], [0, 5, 0]])
    assert_array_equal(table.distal, [[0, 0, 9.5], [5, 0, 9], [0, 5, 9]])
    assert table.nodes.shape == (3, 9, 3)


def test_commas_at_the_ends_of_lines_move_no_cell(tmp_path):
    plain = read_column_table(write(tmp_path / "plain.csv", HEAD, ROWS))
    table = read_column_table(write(tmp_path / "commas.csv", HEAD, [f"{row}," for row in ROWS]))
    assert_array_equal(table.p, plain.p)
    assert_array_equal(table.distal, plain.distal)


def test_paths_are_sorted_by_depth_and_follow_the_table(tmp_path):
    file = write(tmp_path / "columns.csv", HEAD, ROWS)
    extra = [f"7,7,{d},0,0,{d}" for d in (0, 10)]  # a column that the user left out
    paths = write(tmp_path / "paths.csv", PATH_HEAD, [*PATHS, *extra])
    table = read_column_table(file, paths)
    assert table.hash != read_column_table(file).hash
    for (p, q), nodes in zip(((0, 0), (1, 0), (0, -1)), table.paths, strict=True):
        assert_array_equal(nodes, [[5 * p, -5 * q, z] for z in (0, 5, 9)])
    assert table.paths.dtype == np.float64


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (HEAD.replace("distal_y", "dist_y"), ROWS, "lacks the columns distal_y"),
        (HEAD, ROWS[:1], "1 columns; at least two"),
        (HEAD, [], "0 columns; at least two"),
        (HEAD, [*ROWS, "4,0,0,1,1,1,2,2,2"], "p 0, q 0 stands there twice"),
        (HEAD, [*ROWS, "4,3,0,,1,1,2,2,2"], "row 4, proximal_x: not a finite number"),
        (HEAD, [*ROWS, "4,3,0,1,1,1,2,inf,2"], "row 4, distal_y: not a finite number"),
        (HEAD, [*ROWS, "4,3,0,1,1,1,2,2,two"], "row 4, distal_z: not a finite number"),
        (HEAD, [*ROWS, "4,3.5,0,1,1,1,2,2,2"], "whole numbers"),
        (HEAD, [*ROWS, "4,3,0,1,1,1,1,1,1"], "p 3, q 0 has both ends"),
        (HEAD, [*ROWS, "4,3,0,1,1,1,1,1,1,1,1,1,1"], "no CSV table"),
        (HEAD, [f"{row},7" for row in ROWS], "no CSV table .*header"),
        (HEAD, [*ROWS, "4,3,0,5,0,2,5,0,9"], "p 1, q 0 stands where another column does"),
        ("", [], "no CSV table"),
    ],
)
def test_bad_tables_are_one_line_that_names_the_file(tmp_path, head, rows, message):
    file = write(tmp_path / "columns.csv", head, rows)
    with pytest.raises(UserError, match=rf"columns\.csv: .*{message}"):
        read_column_table(file)


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (PATH_HEAD.replace("depth", "bin"), PATHS, "lacks the columns depth"),
        (PATH_HEAD, PATHS[:-1], "p 0, q 0 lacks depths"),
        (PATH_HEAD, PATHS[3:], "p 1, q 0 lacks depths"),
        (PATH_HEAD, PATHS[::3], "lacks depths"),
        (PATH_HEAD, [], "lacks depths"),
        (PATH_HEAD, [*PATHS, PATHS[0]], "p 1, q 0, depth 10 stands there twice"),
        (PATH_HEAD, [*PATHS[:-1], "0,0,120,0,0,0"], "p 0, q 0 has both ends"),
        (PATH_HEAD, [*PATHS, "0,0,130,nan,0,0"], "row 10, x: not a finite number"),
        (
            PATH_HEAD,
            [row.replace("0,0,0,0,0,0", "0,0,0,5,0,0") for row in PATHS],
            "p 0, q 0 stands where another column does",
        ),
        (
            PATH_HEAD,
            [
                f"{p},{q},{d},{5 * p},{-5 * q},{9 - d}"
                for p, q in ((0, 0), (1, 0), (0, -1))
                for d in range(10)
            ],
            "depth must grow from proximal to distal",
        ),
    ],
)
def test_bad_paths_are_one_line_that_names_the_file(tmp_path, head, rows, message):
    file = write(tmp_path / "columns.csv", HEAD, ROWS)
    paths = write(tmp_path / "paths.csv", head, rows)
    with pytest.raises(UserError, match=rf"paths\.csv: .*{message}"):
        read_column_table(file, paths)


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        read_column_table(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match=r"binary\.csv: no CSV table"):
        read_column_table(tmp_path / "binary.csv")
