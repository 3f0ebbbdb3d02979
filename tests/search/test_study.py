"""The study in its database: order, pruning, failures, interruption, resumption."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import TrialState
from scipy import stats

from utils.errors import UserError
from utils.search import definition as definition_module
from utils.search import study as study_module
from utils.search.definition import StudyDefinition
from utils.search.study import (
    SAME_FAILURES,
    Outcome,
    Search,
    build_pruner,
    build_sampler,
    format_table,
    format_trials,
    means_over_seeds,
    open_study,
    read_log,
    retry_failed,
    run_training,
    trials_table,
)

ROOT = Path(__file__).resolve().parents[2]
STUB = f'''
import json, sys, time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from train_basic_3dunet import parse_flags
from utils.replacing import replacing


def write(path, content):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))


def main():
    """Learn faster with depth; --start_channels is the number of seconds that an epoch takes."""
    flags = parse_flags()
    if flags.depth == 7:
        print("loading\\nstub.py: the network has 77 parameters, outside the bounds",
              file=sys.stderr)
        return 2
    directory = Path(flags.log_path) / flags.experiment_title
    directory.mkdir()
    write(directory / "config.json", {{"parameters": 100 * flags.depth}})
    epochs = []
    for epoch in range(1, flags.epochs + 1):
        iou = 0.1 * flags.depth + 0.01 * epoch + 0.001 * flags.seed
        epochs.append({{"epoch": epoch, "valid_iou": iou, "seconds": 6.0}})
        running = {{"reason": "running", "status": None}}
        write(directory / "logs.json", {{"epochs": epochs, "exit": running}})
        time.sleep(flags.start_channels - 1)
    status = 1 if flags.depth == 6 else 0
    end = {{"reason": "the loss is nan" if status else "completed", "status": status}}
    write(directory / "logs.json", {{"epochs": epochs, "exit": end}})
    return status


if __name__ == "__main__":
    sys.exit(main())
'''


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script ``stub.py`` with the real flags, as the only one that studies may name."""
    path = tmp_path / "scripts" / "stub.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(STUB))
    monkeypatch.setattr(definition_module, "ROOT", path.parent)
    monkeypatch.setattr(study_module, "ROOT", path.parent)
    monkeypatch.setattr(study_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the stub adds to it when it is imported
    return path


def make_definition(
    sampler: str = "grid", pruner: str = "none", extra: Sequence[str] = (), **search
) -> StudyDefinition:
    return StudyDefinition(
        name="tiny",
        question="Does it run?",
        script="stub.py",
        sampler=sampler,
        pruner=pruner,
        n_trials=None,
        fixed={"epochs": 2, "start_channels": 1},
        search=search or {"depth": [2, 3], "seed": [0, 1]},
        extra=extra,
    )


@pytest.fixture
def begin(stub: Path, tmp_path: Path):
    """Open the study of ``definition`` as another process would, with what it says."""

    def begin(definition: StudyDefinition, **options) -> Search:
        folder = tmp_path / "logs"
        folder.mkdir(exist_ok=True)
        said: list[str] = []
        study = open_study(f"sqlite:///{tmp_path}/study.db", "tiny", definition, seed=0)
        return Search(definition, study, folder, say=said.append, **options)

    return begin


def ask(search: Search) -> optuna.Trial:
    """Take a trial as a search does that is killed right afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        return search.study.ask()


def rows(search: Search) -> list[dict]:
    return trials_table(search.study).to_dict("records")


def states(search: Search) -> list[str]:
    return [row["state"] for row in rows(search)]


def test_a_grid_is_run_once(begin) -> None:
    search = begin(make_definition())
    assert search.remaining() == 4
    search.run()
    found = sorted(rows(search), key=lambda row: (row["depth"], row["seed"]))
    assert [(row["depth"], row["seed"]) for row in found] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert [row["iou"] for row in found] == pytest.approx([0.22, 0.221, 0.32, 0.321])
    last = found[3]
    curve = search.study.trials[last["trial"]].intermediate_values
    assert curve == pytest.approx({1: 0.311, 2: 0.321})
    title = f"trial_{last['trial']:04d}"
    assert last | {"trial": 0, "iou": 0} == {
        **{"trial": 0, "state": "complete", "iou": 0, "epoch": 2, "epochs_trained": 2},
        **{"minutes": 0.2, "parameters": 300, "depth": 3, "seed": 1, "reason": "completed"},
        "directory": str(search.folder / title),
    }
    said = search.say.__self__  # the list that collects it
    ending = f"{title} complete: IoU 0.321 in epoch 2 of 2"
    assert sum(line.startswith(ending) for line in said) == 1
    again = begin(make_definition())
    assert again.remaining() == 0
    again.run()
    assert len(again.study.trials) == 4


def test_several_jobs_leave_nothing_out(begin) -> None:
    search = begin(make_definition(), jobs=3, gpus=("5", "6"))
    search.run()
    assert states(search) == ["complete"] * 4


def test_workers_of_a_database_file_wait_for_each_other(begin) -> None:
    first, second = begin(make_definition("tpe")), begin(make_definition("tpe"))
    taken: list[int] = []
    with first.study._storage._backend.engine.begin():
        worker = threading.Thread(target=lambda: taken.append(ask(second).number))
        worker.start()
        worker.join(0.5)
        assert not taken  # else both could take the same trial
    worker.join(60)
    assert taken == [0]


def test_jobs_share_cores_and_gpus(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = []

    def run_training(command, *arguments, environment, **callbacks):
        seen.append(environment)
        return Outcome(0, "", ({"epoch": 1, "valid_iou": 0.5, "seconds": 1.0},), 1)

    monkeypatch.setattr(study_module, "run_training", run_training)
    search = begin(make_definition(), jobs=2, gpus=("5", "6"))
    search.run()
    assert {variables["CUDA_VISIBLE_DEVICES"] for variables in seen} <= {"5", "6"}
    cores = len(os.sched_getaffinity(0))
    assert {v["OMP_NUM_THREADS"] for v in seen} == {str(max(1, cores // 2))}


def test_ranges_stop_at_the_number_of_trials(begin) -> None:
    space = {
        "depth": {"low": 2, "high": 5},
        "start_lr": {"low": 1e-4, "high": 1e-2, "log": True},
    }
    search = begin(make_definition("random", **space), n_trials=3)
    search.run()
    assert states(search) == ["complete"] * 3
    assert all(row["depth"] in (2, 3, 4, 5) for row in rows(search))
    assert all(1e-4 <= row["start_lr"] <= 1e-2 for row in rows(search))
    more = begin(make_definition("random", **space), n_trials=4)
    assert more.remaining() == 1
    more.run()
    assert len({row["start_lr"] for row in rows(more)}) == 4


def test_time_that_is_up_starts_nothing(begin) -> None:
    search = begin(make_definition())
    search.run(seconds=0.0)
    assert states(search) == [] and search.remaining() == 4


def test_failures_are_recorded_with_their_line_and_not_fatal(begin) -> None:
    definition = make_definition(depth=[7, 2, 6])
    search = begin(definition)
    search.run()
    found = {row["depth"]: row for row in rows(search)}
    assert {depth: row["state"] for depth, row in found.items()} == {
        **{7: "failed", 2: "complete", 6: "failed"}
    }
    assert found[7]["reason"] == "stub.py: the network has 77 parameters, outside the bounds"
    assert found[6]["reason"] == "the loss is nan" and found[6]["epochs_trained"] == 2
    assert not search.failure and begin(definition).remaining() == 0
    assert retry_failed(search.study) == 2
    again = begin(definition)
    assert again.remaining() == 2
    again.run()
    assert again.remaining() == 0
    assert sorted(row["depth"] for row in rows(again)) == [2, 6, 7]  # first attempts are left out
    assert len(again.study.trials) == 5


def test_failures_that_are_all_alike_end_the_search(begin) -> None:
    search = begin(make_definition(depth=[7], seed=list(range(9))))
    search.run()
    assert search.failure == "stub.py: the network has 77 parameters, outside the bounds"
    assert states(search) == ["failed"] * SAME_FAILURES


def test_a_pruned_trial_is_told_to_end(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "PATIENCE_TRIALS", 1)
    monkeypatch.setattr(study_module, "PATIENCE_EPOCHS", 0)
    search = begin(make_definition(pruner="median", depth=[4, 2]))
    search.study.enqueue_trial({"depth": 4})
    search.study.sampler = optuna.samplers.RandomSampler()
    search.study.enqueue_trial({"depth": 2})
    train = search._train

    def slowly(trial: optuna.Trial, title: str, values: dict) -> Outcome:
        """Let the second trial take 1000 seconds: it has to end after its first epoch."""
        if trial.number:
            search.definition = replace(search.definition, extra=["--start_channels=1000"])
        return train(trial, title, values)

    monkeypatch.setattr(search, "_train", slowly)
    search.run()
    assert states(search) == ["complete", "pruned"]
    assert search.study.trials[1].intermediate_values == pytest.approx({1: 0.21})


def test_an_interrupted_trial_is_repeated(begin) -> None:
    definition = make_definition(depth=[2, 3])
    search = begin(definition)
    search.definition = replace(definition, extra=["--start_channels=1000"])
    runner = threading.Thread(target=search.run)
    runner.start()
    log = search.folder / "trial_0000" / "logs.json"
    wait_for(log.exists)
    search.stop.set()
    runner.join(120)
    assert not runner.is_alive()
    assert search.study.trials[0].state == TrialState.FAIL
    assert states(search) == [] and search.remaining() == 2
    again = begin(definition)
    again.run()
    assert sorted(row["depth"] for row in rows(again)) == [2, 3]
    assert states(again) == ["complete"] * 2


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_killed_search_is_taken_up(begin, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    monkeypatch.setattr(study_module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(study_module, "DEAD_SECONDS", 2)
    definition = make_definition(sampler, depth=[2, 3])
    search = begin(definition, n_trials=2)
    trial = ask(search)
    study_module.suggest(trial, "depth", [2, 3])
    search.study._storage.record_heartbeat(trial._trial_id)
    again = begin(definition, n_trials=2)
    assert again.remaining() == 1  # it may run elsewhere
    again.run()
    assert states(again) == ["complete"] * 2
    history = [t.system_attrs.get("retry_history", []) for t in again.study.trials]
    assert sorted(history) == [[], [], [0]]


def test_a_trial_of_a_living_search_is_left_alone(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(study_module, "DEAD_SECONDS", 2)
    search = begin(make_definition(depth=[2]))
    trial = ask(search)
    with get_heartbeat_thread(trial._trial_id, search.study._storage):
        begin(make_definition(depth=[2])).run()
    assert states(search) == ["running"]


def test_a_trial_that_kills_machines_is_given_up(begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "DEAD_SECONDS", 1)
    monkeypatch.setattr(study_module, "MOST_REPEATS", 1)
    search = begin(make_definition(depth=[2]))
    for _ in range(2):
        search.study._storage.record_heartbeat(ask(search)._trial_id)
        time.sleep(2.1)
        search.run(seconds=0.0)
    assert states(search) == ["failed"] and not search.remaining()
    assert len(search.study.trials) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": [2, 4]}, 'search: {"depth": [2, 3]}'),
        ({"depth": [2, 3], "seed": [0]}, 'search: {"depth": [2, 3]}'),
    ],
)
def test_another_study_of_the_same_name_is_refused(begin, change, said: str) -> None:
    begin(make_definition(depth=[2, 3]))
    with pytest.raises(UserError, match="the study tiny was begun with") as caught:
        begin(make_definition(**change))
    assert said in str(caught.value) and "choose another --study" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////nowhere/at/all/study.db", "oracle9://me:secret@host/db"]
)
def test_a_database_that_cannot_be_used(stub: Path, url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_study(url, "tiny", make_definition())
    message = str(caught.value)
    assert message.startswith("--storage: ") and "sqlite:///study.db" in message
    assert "secret" not in message and "\n" not in message


def test_samplers_and_pruners() -> None:
    kinds = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "grid": optuna.samplers.GridSampler,
    }
    for name, kind in kinds.items():
        assert isinstance(build_sampler(make_definition(name), None, 0), kind)
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    for name, kind in pruners.items():
        assert isinstance(build_pruner(make_definition(pruner=name)), kind)


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


WRITE = """
import json, os, signal, sys, time
from pathlib import Path
directory = Path(sys.argv[1])
directory.mkdir()
def write(epochs, reason, status):
    records = [{"epoch": k + 1} for k in range(epochs)]
    content = {"epochs": records, "exit": {"reason": reason, "status": status}}
    (directory / "new").write_text(json.dumps(content))
    os.replace(directory / "new", directory / "logs.json")
"""
POLITE = """
def end(*_):
    write(1, "interrupted by SIGTERM", 130)
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
write(1, "running", None)
time.sleep(600)
"""
STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
write(1, "running", None)
time.sleep(600)
"""


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run Python code as a training; epochs told are in ``follow.told``."""
    monkeypatch.setattr(study_module, "POLL_SECONDS", 0.02)

    def follow(code: str, prune: bool = False, stop: threading.Event | None = None) -> Outcome:
        def on_epoch(record: dict) -> bool:
            follow.told.append(record["epoch"])
            return prune

        return run_training(
            [sys.executable, "-c", WRITE + code, str(tmp_path / "log")],
            tmp_path / "log",
            tmp_path / "output.txt",
            on_epoch=on_epoch,
            stop=stop or threading.Event(),
            environment={"ANSWER": "42"},
        )

    follow.told = []
    return follow


def test_every_epoch_is_told_once_also_the_last(follow) -> None:
    outcome = follow("write(1, 'running', None); time.sleep(0.3); write(4, 'done', 0)")
    assert follow.told == [1, 2, 3, 4]
    assert (outcome.status, outcome.reason) == (0, "done")
    assert len(outcome.epochs) == 4 and not outcome.pruned and not outcome.stopped


def test_the_environment_and_the_output(follow, tmp_path: Path) -> None:
    outcome = follow("print('first'); print(os.environ['ANSWER'], file=sys.stderr); sys.exit(2)")
    assert (outcome.status, outcome.reason, outcome.epochs) == (2, "42", [])
    assert (tmp_path / "output.txt").read_text().splitlines() == ["first", "42"]


def test_a_silent_end_has_its_status_as_reason(follow) -> None:
    assert follow("sys.exit(3)").reason == "exit status 3"


def test_a_pruned_training_records_its_end(follow) -> None:
    outcome = follow(POLITE, prune=True)
    assert outcome.pruned and not outcome.stopped and follow.told == [1]
    assert (outcome.status, outcome.reason) == (130, "interrupted by SIGTERM")


def test_a_stop_ends_the_training(follow) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    outcome = follow("time.sleep(600)", stop=stop)
    timer.join()
    assert outcome.stopped and not outcome.pruned and outcome.status == -signal.SIGTERM


def test_one_that_does_not_listen_is_killed(follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "GRACE_SECONDS", 0.2)
    outcome = follow(STUBBORN, prune=True)
    assert outcome.status == -signal.SIGKILL and outcome.pruned


def test_an_error_of_ours_leaves_no_process_behind(follow, tmp_path: Path) -> None:
    def fail(record: dict) -> bool:
        raise RuntimeError("the database is gone")

    code = WRITE + POLITE.replace('write(1, "running"', 'print(os.getpid()); write(1, "running"')
    with pytest.raises(RuntimeError, match="the database is gone"):
        run_training(
            [sys.executable, "-u", "-c", code, str(tmp_path / "log")],
            tmp_path / "log",
            tmp_path / "output.txt",
            on_epoch=fail,
            stop=threading.Event(),
            environment={},
        )
    process = int((tmp_path / "output.txt").read_text())
    assert not Path(f"/proc/{process}").exists()


def test_no_log_yet(tmp_path: Path) -> None:
    assert read_log(tmp_path / "absent") == ([], None)
    (tmp_path / "logs.json").write_text(
        json.dumps({"epochs": [{"epoch": 1}], "exit": {"reason": "running", "status": None}})
    )
    assert read_log(tmp_path) == ([{"epoch": 1}], None)


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
