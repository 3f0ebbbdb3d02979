"""Trainings from another network; trainings that go on: flags, checkpoints, equal bits."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train_basic_2dunet
import train_basic_3dunet
from tests.conftest import write_fake_file
from utils.checkpoints.loading import CheckpointError, load_checkpoint
from utils.errors import UserError
from utils.simulation import Mixture, VolumeConfig, preset
from utils.storage import VolumeSet, write_simulated_file
from utils.training.experiment import Experiment
from utils.training.flag_table import FAST
from utils.training.run import open_experiment
from utils.training.starting import (
    MAY_CHANGE,
    check_data,
    check_unchanged,
    find_resumption,
    recorded_flags,
)

pytestmark = pytest.mark.usefixtures("unrendered")
NETWORK = ["--depth", "2", "--start_channels", "2", "--conv_kernel_size", "1"]
PROGRAM = Path(__file__).parent / "forked_trainings.py"
ROOT = PROGRAM.parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: VolumeConfig) -> Path:
    """With a data file and the log directory of a first training."""
    folder = tmp_path_factory.mktemp("ancestor")
    logger = logging.getLogger("utils.training")
    before = list(logger.handlers), logger.propagate
    write_simulated_file(folder / "tiny.h5", VolumeSet(tiny_config, 1, 3))
    assert train_basic_3dunet.main([*flags_from(folder, "first"), *NETWORK, "--epochs", "1"]) == 0
    logger.handlers[:], logger.propagate = before  # announced before a test's own are kept
    return folder


def flags_from(folder: Path, title: str) -> list[str]:
    return [
        *("--train_files", str(folder / "tiny.h5"), "--val_files", str(folder / "tiny.h5")),
        *("--log_path", str(folder), "--experiment_title", title, "--patch_size", "8"),
        *("--batch_size", "2", "--num_workers", "0", "--device", "cpu", "--precision", "32"),
    ]


def test_the_network_and_its_weights_are_the_ancestors(folder: Path) -> None:
    """At a rate of nearly 0 the kernels stay to the bit what they were."""
    more = ["--init", str(folder / "first"), "--epochs", "1", "--start_lr", "1e-30"]
    assert train_basic_3dunet.main([*flags_from(folder, "second"), *more]) == 0
    first, second = load_checkpoint(folder / "first"), load_checkpoint(folder / "second")
    assert second["model_config"] == first["model_config"]
    for name, tensor in first["model_state"].items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, second["model_state"][name]), name
    ancestor = json.loads((folder / "second" / "config.json").read_text())["ancestor"]
    assert ancestor["checkpoint"] == str(folder / "first") and ancestor["epoch"] == 1


def test_the_plan_is_shorter_and_the_rate_lower_unless_given(folder: Path) -> None:
    init = ["--init", str(folder / "first")]
    parsed = train_basic_3dunet.parse_flags([*init, "--recipe", "fast"])
    assert (parsed.start_lr, parsed.epochs) == (pytest.approx(FAST["start_lr"] / 3), 30)
    assert (parsed.depth, parsed.stem_stride, parsed.conv_kernel_size) == (2, 1, 1)
    assert parsed.early_stopping_patience == 30
    parsed = train_basic_3dunet.parse_flags([*init, "--epochs", "7", "--start_lr", "0.5"])
    assert (parsed.start_lr, parsed.epochs) == (0.5, 7)


def test_resuming_needs_the_ancestor_no_longer(folder: Path) -> None:
    shutil.copytree(folder / "first", folder / "gone")
    more = ["--init", str(folder / "gone"), "--epochs", "1"]
    assert train_basic_3dunet.main([*flags_from(folder, "third"), *more]) == 0
    config = folder / "third" / "config.json"
    ancestor = json.loads(config.read_text())["ancestor"]
    shutil.rmtree(folder / "gone")
    again = ["--resume", "--log_path", str(folder), "--experiment_title", "third", "--epochs", "2"]
    assert train_basic_3dunet.main(again) == 0
    assert json.loads(config.read_text())["ancestor"] == ancestor
    assert load_checkpoint(folder / "third" / "checkpoints" / "last.pth")["epoch"] == 2


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_ancestor_again(
    folder: Path,
) -> None:
    more = ["--init", str(folder / "first"), "--epochs", "1", "--start_lr", "1e-30"]
    assert train_basic_3dunet.main([*flags_from(folder, "killed"), *more]) == 0
    for path in (folder / "killed" / "checkpoints").iterdir():
        path.unlink()
    again = ["--resume", "--log_path", str(folder), "--experiment_title", "killed"]
    assert train_basic_3dunet.main(again) == 0
    first, second = load_checkpoint(folder / "first"), load_checkpoint(folder / "killed")
    assert torch.equal(first["model_state"]["head.weight"], second["model_state"]["head.weight"])


def test_what_differs_is_refused_with_both_values(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_basic_3dunet.main(["--init", str(folder / "first"), "--depth", "3", "--resblocks"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--depth is 3, and 2 there; --resblocks is True, and False there" in message
    with pytest.raises(SystemExit, match="2"):
        train_basic_3dunet.main(["--init", "nothing"])
    assert "nothing does not exist" in capsys.readouterr().err.splitlines()[-1]
    more = ["--log_path", str(folder), "--experiment_title", "flat", "--init"]
    more += [str(folder / "first"), "--train_file", "", "--validation_file", "", "--test_file", ""]
    more += ["--L_train", "2", "--L_validate", "2", "--L_test", "2", "--batch_size", "2"]
    assert train_basic_2dunet.main(more) == 2
    assert "is a 3D network, and this script trains 2D ones" in capsys.readouterr().err
    assert not (folder / "flat").exists()


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_a_frozen_encoder_stays_to_the_bit(folder: Path, ema: str) -> None:
    """Its batch norm statistics too, also in the average and after going on; the rest moves."""
    title = f"frozen{ema[-1]}"
    more = ["--init", str(folder / "first"), "--freeze", "encoder", "--ema", ema, "--epochs"]
    assert train_basic_3dunet.main([*flags_from(folder, title), *more, "1"]) == 0
    again = ["--resume", "--log_path", str(folder), "--experiment_title", title, "--epochs", "2"]
    assert train_basic_3dunet.main(again) == 0
    first, second = load_checkpoint(folder / "first"), load_checkpoint(folder / title)
    for name, tensor in first["model_state"].items():
        same = torch.equal(tensor, second["model_state"][name])
        assert same == (".encoder." in name), name


def test_only_an_ancestor_is_frozen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_basic_3dunet.main([*flags_from(folder, "none"), "--freeze", "encoder"]) == 2
    message = "--freeze encoder: keeps weights of a trained network; give --init too"
    assert message in capsys.readouterr().err and not (folder / "none").exists()


def fork_trainings(*arguments: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_fake_file(directory / "train.h5", seed=1, num_samples=6, shape=(16, 16, 16))
    write_fake_file(directory / "valid.h5", seed=2, num_samples=2, shape=(16, 16, 16))
    return directory


def flags_of(data_dir: Path, logs: Path, title: str) -> list[str]:
    return [
        *("--data_dir", str(data_dir), "--train_files", "train.h5", "--val_files", "valid.h5"),
        *("--log_path", str(logs), "--experiment_title", title, "--patch_size", "8"),
        *("--depth", "2", "--start_channels", "2", "--batch_size", "2", "--num_workers", "0"),
        *("--device", "cpu", "--precision", "32", "--compile", "off", "--no-tensorboard"),
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two plain states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "samples_per_second", "minutes"}
    timed |= {"volumes_per_second", "seconds_waiting_for_data"}
    return [{key: value for key, value in r.items() if key not in timed} for r in history]


MORE = {
    "plateau": ["--lr_scheduler_patience", "0", "--start_lr", "0.01"],
    "onecycle": ["--lr_schedule", "onecycle", "--ema", "0.9", "--optimizer", "adamw"],
}


def assert_equal_runs(logs: Path) -> None:
    """Compare the experiments "straight" and "killed": checkpoints and history, to the bit."""
    one, other = (
        load_checkpoint(logs / name / "checkpoints" / "last.pth") for name in ("straight", "killed")
    )
    for part in ("model_state", "optimizer_state", "scheduler_state", "random_state"):
        assert same(one[part], other[part]), part
    assert same(one.get("raw_model_state"), other.get("raw_model_state"))
    assert without_times(one["history"]) == without_times(other["history"])
    best = [load_checkpoint(logs / name) for name in ("straight", "killed")]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert same(best[0]["model_state"], best[1]["model_state"])
    histories = [Experiment(logs / name).read_log() for name in ("straight", "killed")]
    assert without_times(histories[0]["epochs"]) == without_times(histories[1]["epochs"])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", MORE)
def test_killed_and_resumed_equals_straight_to_the_bit(
    data_dir: Path, tmp_path: Path, kind: str
) -> None:
    more = [*MORE[kind], "--epochs", "4", "--deterministic"]
    straight = flags_of(data_dir, tmp_path, "straight") + more
    killed = flags_of(data_dir, tmp_path, "killed") + more
    killed += ["--num_workers", "1"] * (kind == "plateau")
    resume = ["--log_path", str(tmp_path), "--experiment_title", "killed", "--resume"]
    # Dies in the middle of epoch 3 (3 steps of 2 patches), then in that of epoch 4.
    trainings = [[straight, None], [killed, [3, 4]], [resume, [4, 2]], [resume, None]]
    assert fork_trainings("trainings", json.dumps(trainings)) == [0, -9, -9, 0]
    assert_equal_runs(tmp_path)
    last = load_checkpoint(tmp_path / "killed" / "checkpoints" / "last.pth")
    assert ("raw_model_state" in last) == (kind == "onecycle")
    logs = [Experiment(tmp_path / name).read_log() for name in ("straight", "killed")]
    assert "resumptions" not in logs[0]
    assert [entry["epoch"] for entry in logs[1]["resumptions"]] == [2, 3]
    for name in ("straight", "killed"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["machine"]["threads"] == 1 and config["flags"]["deterministic"]
    for entry in logs[1]["resumptions"]:
        assert entry["before"] == {"reason": "running", "status": None}
        assert entry["changed"] == {}
    assert logs[1]["exit"]["status"] == 0


@pytest.mark.timeout(1200)
def test_killed_and_resumed_on_the_fly_equals_straight_to_the_bit(
    tmp_path: Path, tiny_config: VolumeConfig
) -> None:
    """Volumes are simulated anew after each kill, whichever processes do it."""
    write_simulated_file(tmp_path / "valid.h5", VolumeSet(tiny_config, 5, 2))
    more = ["--on_the_fly", "--patches_per_volume", "2", "--patches_per_epoch", "7"]
    more += ["--epochs", "3", "--augment", "full", "--deterministic"]
    straight = flags_of(tmp_path, tmp_path, "straight") + more
    killed = flags_of(tmp_path, tmp_path, "killed") + more
    resume = ["--log_path", str(tmp_path), "--experiment_title", "killed", "--resume"]
    # Dies at the second of the three volumes of epoch 2, then at the last of epoch 3.
    trainings = [[straight, None], [killed, [2, 2]]]
    trainings += [[[*resume, "--num_workers", "1"], [3, 3]], [resume, None]]
    assert fork_trainings("trainings", json.dumps(trainings)) == [0, -9, -9, 0]
    assert_equal_runs(tmp_path)
    log = Experiment(tmp_path / "killed").read_log()
    assert [entry["epoch"] for entry in log["resumptions"]] == [1, 2]
    losses = [record["train_loss"] for record in log["epochs"]]
    assert len(set(losses)) == 3  # no epoch saw the volumes of another


@pytest.mark.timeout(1200)
def test_a_kill_at_any_moment_of_saving_leaves_the_last_or_the_one_before(tmp_path: Path) -> None:
    found = fork_trainings("saves", str(tmp_path))
    assert found[-1]["status"] == 0 and found[-1]["epoch"] == 2
    killed = found[:-1]
    assert len(killed) > 20 and {end["epoch"] for end in killed} == {0, 1, 2}
    for end in killed:
        assert end["status"] == -signal.SIGKILL
        assert end["whole"]
        assert end["saved"] <= end["epoch"] <= end["saved"] + 1


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    config = {"flags": {"depth": 4}, "data": {}, "ancestor": None}
    return Experiment.create(tmp_path / "run", config, __file__)


def state(epoch: int) -> dict[str, Any]:
    return {"model_state": {"w": torch.zeros(1000)}, "epoch": epoch, "history": []}


def test_the_last_checkpoint_is_where_it_goes_on(experiment: Experiment) -> None:
    found, note = find_resumption(experiment.directory)
    assert found is None and "not saved a checkpoint" in note
    path = experiment.save_checkpoint("last.pth", state(1))
    found, note = find_resumption(experiment.directory)
    assert found["epoch"] == 1 and "goes on after epoch 1 from" in note
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CheckpointError, match=r"last\.pth is no readable checkpoint"):
        find_resumption(experiment.directory)


def test_a_directory_in_use_is_refused(experiment: Experiment) -> None:
    code = (
        "import pathlib, sys; from utils.errors import UserError\n"
        "from utils.training.run import open_experiment\n"
        "config = {'flags': {'resume': True}, 'data': {}, 'ancestor': None}\n"
        "try: open_experiment(pathlib.Path(sys.argv[1]), config, sys.argv[2], None, '')\n"
        "except UserError as error: print(error)"
    )
    before = experiment.read_log()
    command = [sys.executable, "-c", code, str(experiment.directory), __file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "is in use: another process is training there" in done.stdout
    assert experiment.read_log() == before


def test_each_reopening_is_recorded(experiment: Experiment) -> None:
    experiment.update_log(exit={"reason": "interrupted by SIGTERM", "status": 130})
    config = {"flags": {"epochs": 9, "resume": True}, "data": {}, "ancestor": None}
    for epoch in (1, 2):
        saved = state(epoch) | {"history": [{"epoch": epoch}]}
        open_experiment(experiment.directory, config, __file__, saved, "n")
    log = experiment.read_log()
    assert log["epochs"] == [{"epoch": 2}]
    assert log["exit"] == {"reason": "running", "status": None}
    first, second = log["resumptions"]
    assert first["before"] == {"reason": "interrupted by SIGTERM", "status": 130}
    assert second["before"]["reason"] == "running"
    assert {"time", "git_revision", "note", "changed"} <= set(first)
    assert [one["epoch"] for one in (first, second)] == [1, 2]
    assert (first["changed"], second["changed"]) == ({"epochs": [None, 9]}, {})
    config = json.loads((experiment.directory / "config.json").read_text())
    assert config["flags"] == {"epochs": 9, "resume": True}


def test_flags_that_must_not_change_are_named() -> None:
    recorded = {"depth": 4, "loss_type": "dice", "epochs": 9, "num_workers": 2}
    flags = argparse.Namespace(depth=5, loss_type="dice", epochs=20, num_workers=0, ema=0.5)
    with pytest.raises(UserError, match=r"--depth: was 4, is 5; --ema: was 0.0, is 0.5\. "):
        check_unchanged(flags, recorded, {"ema": 0.0})
    flags.depth, flags.ema = 4, 0.0
    check_unchanged(flags, recorded, {"ema": 0.0})
    flags.voxel_size = (1.0, 0.5, 0.5)  # as the command line has it, and below as JSON does
    check_unchanged(flags, recorded | {"voxel_size": [1.0, 0.5, 0.5]}, {"ema": 0.0})


def test_every_flag_that_may_change_exists() -> None:
    flags = set(vars(train_basic_3dunet.parse_flags([])))
    of_2d = {"train_file", "validation_file", "test_file", "overwrite"}
    assert MAY_CHANGE - flags - of_2d == set()


def test_data_may_move_but_not_change() -> None:
    data = {"train": [{"file": "/a/x.h5", "seed": 1, "samples": 3}], "memory": {"file": None}}
    moved = {"train": [{"file": "b/x.h5", "seed": 1, "samples": 3}], "memory": {"file": None}}
    check_data(data, moved)
    moved["train"][0]["version"] = "2.0.0"  # older records do not know it
    check_data(data, moved)
    moved["train"][0]["samples"] = 4
    with pytest.raises(UserError, match="--resume: the data differ"):
        check_data(data, moved)


@pytest.mark.parametrize("preset_of_one", [True, False])
def test_keys_that_an_older_record_does_not_know_are_at_their_defaults(preset_of_one) -> None:
    wide, reference = preset("wide"), preset("reference")
    parts = ((wide, 1.0),) if preset_of_one else ((wide, 0.7), (reference, 0.3))
    now = {"train": {"on_the_fly": Mixture(parts).to_dict(), "seed": 0}}
    before = json.loads(json.dumps(now))
    stream = before["train"]["on_the_fly"]
    del (stream if preset_of_one else stream[0])["stain"]["clouds_probability"]
    check_data(before, now)
    (stream if preset_of_one else stream[0])["stain"]["haze"] = [0.0, 0.1]
    with pytest.raises(UserError, match="--resume: the data differ"):
        check_data(before, now)


def test_recorded_flags_need_a_run_of_the_same_script(experiment: Experiment) -> None:
    name = Path(__file__).name
    assert recorded_flags(experiment.directory, name) == {"depth": 4}
    with pytest.raises(UserError, match=f"was made by {name}"):
        recorded_flags(experiment.directory, "train_basic_2dunet.py")
    with pytest.raises(UserError, match="no run to go on with"):
        recorded_flags(experiment.directory / "absent", name)
    (experiment.directory / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        recorded_flags(experiment.directory, name)
    (experiment.directory / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was made by another program"):
        recorded_flags(experiment.directory, name)


@pytest.mark.usefixtures("unrendered")
def test_the_script_goes_on_longer_and_refuses_another_network(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = train_basic_3dunet.main
    assert main([*flags_of(data_dir, tmp_path, "run"), "--epochs", "1", "--ema", "0.5"]) == 0
    resume = ["--log_path", str(tmp_path), "--experiment_title", "run", "--resume"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for wrong, message in (
        (["--depth", "3"], "--depth: was 2, is 3"),
        (["--loss_type", "bce", "--ema", "0"], "--loss_type: was dice, is bce; --ema: was 0.5"),
        (["--recipe", "fast"], "--recipe: was None, is fast"),
        (["--seed", "5"], "--seed: was 0, is 5"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*resume, *wrong])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and message in error and error.count("\n") == 1
    absent = ["--log_path", str(tmp_path), "--experiment_title", "absent", "--resume"]
    with pytest.raises(SystemExit) as caught:
        main(absent)
    assert caught.value.code == 2 and "no run to go on with" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    (tmp_path / "other").mkdir()
    write_fake_file(tmp_path / "other" / "valid.h5", seed=3, num_samples=2, shape=(16, 16, 16))
    assert main([*resume, "--val_files", str(tmp_path / "other" / "valid.h5")]) == 2
    assert "the data differ" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()

    assert main([*resume, "--epochs", "3"]) == 0
    output = capsys.readouterr().out
    assert "goes on after epoch 1" in output and "epoch 3/3" in output
    log = Experiment(tmp_path / "run").read_log()
    assert [record["epoch"] for record in log["epochs"]] == [1, 2, 3]
    assert log["resumptions"][0]["changed"] == {"epochs": [1, 3]}
    assert main(resume) == 0  # nothing is left to do
    assert [record["epoch"] for record in Experiment(tmp_path / "run").read_log()["epochs"]] == [
        *(1, 2, 3)
    ]
