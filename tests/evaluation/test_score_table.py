import math

import pytest

from utils.errors import UserError
from utils.evaluation.score_table import as_csv, read_csv

ROWS = [{"volume": 3, "iou": 0.1 + 0.2, "hd95": math.nan}, {"volume": 0, "iou": 1, "hd95": 2.5}]


def test_a_table_comes_back_as_it_was(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(as_csv(ROWS))
    assert path.read_text().splitlines()[1] == "3,0.30000000000000004,"
    found = read_csv(path)
    assert list(found) == [3, 0]
    assert found[0] == {"iou": 1.0, "hd95": 2.5}
    assert found[3]["iou"] == 0.1 + 0.2 and math.isnan(found[3]["hd95"])


@pytest.mark.parametrize(
    "text", ["", "volume,iou\n", "name,iou\n1,0.5\n", "volume,iou\nx,0.5\n",
             "volume,iou\n1,high\n", "volume,iou\n1\n", "volume,iou\n1,0.5\n1,0.6\n",
             "volume,dice\n1,0.5\n", "\x00\xff"]
)  # fmt: skip
def test_what_is_no_table_is_named(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="metrics.csv"):
        read_csv(path)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_csv(tmp_path / "metrics.csv")
