"""Studies of any size are drawn, with a table where two flags were tried."""

from pathlib import Path

import numpy as np
import pytest

from utils.figures import studies


def study_trial(number: int, iou: float | None, state: str, **values: object) -> dict:
    curve = [] if iou is None else [iou / 2, iou]
    return {"trial": number, "state": state, "iou": iou, "curve": curve, "values": values}


def test_a_study_of_two_flags_gets_a_table_of_means() -> None:
    trials = [
        study_trial(0, 0.4, "complete", depth=2, loss_type="bce", seed=0),
        study_trial(1, 0.6, "complete", depth=2, loss_type="bce", seed=1),
        study_trial(2, 0.3, "pruned", depth=10, loss_type="bce", seed=0),
        study_trial(3, 0.7, "complete", depth=10, loss_type="dice", seed=0),
        study_trial(4, None, "failed", depth=2, loss_type="dice", seed=0),
    ]
    names, values, table = studies._grid_of(trials, ["depth", "loss_type", "seed"])
    assert (names, values) == (["depth", "loss_type"], [[2, 10], ["bce", "dice"]])
    assert table[0, 0] == pytest.approx(0.5) and table[1, 1] == pytest.approx(0.7)
    assert np.isnan(table[0, 1]) and np.isnan(table[1, 0])
    assert studies._grid_of(trials, ["depth", "seed"]) is None


@pytest.mark.parametrize("count", [1, 9])
def test_studies_are_drawn(count: int, tmp_path: Path) -> None:
    states = ("complete", "pruned", "failed", "running")
    trials = [
        study_trial(
            *(k, None if k % 4 == 2 else 0.1 * k, states[k % 4]),
            start_lr=1e-4 * 3**k,
            resblocks=k % 2 == 0,
        )
        for k in range(count)
    ]
    path = studies.save_study(trials, tmp_path / "s.png", title="Why?", baseline=0.44)
    assert path.stat().st_size > 10_000
    with pytest.raises(ValueError, match="no trial"):
        studies.save_study([], tmp_path / "none.png")
