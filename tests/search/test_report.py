"""The tables of a study: rows, means over seeds, what is printed."""

from __future__ import annotations

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from scipy import stats

from utils.search.report import format_table, format_trials, means_over_seeds, trials_table


def study_of(*trials: tuple) -> optuna.Study:
    """Make a study of (state, IoU, depth, seed)."""
    study = optuna.create_study(direction="maximize")
    for state, iou, depth, seed in trials:
        known = {"iou": iou, "epoch": iou and 2, "epochs_trained": 3, "minutes": 1.5}
        known |= {"parameters": 1234, "directory": "x", "reason": "done"}
        if state == TrialState.FAIL:
            known["reason"] = "too many parameters"
        values = {"depth": depth, "seed": seed, "resblocks": True}
        choices = {"depth": (2, 3, 4), "seed": (0, 1, 2), "resblocks": (False, True)}
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=iou if state == TrialState.COMPLETE else None,
                params=values,
                distributions={name: CategoricalDistribution(choices[name]) for name in values},
                user_attrs=known,
            )
        )
    return study


@pytest.fixture
def table() -> pd.DataFrame:
    complete, failed, pruned = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED
    return trials_table(
        study_of(
            (complete, 0.40, 2, 0),
            (complete, 0.50, 3, 0),
            (failed, None, 4, 0),
            (complete, 0.44, 2, 1),
            (pruned, 0.45, 3, 1),
            (complete, 0.42, 2, 2),
        )
    )


def test_a_row_a_trial(table: pd.DataFrame) -> None:
    assert list(table["trial"]) == list(range(6))
    assert list(table)[7:10] == ["depth", "seed", "resblocks"]
    assert list(table["depth"]) == [2, 3, 4, 2, 3, 2] and table["iou"].isna().sum() == 1
    assert trials_table(study_of()).empty


def test_what_waits_or_was_repeated_has_no_row() -> None:
    study = study_of((TrialState.FAIL, None, 2, 0), (TrialState.COMPLETE, 0.5, 3, 0))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        repeat = optuna.storages.RetryHeartbeatStaleTrialCallback()
    repeat(study, study.trials[0])
    assert list(trials_table(study)["trial"]) == [1]
    study.ask()
    assert list(trials_table(study)["state"]) == ["complete", "running"]


def test_the_best_is_printed_first_and_failures_last(table: pd.DataFrame) -> None:
    head, *lines = format_trials(table).splitlines()
    assert head.split()[:4] == ["trial", "state", "iou", "epoch"]
    assert [int(line.split()[0]) for line in lines] == [1, 3, 5, 0, 4, 2]
    assert lines[0].split() == "1 complete 0.5 2 3 1.5 1234 3 0 True".split()
    assert lines[-1].endswith("too many parameters") and "done" not in "".join(lines)


def test_means_over_seeds_count_complete_trials_only(table: pd.DataFrame) -> None:
    one, three = means_over_seeds(table).to_dict("records")  # the best mean first
    assert (three["depth"], three["resblocks"], three["n"]) == (2, True, 3)
    bounds = stats.t.interval(0.95, 2, loc=0.42, scale=stats.sem([0.40, 0.44, 0.42]))
    assert (three["mean"], three["low"], three["high"]) == pytest.approx((0.42, *bounds))
    assert one["n"] == 1 and pd.isna(one["low"]) and pd.isna(one["high"])
    text = format_table(means_over_seeds(table))
    assert "0.3703 0.4697" in text and len(text.splitlines()) == 3
    assert means_over_seeds(table.drop(columns="seed")).empty


def test_seeds_alone_are_one_setting(table: pd.DataFrame) -> None:
    alone = table[table["depth"] == 2].drop(columns=["depth", "resblocks"])
    (row,) = means_over_seeds(alone).to_dict("records")
    assert row["n"] == 3 and row["mean"] == pytest.approx(0.42) and len(row) == 4
