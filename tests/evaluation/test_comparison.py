import json

import pandas as pd
import pytest

from utils.errors import UserError
from utils.evaluation.comparison import check_same_volumes, read_earlier


def test_unlike_volumes_are_told_apart():
    data = {"seed": 1, "shape": [8, 8, 8], "config": {}}
    other = {**data, "shape": [9, 9, 9]}
    check_same_volumes("ab", [(0, 1), (1, 0)], [data, None])
    with pytest.raises(UserError, match=r"\(2 and 3\): only B has volume 2"):
        check_same_volumes("ab", [(0, 1), (0, 1, 2)], [data, None])
    with pytest.raises(UserError, match="--compare a b: .* shape of the data differs"):
        check_same_volumes("ab", [(0, 1), (0, 1)], [data, other])


def test_scores_of_an_earlier_evaluation_are_found(tmp_path):
    assert read_earlier(str(tmp_path), None) is None
    (tmp_path / "metrics.csv").write_text("volume,iou\n0,0.5\n3,0.25\n")
    found = read_earlier(str(tmp_path / "metrics.csv"), None)
    assert found.data is None and found.volumes == (0, 3)
    pd.testing.assert_frame_equal(
        found.scores, pd.DataFrame({"iou": [0.5, 0.25]}, index=pd.Index([0, 3], name="volume"))
    )
    (tmp_path / "summary.json").write_text(json.dumps({"data": {"seed": 7}}))
    found = read_earlier(str(tmp_path), 2)
    assert found.data == {"seed": 7} and found.volumes == (0,)
    with pytest.raises(UserError, match="--volumes 0: .* holds none of them"):
        read_earlier(str(tmp_path), 0)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_summary_that_is_none_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text("volume,iou\n0,0.5\n")
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match="summary.json: is no summary"):
        read_earlier(str(tmp_path), None)
