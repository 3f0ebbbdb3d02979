"""One trial as a process: followed, ended politely, killed when that does not help."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import pytest

from utils.search import trial
from utils.search.trial import Outcome, read_log, run_training

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
    monkeypatch.setattr(trial, "POLL_SECONDS", 0.02)

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
    monkeypatch.setattr(trial, "GRACE_SECONDS", 0.2)
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
