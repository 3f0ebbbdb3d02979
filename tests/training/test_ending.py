"""How a training ends: what is recorded, printed and returned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

from utils.errors import UserError
from utils.training import ending as module
from utils.training.ending import Interrupted, record_exit, stop_if_asked
from utils.training.experiment import Experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.create(tmp_path / "run", {"flags": {}}, __file__)


def raising(error: BaseException) -> Callable[[], str]:
    def run() -> str:
        raise error

    return run


def signalled(number: int, then: Exception | None = None) -> Callable[[], str]:
    """Return a run that a signal hits between two steps, and that fails after that."""

    def run() -> str:
        stop_if_asked(1)
        os.kill(os.getpid(), number)
        if then:
            raise then
        stop_if_asked(2)
        return "not reached"

    return run


def raising_in_a_loader(error: Exception) -> Callable[[], str]:
    """Raise what torch makes of an error in a loader process: its text is a whole traceback."""

    def run() -> str:
        try:
            raise error
        except Exception:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()
        return "not reached"

    return run


UNREADABLE = UserError("a.h5: vol_data of sample 3 cannot be read: Input/output error")
DEAD_WORKER = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
CLOSED = RuntimeError("[gloo/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:1")


@pytest.mark.parametrize(
    ("run", "status", "reason"),
    [
        (lambda: "completed", 0, "completed"),
        (raising(UserError("the loss is nan")), 1, "the loss is nan"),
        (raising(MemoryError()), 1, "out of memory: lower --batch_size"),
        (raising(RuntimeError("x: you can't allocate memory: y")), 1, "lower --batch_size"),
        (raising(DEAD_WORKER), 1, "loader process died; try --num_workers 0"),
        (raising(CLOSED), 1, "another process of this training has ended"),
        (raising(UNREADABLE), 1, str(UNREADABLE)),
        (raising_in_a_loader(UNREADABLE), 1, str(UNREADABLE)),
        (signalled(signal.SIGINT), 130, "interrupted by SIGINT"),
        (signalled(signal.SIGTERM), 130, "interrupted by SIGTERM"),
        (signalled(signal.SIGTERM, DEAD_WORKER), 130, "interrupted by SIGTERM"),
    ],
)
def test_every_end_is_recorded_and_told_in_a_line(
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
    run: Callable[[], str],
    status: int,
    reason: str,
) -> None:
    assert record_exit(experiment, run) == status
    recorded = experiment.read_log()["exit"]
    assert recorded["status"] == status and reason in recorded["reason"]
    assert "\n" not in recorded["reason"] and "Traceback" not in recorded["reason"]
    told = f"training stopped: {recorded['reason']}\n" if status else ""
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    "run", [raising(KeyError("a bug")), raising_in_a_loader(RuntimeError("a bug"))]
)
def test_a_bug_is_recorded_and_keeps_its_traceback(
    experiment: Experiment, run: Callable[[], str]
) -> None:
    with pytest.raises((KeyError, RuntimeError), match="a bug"):
        record_exit(experiment, run)
    recorded = experiment.read_log()["exit"]
    assert recorded["status"] == 1
    assert recorded["reason"] in ("KeyError: 'a bug'", "RuntimeError: a bug")


def test_other_ranks_tell_their_own_failures_alone(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "rank", lambda: 1)
    other = Experiment(experiment.directory, writes=False)
    assert record_exit(other, raising(Interrupted())) == 0
    assert capsys.readouterr().err == ""
    assert record_exit(other, raising(UserError("the loss is nan"))) == 1
    assert capsys.readouterr().err == "training stopped: rank 1: the loss is nan\n"
    assert experiment.read_log()["exit"]["reason"] == "running"


def test_an_end_that_cannot_be_recorded_is_told(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert record_exit(experiment, lambda: "completed") == 1
    assert "logs.json: cannot be written (No space left" in capsys.readouterr().err


def test_several_ranks_ask_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "world_size", lambda: 2)
    for step in range(1, 22):
        monkeypatch.setattr(module, "word_of_the_first", lambda _, n=step: asked.append(n))
        stop_if_asked(step)
    assert asked == [1, 11, 21]


def test_a_second_signal_ends_the_process_at_once(experiment: Experiment) -> None:
    code = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from utils.training.ending import record_exit\n"
        "from utils.training.experiment import Experiment\n"
        "def run():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "record_exit(Experiment(Path(sys.argv[1])), run)\n"
    )
    command = [sys.executable, "-c", code, str(experiment.directory)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == "\nSIGINT: training ends after this step; again: at once\n"
    assert experiment.read_log()["exit"] == {"reason": "running", "status": None}
