"""What an evaluation leaves in its folder; the pictures are tested in tests/figures."""

import json
import math

import numpy as np
import pytest

from utils.errors import UserError
from utils.evaluation import results_folder
from utils.evaluation.comparison import Compared, subtract
from utils.evaluation.results_folder import make_folder, write_comparison
from utils.evaluation.score_table import read_csv
from utils.evaluation.scored_volumes import average, score_prediction
from utils.figures.evaluated import save_evaluation


@pytest.fixture
def unrendered(monkeypatch):
    monkeypatch.setattr("utils.figures.canvas.save_figure", lambda figure, path, dpi=110: path)


def test_a_folder_is_made_and_tried(tmp_path):
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--output .*file: cannot be written \(File exists\)"):
        make_folder(tmp_path / "file")


@pytest.mark.usefixtures("unrendered")
def test_table_and_summary_hold_what_was_scored(tmp_path, small_volume):
    nothing = np.zeros(small_volume.image.shape, np.float32)
    given = {"seconds": 1.5, "tolerance": None, "spacing": None}
    results = [
        score_prediction(index, small_volume, prediction, **given)
        for index, prediction in ((4, small_volume.mask.astype(np.float32)), (7, nothing))
    ]
    means = average([result.scores for result in results], seed=0)
    paths = results_folder.write_results(tmp_path, results, means, {"epoch": 3})
    assert [path.name for path in paths] == ["metrics.csv", "summary.json"]
    drawn = save_evaluation(results, means, tmp_path)
    names = [path.name for path in drawn]
    assert names == ["predictions.png", "columns.png", "conditions.png"]
    rows = read_csv(paths[0])
    assert rows[4]["iou"] == 1 and rows[7]["iou"] == 0 and math.isnan(rows[7]["precision"])
    summary = json.loads(paths[1].read_text())
    assert summary["scores"]["iou"]["mean"] == 0.5 and summary["epoch"] == 3
    assert summary["empty"] == {"truths": 0, "predictions": 1}
    assert (
        summary["columns"]["rendered"] == rows[4]["columns_rendered"] + rows[7]["columns_rendered"]
    )
    assert summary["rank_correlation_of_iou"]["gain"] is None  # of two volumes there is none
    assert summary["prediction_seconds"] == 3


def test_a_comparison_says_of_what(tmp_path):
    a, b = ({0: {"iou": low}, 1: {"iou": low + 0.1}} for low in (0.3, 0.5))
    sides = Compared("first", (0, 1), None), Compared("second", (0, 1), {"seed": 5})
    differences = subtract(a, b, seed=0)
    paths = write_comparison(tmp_path, sides, (a, b), differences, {"bootstrap_seed": 0})
    summary = json.loads(paths[1].read_text())
    assert (summary["a"], summary["b"], summary["volumes"]) == ("first", "second", [0, 1])
    assert summary["data"] == {"seed": 5} and summary["bootstrap_seed"] == 0
    assert summary["differences"]["iou"]["difference"]["mean"] == pytest.approx(0.2)
    assert paths[0].read_text().splitlines()[0] == "volume,iou_a,iou_b,iou_difference"
