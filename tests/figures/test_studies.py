"""Studies of any size are drawn, whatever became of their trials."""

from pathlib import Path

import matplotlib
import optuna
import pytest
from PIL import Image

from utils.figures import studies


@pytest.mark.parametrize("count", [0, 1, 30])
def test_studies_are_drawn(count: int, tmp_path: Path) -> None:
    def train(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("start_lr", 1e-4, 1e-2, log=True)
        trial.suggest_categorical("resblocks", [False, True])
        trial.report(rate, 1)
        if trial.number % 4 == 2:
            raise optuna.TrialPruned
        return float("nan") if trial.number % 4 == 3 else 0.01 * trial.number

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.optimize(train, count)
    style = dict(matplotlib.rcParams)
    paths = studies.save_study(study, tmp_path, title="Why?", baseline=0.44)
    assert [path.name for path in paths] == ["history.png", "curves.png", "flags.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 500
    assert dict(matplotlib.rcParams) == style  # Optuna's are not left behind
    assert not matplotlib.pyplot.get_fignums()
