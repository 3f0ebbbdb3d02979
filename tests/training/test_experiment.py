"""The log directory: its files, checkpoints that load safely, and how a run's end is recorded."""

from __future__ import annotations

import _thread
import json
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch._utils import ExceptionWrapper

from utils.checkpoints.loading import CheckpointError, load_checkpoint
from utils.errors import UserError
from utils.provenance import git_revision
from utils.training import experiment as module
from utils.training.experiment import Examples, Experiment, TrainingError, announce, record_exit


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.create(tmp_path / "logs" / "one", {"flags": {"depth": 4}}, __file__)


def test_a_new_directory_holds_config_log_and_script(experiment: Experiment) -> None:
    config = json.loads((experiment.directory / "config.json").read_text())
    assert config["flags"] == {"depth": 4}
    assert config["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "monai", "lightning-fabric"} <= set(config["versions"])
    assert {"git_revision", "machine", "script"} <= set(config)
    assert experiment.read_log() == {"epochs": [], "exit": {"reason": "running", "status": None}}
    copy = experiment.directory / Path(__file__).name
    assert copy.read_text() == Path(__file__).read_text()
    assert experiment.checkpoints.is_dir()


def test_an_existing_directory_is_left_untouched(experiment: Experiment) -> None:
    before = {path: path.stat().st_mtime_ns for path in experiment.directory.rglob("*")}
    with pytest.raises(UserError, match="cannot be made .File exists"):
        Experiment.create(experiment.directory, {}, __file__)
    assert {path: path.stat().st_mtime_ns for path in experiment.directory.rglob("*")} == before


def test_a_directory_that_cannot_be_filled_is_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Experiment.create(tmp_path / "logs" / "one", {}, tmp_path / "absent.py")
    assert not (tmp_path / "logs" / "one").exists()


def test_log_entries_are_replaced_one_by_one(experiment: Experiment) -> None:
    experiment.update_log(epochs=[{"epoch": 1, "lr": 0.1}])
    experiment.update_log(test={"iou": 0.5})
    experiment.finish("done", 0)
    assert experiment.read_log() == {
        "epochs": [{"epoch": 1, "lr": 0.1}],
        "exit": {"reason": "done", "status": 0},
        "test": {"iou": 0.5},
    }


def test_a_log_that_cannot_be_written_leaves_the_old_one(experiment: Experiment) -> None:
    with pytest.raises(ValueError):
        experiment.update_log(epochs=[{"loss": float("nan")}])
    assert experiment.read_log()["epochs"] == []


def test_checkpoints_load_safely_from_file_and_directory(experiment: Experiment) -> None:
    state = {"model_state": {"w": torch.arange(3.0)}, "epoch": 2, "metrics": {"valid_iou": 0.5}}
    path = experiment.save_checkpoint("last.pth", state)
    assert load_checkpoint(path)["epoch"] == 2
    assert load_checkpoint(experiment.directory)["epoch"] == 2
    experiment.save_checkpoint("best.pth", {**state, "epoch": 1})
    assert load_checkpoint(experiment.directory)["epoch"] == 1
    assert torch.equal(load_checkpoint(str(path))["model_state"]["w"], torch.arange(3.0))


def test_a_cut_checkpoint_leaves_the_one_before(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = experiment.save_checkpoint("last.pth", {"model_state": {}, "epoch": 1})

    def cut(content: dict, file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        experiment.save_checkpoint("last.pth", {"model_state": {}, "epoch": 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(experiment.checkpoints) == ["last.pth"]


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(experiment: Experiment) -> None:
    """torch's writer fails a second time on the way out and would hide what the disk said."""
    path = experiment.save_checkpoint("last.pth", {"model_state": {}, "epoch": 1})
    large = {"model_state": {"w": torch.zeros(100_000)}, "epoch": 2}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*last.pth"):
            experiment.save_checkpoint("last.pth", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path)["epoch"] == 1
    assert os.listdir(experiment.checkpoints) == ["last.pth"]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"epoch": 1}, tmp_path / "other.pth")
    torch.save({"model_state": {}, "format": 99}, tmp_path / "newer.pth")
    torch.save({"model_state": torch.nn.Linear(2, 2)}, tmp_path / "pickled.pth")
    for name in ("text", "other", "newer", "pickled"):
        with pytest.raises(CheckpointError, match=f"{name}.pth"):
            load_checkpoint(tmp_path / f"{name}.pth")
    with pytest.raises(UserError, match="absent.pth"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="holds no checkpoints"):
        load_checkpoint(tmp_path)


def test_a_truncated_checkpoint_is_named(experiment: Experiment) -> None:
    path = experiment.save_checkpoint("last.pth", {"model_state": {"w": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CheckpointError, match="last.pth"):
        load_checkpoint(experiment.directory)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_is_named_and_nothing_else_is_said(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps({"model_state": Path("a")}, protocol))
    with pytest.raises(CheckpointError, match="plain.pth is no readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_any_damage_is_named(tmp_path: Path, zipped: bool) -> None:
    path, rng = tmp_path / "damaged.pth", np.random.default_rng(0)
    torch.save(
        {"format": 1, "model_state": {"w": torch.zeros(3, 2)}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    sound, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(sound)
        damaged[int(rng.integers(min(len(sound), 900)))] = int(rng.integers(256))
        stop = len(sound) if rng.random() < 0.7 else int(rng.integers(len(sound)))
        path.write_bytes(damaged[:stop])
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            refused += 1
            assert "damaged.pth" in str(error)
    assert refused > 100


def test_pictures(experiment: Experiment) -> None:
    keys = ("train_loss", "valid_loss", "train_iou", "valid_iou", "lr")
    rng = np.random.default_rng(0)
    patches = [rng.random((8, 8, 8)).astype(np.float32) for _ in range(2)]
    masks = [(patch > 0.7).astype(np.float32) for patch in patches]
    experiment.draw([{"epoch": 1, **dict.fromkeys(keys, 0.5)}], Examples(patches, masks, patches))
    for name in ("learning_curves.png", "predictions.png"):
        assert (experiment.directory / name).read_bytes().startswith(b"\x89PNG")


def raising(error: BaseException) -> Callable[[], str]:
    def run() -> str:
        raise error

    return run


def signalled(number: int, then: Exception | None = None) -> Callable[[], str]:
    def run() -> str:
        try:
            os.kill(os.getpid(), number)
        finally:
            if then:
                raise then
        return "not reached"

    return run


def signalled_in_a_finaliser(number: int) -> Callable[[], str]:
    """Send a signal where Python drops what its handler raises, and go on for long."""

    class Closing:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def run() -> str:
        Closing()
        time.sleep(200)
        return "not reached"

    return run


def signalled_again_meanwhile(number: int) -> Callable[[], str]:
    """As in a finaliser, and once more while the first signal is being tried again."""
    start, sent = _thread.start_new_thread, []

    def starting(*arguments: Any) -> int:
        sent.append(number)
        if len(sent) == 1:
            os.kill(os.getpid(), number)
        return start(*arguments)

    def run() -> str:
        with patch.object(_thread, "start_new_thread", starting):
            signalled_in_a_finaliser(number)()
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


@pytest.mark.parametrize(
    ("run", "status", "reason", "has_traceback"),
    [
        (lambda: "completed", 0, "completed", False),
        (raising(TrainingError("the loss is nan")), 1, "the loss is nan", False),
        (raising(OSError(28, "No space left")), 1, "No space left", False),
        (raising(MemoryError()), 1, "lower --batch_size", False),
        (raising(RuntimeError("x: you can't allocate memory: y")), 1, "lower --batch_size", False),
        (raising(DEAD_WORKER), 1, "loader process died; try --num_workers 0", False),
        (raising(UNREADABLE), 1, f"UserError: {UNREADABLE}", False),
        (raising_in_a_loader(UNREADABLE), 1, f"UserError: {UNREADABLE}", False),
        (raising_in_a_loader(RuntimeError("a bug")), 1, "RuntimeError: a bug", True),
        (raising(KeyError("a bug")), 1, "KeyError: 'a bug'", True),
        (raising(KeyboardInterrupt()), 130, "interrupted", False),
        (signalled(signal.SIGINT), 130, "interrupted by SIGINT", False),
        (signalled(signal.SIGTERM), 130, "interrupted by SIGTERM", False),
        (signalled(signal.SIGTERM, DEAD_WORKER), 130, "interrupted by SIGTERM", False),
        (signalled_in_a_finaliser(signal.SIGINT), 130, "interrupted by SIGINT", False),
        (signalled_in_a_finaliser(signal.SIGTERM), 130, "interrupted by SIGTERM", False),
        (signalled_again_meanwhile(signal.SIGINT), 130, "interrupted by SIGINT", False),
    ],
)
def test_every_end_is_recorded(
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
    run: Callable[[], str],
    status: int,
    reason: str,
    has_traceback: bool,
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert record_exit(experiment, run) == status
    recorded = experiment.read_log()["exit"]
    assert recorded["status"] == status
    assert reason in recorded["reason"] and "\n" not in recorded["reason"]
    assert "Traceback" not in recorded["reason"]
    error = capsys.readouterr().err
    assert ("Traceback" in error) == has_traceback
    assert (reason in error) == bool(status)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_an_end_that_cannot_be_recorded_is_told(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "replacing", full)
    assert record_exit(experiment, lambda: "completed") == 1
    assert "cannot record" in capsys.readouterr().err


def test_announcement_is_a_line_a_topic(capsys: pytest.CaptureFixture[str]) -> None:
    announce({"network": "unet", "log": "here"})
    assert capsys.readouterr().out == "network  unet\nlog      here\n"


def test_git_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert git_revision(tmp_path / "plain") is None
    monkeypatch.setenv("PATH", "")
    assert git_revision(Path(__file__).parent) is None


@pytest.mark.parametrize("shape, baseline", [((8, 8, 8), 0.44), ((8, 8), None)])
def test_only_curves_of_volumes_show_the_whole_sheet(tmp_path, monkeypatch, shape, baseline):
    from utils import figures

    shown = []
    monkeypatch.setattr(
        figures, "save_learning_curves", lambda *args, baseline: shown.append(baseline)
    )
    monkeypatch.setattr(figures, "save_predictions", lambda *args, titles: None)
    patch = [np.zeros(shape, np.float32)]
    Experiment(tmp_path).draw([{"epoch": 1}], Examples(patch, patch, patch))
    assert shown == [baseline]
