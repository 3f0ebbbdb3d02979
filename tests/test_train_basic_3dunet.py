"""The 3D training script end to end, on tiny files: flags, refusals, records, interrupts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_basic_3dunet
from models import ModelConfig, build_model
from tests.conftest import run_and_time
from train_basic_3dunet import main, parse_flags
from utils.checkpoints.loading import load_checkpoint
from utils.data import SegmentationFake3DDataset
from utils.simulation import VolumeConfig, WideConfig
from utils.simulation.sheet import ColumnTable
from utils.storage import VolumeFile, VolumeSet, write_simulated_file
from utils.storage.config_files import show_config

SCRIPT = Path(train_basic_3dunet.__file__)
REFERENCE_DEFAULTS = {
    "experiment_title": "my_experiment",
    "log_path": "./logs",
    "checkpoint_policy": "best",
    "batch_size": 32,
    "epochs": 100,
    "early_stopping_patience": 15,
    "arch": "unet",
    "depth": 4,
    "start_channels": 4,
    "num_stacks": 1,
    "conv_kernel_size": 3,
    "optimizer": "adam",
    "loss_type": "dice",
    "weight_decay": 0.0,
    "start_lr": 1e-3,
    "lr_scheduler_factor": 0.20,
    "lr_scheduler_patience": 3,
    "MAX_PARAMS": 30e6,
    "MIN_PARAMS": 0,
}
OUR_DEFAULTS = {
    "data_dir": "./vol_data",
    "train_files": [f"vol_train_set{i}.h5" for i in (1, 2, 3, 4)],
    "val_files": ["vol_val_set.h5"],
    "patch_size": 64,
    "patches_per_epoch": None,
    "background_threshold": 0.95,
    "augment": "none",
    "channel": None,
    "axes": None,
    "voxel_size": None,
    "ignore_label": None,
    "scale": "auto",
    "val_share": None,
    "mix": None,
    "freeze": None,
    "on_the_fly": False,
    "preset": None,
    "presets": None,
    "config": None,
    "patches_per_volume": 8,
    "boundary_weight": 1.0,
    "boundary_thickness": 1,
    "seed": 0,
    "device": "auto",
    "precision": "auto",
    "resblocks": False,
    "stem_stride": 1,
    "recipe": None,
    "init": None,
    "resume": False,
    "deterministic": False,
    "max_minutes": None,
    "lr_schedule": "plateau",
    "ema": 0.0,
    "no_shuffle": False,
    "tensorboard": True,
    "compile": "auto",
    "num_workers": 2,
    "devices": None,
    "num_nodes": 1,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, tiny_config: VolumeConfig) -> Path:
    directory = tmp_path_factory.mktemp("data")
    for name, seed, num_samples in (("train1", 1, 3), ("train2", 2, 3), ("vol_val_set", 9, 2)):
        write_simulated_file(directory / f"{name}.h5", VolumeSet(tiny_config, seed, num_samples))
    return directory


@pytest.fixture
def drawing(data_dir: Path, tmp_path: Path) -> list[str]:
    """Flags of a training that takes a second without its pictures."""
    return [
        *("--data_dir", str(data_dir), "--train_files", "train1.h5", "train2.h5"),
        *("--log_path", str(tmp_path / "logs"), "--experiment_title", "tiny"),
        *("--depth", "2", "--start_channels", "2", "--patch_size", "8", "--batch_size", "4"),
        *("--epochs", "2", "--num_workers", "0", "--device", "cpu", "--precision", "32"),
    ]


@pytest.fixture
def tiny(drawing: list[str], unrendered: None) -> list[str]:
    """The same, and no picture is rendered in this process."""
    return drawing


def test_defaults_are_those_of_the_reference() -> None:
    flags = vars(parse_flags([]))
    assert flags == {**REFERENCE_DEFAULTS, **OUR_DEFAULTS}


def test_help_comes_at_once_and_names_every_flag() -> None:
    answer, seconds = run_and_time([sys.executable, str(SCRIPT), "--help"])
    assert seconds < 1 and answer.returncode == 0
    for name in (*REFERENCE_DEFAULTS, *OUR_DEFAULTS):
        assert f"--{name}" in answer.stdout
    assert "None" not in answer.stdout


def test_checks_do_not_load_torch() -> None:
    code = (
        "import sys, train_basic_3dunet as t; status = t.main(['--depth', '0']);"
        "sys.exit(0 if status == 2 and 'torch' not in sys.modules else 1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True, timeout=240)


def test_end_to_end(drawing: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(drawing) == 0
    output = capsys.readouterr().out
    for part in (
        "unet, depth 2",
        "6 simulated volumes",
        "2 simulated volumes",
        "cpu, 32-true",
        "epoch 2/2",
    ):
        assert part in output
    directory = tmp_path / "logs" / "tiny"
    assert {path.name for path in directory.iterdir()} == {
        *("config.json", "logs.json", "checkpoints", "train_basic_3dunet.py"),
        *("learning_curves.png", "predictions.png", "tensorboard"),
    }
    config = json.loads((directory / "config.json").read_text())
    assert config["flags"] == vars(parse_flags(drawing))
    assert [entry["seed"] for entry in config["data"]["train"]] == [1, 2]
    assert [entry["samples"] for entry in config["data"]["validation"]] == [2]
    log = json.loads((directory / "logs.json").read_text())
    assert [record["epoch"] for record in log["epochs"]] == [1, 2]
    assert log["exit"]["status"] == 0
    assert (directory / "train_basic_3dunet.py").read_text() == SCRIPT.read_text()


def test_checkpoints_rebuild_the_network(tiny: list[str], data_dir: Path, tmp_path: Path) -> None:
    assert main([*tiny, "--arch", "stacked_unet", "--num_stacks", "2", "--resblocks"]) == 0
    state = load_checkpoint(tmp_path / "logs" / "tiny")
    model = build_model(ModelConfig.from_dict(state["model_config"]))
    model.load_state_dict(state["model_state"])
    assert len(model.eval()(torch.zeros(1, 1, 8, 8, 8))) == 2
    assert state["patch_size"] == 8
    assert state["normalizer"] == {"low_percent": 1.0, "high_percent": 99.0, "rule": "robust"}
    spacings = []
    for name in ("train1.h5", "train2.h5"):
        with VolumeFile(data_dir / name) as file:
            spacings += [32 * file.parameters(row).spacing for row in range(len(file))]
    median = sorted(spacings)[2] / 2 + sorted(spacings)[3] / 2
    assert state["spacing_voxels"] == pytest.approx([median] * 3)


def test_volumes_on_the_fly_need_no_training_files(
    tiny: list[str], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--on_the_fly", "--augment", "full", "--loss_type", "weighted_bce"]
    more += ["--patches_per_volume", "3", "--patches_per_epoch", "7", "--num_workers", "1"]
    more += ["--epochs", "1", "--no_shuffle"]
    assert main([*tiny, *more, "--train_files", "none.h5"]) == 0
    output = capsys.readouterr().out
    for part in (
        "volumes on the fly, 3 patches of each",
        "augmentation full",
        " volumes/s, wai",
    ):
        assert part in output
    directory = tmp_path / "logs" / "tiny"
    config = json.loads((directory / "config.json").read_text())
    with VolumeFile(data_dir / "vol_val_set.h5") as file:
        assert config["data"]["train"]["on_the_fly"] == file.config.to_dict()
        spacings = [32 * file.parameters(row).spacing for row in range(2)]
    state = load_checkpoint(directory)
    assert state["spacing_voxels"] == pytest.approx([sum(spacings) / 2] * 3)
    for record in json.loads((directory / "logs.json").read_text())["epochs"]:
        assert record["volumes_per_second"] > 0
        assert record["seconds_waiting_for_data"] >= 0


def test_mixtures_of_presets_train_on_the_fly(
    tiny: list[str], tmp_path: Path, tiny_wide: WideConfig
) -> None:
    file = tmp_path / "wide.toml"
    file.write_text(show_config(tiny_wide))
    more = ["--on_the_fly", "--preset", "wide", "--config", str(file), "--epochs", "1"]
    more += ["--patches_per_volume", "3", "--patches_per_epoch", "7", "--num_workers", "1"]
    assert main([*tiny, *more]) == 0
    config = json.loads((tmp_path / "logs" / "tiny" / "config.json").read_text())
    assert config["data"]["train"]["on_the_fly"] == tiny_wide.to_dict()
    assert config["flags"]["preset"] == "wide" and config["flags"]["config"] == str(file)


def test_volumes_on_the_fly_are_not_those_of_a_table(
    tiny: list[str], tmp_path: Path, tiny_wide: WideConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    p, q = (axis.ravel() for axis in np.indices((7, 7)))
    ends = np.stack([8.0 * p, 8.0 * q, 0.0 * p], axis=1)
    table = ColumnTable("square.csv", "0" * 64, p, q, ends, ends + [0.0, 0.0, 40.0])
    path = tmp_path / "placed.h5"
    write_simulated_file(path, VolumeSet(replace(tiny_wide, table=table), 0, 1))
    assert main([*tiny, "--on_the_fly", "--val_files", str(path)]) == 2
    assert "placed.h5: its columns are those of a table" in capsys.readouterr().err


def test_augmented_files_train_on_other_patches(tiny: list[str], tmp_path: Path) -> None:
    losses = []
    for level in ("none", "full"):
        more = ["--augment", level, "--experiment_title", level, "--epochs", "1"]
        assert main([*tiny, *more]) == 0
        log = json.loads((tmp_path / "logs" / level / "logs.json").read_text())
        losses.append(log["epochs"][0]["train_loss"])
        assert "volumes_per_second" not in log["epochs"][0]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("loss_type", ["bce", "weighted_bce", "boundary_weighted_dice"])
def test_every_loss_trains(tiny: list[str], tmp_path: Path, loss_type: str) -> None:
    more = ["--loss_type", loss_type, "--optimizer", "rmsprop", "--patches_per_epoch", "5"]
    assert main([*tiny, *more, "--epochs", "1", "--checkpoint_policy", "last"]) == 0
    names = set(os.listdir(tmp_path / "logs" / "tiny" / "checkpoints"))
    assert names == {"last.pth"}
    config = json.loads((tmp_path / "logs" / "tiny" / "config.json").read_text())
    assert (config["foreground"] is not None) == (loss_type == "weighted_bce")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--depth 0", "--depth 0"),
        ("--conv_kernel_size 2", "--conv_kernel_size 2"),
        ("--depth 4 --patch_size 7", "--patch_size 7"),
        ("--patch_size 33", "33"),
        ("--batch_size 0", "--batch_size 0"),
        ("--on_the_fly --patches_per_volume 0", "--patches_per_volume 0"),
        ("--on_the_fly --patch_size 33", "33 voxels"),
        ("--preset wide", "--preset: is for volumes simulated meanwhile; give --on_the_fly too"),
        ("--config a.toml", "--config: is for volumes simulated meanwhile"),
        ("--on_the_fly --preset wide --presets wide=1", "--preset and --presets: give one"),
        ("--on_the_fly --presets wide", "--presets 'wide': give shares, such as wide=0.7"),
        ("--on_the_fly --presets wide=0.7,reference=0.2", "shares [0.7, 0.2]: must be above 0"),
        ("--on_the_fly --presets wide=0.5,wide=0.5", "shares [0.5]: must be above 0 and add up"),
        ("--on_the_fly --presets wide=1.5,reference=-0.5", "shares [1.5, -0.5]: must be above 0"),
        ("--on_the_fly --presets narrow=1", "preset 'narrow': must be one of"),
        ("--on_the_fly --config none.toml", "none.toml: cannot be read"),
        ("--patch_size 16 --depth 5 --patches_per_epoch 1", "a single patch a step: with"),
        ("--patch_size 16 --depth 5 --batch_size 1", "a single patch a step: with"),
        ("--patch_size 16 --depth 5 --on_the_fly --patches_per_epoch 1", "a single patch a step"),
        ("--epochs 0", "--epochs 0"),
        ("--lr_scheduler_factor 1", "--lr_scheduler_factor 1"),
        ("--start_lr -1", "--start_lr -1"),
        ("--weight_decay -0.5", "--weight_decay -0.5"),
        ("--early_stopping_patience -1", "--early_stopping_patience -1"),
        ("--seed -1", "--seed -1"),
        ("--background_threshold 7", "--background_threshold 7"),
        ("--patches_per_epoch 0", "--patches_per_epoch 0"),
        ("--MIN_PARAMS 10 --MAX_PARAMS 5", "--MIN_PARAMS 10"),
        ("--experiment_title a/b", "--experiment_title"),
        ("--train_files absent.h5", "absent.h5 does not exist; run ./gen_data.sh"),
        ("--val_files absent.h5", "absent.h5 does not exist; run ./gen_data.sh"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    assert main([*tiny, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("train_basic_3dunet.py: ") and error.count("\n") == 1
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("flags", ["--depth x", "--arch vnet", "--what 3", "--MAX_PARAMS 1.5"])
def test_flags_that_cannot_be_read(
    tiny: list[str], capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*tiny, *flags.split()])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and flags.split()[0] in error


@pytest.mark.parametrize("bounds", ["--MAX_PARAMS 100", "--MIN_PARAMS 1e6"])
def test_parameter_bounds(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], bounds: str
) -> None:
    assert main([*tiny, *bounds.split()]) == 2
    error = capsys.readouterr().err
    count = sum(
        p.numel()
        for p in build_model(ModelConfig(depth=2, start_channels=2, spatial_dims=3)).parameters()
    )
    for part in (f"{count} parameters", "--MIN_PARAMS", "--MAX_PARAMS"):
        assert part in error
    assert not (tmp_path / "logs").exists()


def test_a_network_beyond_memory_is_counted_not_built(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--start_channels", "1000000"]) == 2
    assert "parameters, outside the bounds" in capsys.readouterr().err


def test_an_existing_experiment_is_refused_and_untouched(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "logs" / "tiny"
    directory.mkdir(parents=True)
    (directory / "logs.json").write_text("mine")
    assert main(tiny) == 2
    assert "exists already" in capsys.readouterr().err
    assert os.listdir(directory) == ["logs.json"]
    assert (directory / "logs.json").read_text() == "mine"


def test_a_damaged_data_file_is_named(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(b"no volumes here")
    assert main([*tiny, "--train_files", str(damaged)]) == 2
    error = capsys.readouterr().err
    assert "damaged.h5" in error and error.count("\n") == 1
    assert not (tmp_path / "logs").exists()


def test_a_diverging_training_fails_and_says_where(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--start_lr", "1e30", "--loss_type", "bce", "--epochs", "5"]) == 1
    exit_record = json.loads((tmp_path / "logs" / "tiny" / "logs.json").read_text())["exit"]
    assert exit_record["status"] == 1
    assert "epoch" in exit_record["reason"] and "batch" in exit_record["reason"]
    assert exit_record["reason"] in capsys.readouterr().err


def in_epoch(
    number: int, act: Callable[[SegmentationFake3DDataset], object]
) -> Callable[..., object]:
    """Return a ``__getitem__`` of the data set that first acts, once epoch ``number`` trains."""
    read = SegmentationFake3DDataset.__getitem__

    def reading(self: SegmentationFake3DDataset, item: int) -> object:
        if self.epoch == number:
            act(self)
        return read(self, item)

    return reading


def no_memory(data: SegmentationFake3DDataset) -> None:
    torch.empty(2**55, dtype=torch.uint8)  # fails at once, in torch's own words


def no_memory_on_a_gpu(data: SegmentationFake3DDataset) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def die(data: SegmentationFake3DDataset) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def truncate(data: SegmentationFake3DDataset) -> None:
    os.truncate(data.files[0].path, 3000)
    data.files[0].close()  # what the file's cache holds would be read on


def remove(data: SegmentationFake3DDataset) -> None:
    data.files[0].path.unlink(missing_ok=True)
    data.files[0].close()  # a process that has it open would read on


def no_deterministic_kernel(data: SegmentationFake3DDataset) -> None:
    raise RuntimeError(
        "max_pool3d_with_indices_backward_cuda does not have a deterministic implementation, but "
        "you set 'torch.use_deterministic_algorithms(True)'."
    )


@pytest.mark.parametrize(
    ("act", "workers", "reason"),
    [
        (no_memory, 0, "out of memory: lower --batch_size, --start_channels or (3D) --patch_size"),
        (no_memory, 1, "out of memory: lower --batch_size, --start_channels or (3D) --patch_size"),
        (no_memory_on_a_gpu, 0, "out of memory: lower --batch_size, --start_channels"),
        (no_deterministic_kernel, 0, "--deterministic: torch cannot, use --device cpu"),
        (die, 1, "a loader process died; try --num_work"),
        (truncate, 0, "train1.h5"),
        (remove, 0, "train1.h5"),
        (remove, 1, "train1.h5"),
    ],
)
def test_failures_during_training_are_one_line_and_recorded(
    tiny: list[str],
    tmp_path: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[SegmentationFake3DDataset], object],
    workers: int,
    reason: str,
) -> None:
    tiny += ["--data_dir", str(shutil.copytree(data_dir, tmp_path / "data"))]
    monkeypatch.setattr(SegmentationFake3DDataset, "__getitem__", in_epoch(2, act))
    assert main([*tiny, "--epochs", "3", "--num_workers", str(workers)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("training stopped: ") and error.count("\n") == 1
    assert reason in error
    log = json.loads((tmp_path / "logs" / "tiny" / "logs.json").read_text())
    assert [record["epoch"] for record in log["epochs"]] == [1]
    assert log["exit"]["status"] == 1 and reason in log["exit"]["reason"]
    assert load_checkpoint(tmp_path / "logs" / "tiny" / "checkpoints" / "last.pth")["epoch"] == 1


def test_a_budget_of_minutes_ends_within_an_epoch_and_can_be_raised(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epochs", "50", "--lr_schedule", "cosine"]
    assert main([*tiny, *more, "--max_minutes", "1e-06"]) == 0  # no step is as quick
    directory = tmp_path / "logs" / "tiny"
    log = json.loads((directory / "logs.json").read_text())
    (record,) = log["epochs"]
    assert record["steps"] == 1  # of two: 6 patches in batches of 4
    assert record["minutes"] > 1e-06
    assert log["exit"]["reason"].startswith("1e-06 minutes are over: completed 1 epochs")
    assert load_checkpoint(directory)["epoch"] == 1
    resume = [*tiny[5:9], "--resume"]
    assert main(resume) == 0  # the time spent before counts
    assert len(json.loads((directory / "logs.json").read_text())["epochs"]) == 1
    longer = ["--max_minutes", "60", "--epochs", "2"]
    assert main([*resume, *longer]) == 0
    epochs = json.loads((directory / "logs.json").read_text())["epochs"]
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert epochs[1]["minutes"] > epochs[0]["minutes"]


def test_the_clock_and_equal_bits_exclude_each_other(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--max_minutes", "5", "--deterministic"]) == 2
    assert "leave it out with --deterministic" in capsys.readouterr().err


def test_the_recipe_stands_in_the_records(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--recipe", "fast", "--epochs", "1"]) == 0
    output = capsys.readouterr().out
    assert "recipe" in output and "overruled: " in output
    config = json.loads((tmp_path / "logs" / "tiny" / "config.json").read_text())
    assert config["recipe"]["name"] == "fast"
    assert config["recipe"]["values"]["lr_schedule"] == "onecycle"
    assert "depth" not in config["recipe"]["values"]
    assert config["model"]["stem_stride"] == 2
    assert config["compile"]["on"] is False
    assert "on a CPU it does not pay" in config["compile"]["reason"]


def test_ctrl_c_in_a_real_process(tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *tiny, "--epochs", "100000", "--num_workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        log = tmp_path / "logs" / "tiny" / "logs.json"
        deadline = time.monotonic() + 180
        while not (log.exists() and json.loads(log.read_text())["epochs"]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip().splitlines() == [
        "SIGINT: training ends after this step; again: at once",
        "training stopped: interrupted by SIGINT",
    ]
    content = json.loads(log.read_text())
    assert content["exit"] == {"reason": "interrupted by SIGINT", "status": 130}
    state = load_checkpoint(tmp_path / "logs" / "tiny" / "checkpoints" / "last.pth")
    assert state["epoch"] == len(content["epochs"])
