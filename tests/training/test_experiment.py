"""The log directory: its files, and checkpoints that load safely."""

from __future__ import annotations

import json
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.checkpoints.loading import CheckpointError, load_checkpoint
from utils.errors import UserError
from utils.figures import learning
from utils.provenance import git_revision
from utils.training.experiment import Experiment


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
    with pytest.raises(UserError, match="one: cannot be made .File exists"):
        Experiment.create(experiment.directory, {}, __file__)
    assert {path: path.stat().st_mtime_ns for path in experiment.directory.rglob("*")} == before


def test_a_log_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "logs"):
        with pytest.raises(UserError, match="cannot be made"):
            Experiment.create(path / "new", {}, __file__)


def test_a_directory_that_cannot_be_filled_is_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Experiment.create(tmp_path / "logs" / "one", {}, tmp_path / "absent.py")
    assert not (tmp_path / "logs" / "one").exists()


def test_log_entries_are_replaced_one_by_one(experiment: Experiment) -> None:
    experiment.update_log(epochs=[{"epoch": 1, "lr": 0.1}])
    experiment.update_log(test={"iou": 0.5})
    experiment.update_log(exit={"reason": "done", "status": 0})
    assert experiment.read_log() == {
        "epochs": [{"epoch": 1, "lr": 0.1}],
        "exit": {"reason": "done", "status": 0},
        "test": {"iou": 0.5},
    }


def test_a_log_that_cannot_be_written_leaves_the_old_one(experiment: Experiment) -> None:
    with pytest.raises(ValueError):
        experiment.update_log(epochs=[{"loss": float("nan")}])
    assert experiment.read_log()["epochs"] == []


def test_of_several_processes_only_one_writes(experiment: Experiment) -> None:
    before = {path: path.stat().st_mtime_ns for path in experiment.directory.rglob("*")}
    other = Experiment(experiment.directory, writes=False)
    other.update_log(epochs=[{"epoch": 1}])
    other.save_checkpoint("best.pth", {})
    other.save_checkpoint("last.pth", {})
    other.draw([], [])
    other.update_log(exit={"reason": "done", "status": 0})
    assert {path: path.stat().st_mtime_ns for path in experiment.directory.rglob("*")} == before


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
        with pytest.raises(UserError, match="last.pth: cannot be written .File too large"):
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
    examples = list(zip(patches, masks, patches, strict=True))
    experiment.draw([{"epoch": 1, **dict.fromkeys(keys, 0.5)}], examples)
    for name in ("learning_curves.png", "predictions.png"):
        assert (experiment.directory / name).read_bytes().startswith(b"\x89PNG")


def test_git_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert git_revision(tmp_path / "plain") is None
    monkeypatch.setenv("PATH", "")
    assert git_revision(Path(__file__).parent) is None


@pytest.mark.parametrize("shape, baseline", [((8, 8, 8), 0.44), ((8, 8), None)])
def test_only_curves_of_volumes_show_the_whole_sheet(tmp_path, monkeypatch, shape, baseline):
    shown = []
    monkeypatch.setattr(
        learning, "save_learning_curves", lambda *_, baseline: shown.append(baseline)
    )
    monkeypatch.setattr(learning, "save_predictions", lambda *_, titles: None)
    patch = np.zeros(shape, np.float32)
    Experiment(tmp_path).draw([{"epoch": 1}], [(patch, patch, patch)])
    assert shown == [baseline]
