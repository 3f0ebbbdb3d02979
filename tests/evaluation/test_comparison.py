import json
import math

import pandas as pd
import pytest

from utils.errors import UserError
from utils.evaluation.comparison import check_same_volumes, read_earlier


def test_unlike_volumes_are_told_apart():
    data = {"seed": 1, "shape": [8, 8, 8], "config": {}}
    other = {**data, "shape": [9, 9, 9]}
    check_same_volumes("ab", [(0, 1), (1, 0)], [data, {}])
    with pytest.raises(UserError, match="only B has volume 2"):
        check_same_volumes("ab", [(0, 1), (0, 1, 2)], [data, {}])
    with pytest.raises(UserError, match="--compare a b: .* shape of the data differs"):
        check_same_volumes("ab", [(0, 1), (0, 1)], [data, other])


def test_scores_of_an_earlier_evaluation_are_found(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("volume,iou\n0,0.5\n3,0.25\n")
    found = read_earlier(path)
    assert not found.data and found.volumes == (0, 3)
    pd.testing.assert_frame_equal(
        found.scores, pd.DataFrame({"iou": [0.5, 0.25]}, index=pd.Index([0, 3], name="volume"))
    )
    (tmp_path / "summary.json").write_text(json.dumps({"data": {"seed": 7}}))
    found = read_earlier(path, 2)
    assert found.data == {"seed": 7} and found.volumes == (0,)
    with pytest.raises(UserError, match="metrics.csv: .*one row a volume"):
        read_earlier(path, 0)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_summary_that_is_none_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text("volume,iou\n0,0.5\n")
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match="summary.json .* is not as evaluate.py writes it"):
        read_earlier(tmp_path / "metrics.csv")


def test_a_number_comes_back_as_it_was(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("volume,iou,hd95\n3,0.30000000000000004,\n0,1.0,2.5\n")
    found = read_earlier(path).scores
    assert list(found.index) == [3, 0] and found.loc[3, "iou"] == 0.1 + 0.2
    assert math.isnan(found.loc[3, "hd95"]) and found.loc[0].to_dict() == {"iou": 1, "hd95": 2.5}


@pytest.mark.parametrize(
    "text", ["", "volume,iou\n", "name,iou\n1,0.5\n", "volume,iou\nx,0.5\n",
             "volume,iou\n1,high\n", "volume,iou\n1\n", "volume,iou\n1,0.5,3\n",
             "volume,iou\n1.5,0.5\n", "volume,iou\n1,0.5\n1,0.6\n",
             "volume,dice\n1,0.5\n", "\x00\xff"]
)  # fmt: skip
def test_what_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="metrics.csv"):
        read_earlier(path)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_earlier(tmp_path / "metrics.csv")
