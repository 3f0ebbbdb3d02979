"""The search script: flags, mistakes, and a tiny study of real trainings, taken up again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import search_hyperparameters
from search_hyperparameters import DEFAULT_STUDY, main
from tests.conftest import run_and_time
from utils.simulation import VolumeConfig
from utils.storage import VolumeSet, write_simulated_file

SCRIPT = Path(search_hyperparameters.__file__)
STUDY = """
question = "Is deeper better?"
script = "train_basic_3dunet.py"
sampler = "grid"
[fixed]
train_files = ["train.h5"]
start_channels = 2
patch_size = 8
batch_size = 4
epochs = 1
num_workers = 0
device = "cpu"
precision = "32"
compile = "off"
MAX_PARAMS = 10_000
[search]
depth = [2, 4]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "deeper.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def data(tmp_path: Path, tiny_config: VolumeConfig) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    for name, seed, count in (("train", 1, 2), ("vol_val_set", 9, 1)):
        write_simulated_file(directory / f"{name}.h5", VolumeSet(tiny_config, seed, count))
    return directory


def test_help_comes_at_once() -> None:
    answer, seconds = run_and_time([sys.executable, str(SCRIPT), "--help"])
    assert answer.returncode == 0 and seconds < 1
    for flag in ("--n_trials", "--timeout_minutes", "--jobs", "--storage", "--report_only"):
        assert flag in answer.stdout
    assert DEFAULT_STUDY.is_file()


def test_mistakes_load_neither_optuna_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys, search_hyperparameters as s; status = s.main(['absent.toml']);"
        "sys.exit(0 if status == 2 and not {'optuna', 'torch'} & set(sys.modules) else 1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True, timeout=240)


def test_two_trainings_and_a_second_call(
    study: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.replace("depth = [2, 4]", "depth = [1, 2]\nseed = [3]"))
    command = [str(study), "--log_path", str(tmp_path / "logs"), "--", "--data_dir", str(data)]
    assert main(command) == 0
    output = capsys.readouterr().out
    for part in ("Is deeper better?", "2 trials", "trial_0001 complete: IoU", "95 % interval"):
        assert part in output
    folder = tmp_path / "logs" / "deeper"
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["depth"] for row in rows} == {"1", "2"}
    for row in rows:
        trial = folder / f"trial_000{row['trial']}"
        log = json.loads((trial / "logs.json").read_text())
        config = json.loads((trial / "config.json").read_text())
        assert row["state"] == "complete"
        assert float(row["iou"]) == log["epochs"][0]["valid_iou"]
        assert int(row["parameters"]) == config["parameters"]
        assert config["flags"]["depth"] == int(row["depth"])
    means = pd.read_csv(folder / "seeds.csv")
    assert sorted(means["mean"]) == sorted(float(row["iou"]) for row in rows)
    for name in ("history.png", "curves.png", "flags.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
    before = sorted(path.name for path in folder.iterdir())
    assert main(command) == 0
    assert "0 trials" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_refused_training_is_a_row_of_the_table(
    study: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.replace("[2, 4]", "[4]"))
    command = [str(study), "--log_path", str(tmp_path / "logs"), "--", "--data_dir", str(data)]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "trial_0000 failed: train_basic_3dunet.py: the network has" in output
    with (tmp_path / "logs" / "deeper" / "trials.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["state"] == "failed" and "--MAX_PARAMS 10000" in row["reason"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--n_trials 0", "--n_trials 0: must be larger than 0"),
        ("--jobs 0", "--jobs 0: must be larger than 0"),
        ("--timeout_minutes 0", "--timeout_minutes 0.0: must be larger than 0"),
        ("--study a/b", "--study 'a/b': must be a plain name"),
        ("--storage nonsense", "--storage: Could not parse"),
        ("-- --depth 3", "depth is tried: it cannot be fixed"),
        ("-- --epochs many", "deeper.toml: argument --epochs: invalid int value"),
        ("-- --experiment_title x", "the search names the trials itself"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    log_path = ["--log_path", str(tmp_path / "logs")]
    assert main([str(study), *log_path, *flags.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert error.startswith("search_hyperparameters.py: ")
    assert not list(tmp_path.glob("logs/*/*"))


def test_a_search_without_an_end_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.replace('"grid"', '"random"'))
    assert main([str(study), "--log_path", str(tmp_path / "logs")]) == 2
    assert "give --n_trials or --timeout_minutes" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_a_report_of_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(study), "--log_path", str(tmp_path / "logs"), "--report_only"]) == 0
    assert "no trial yet" in capsys.readouterr().out


def test_ctrl_c_ends_the_training_and_says_how_to_go_on(
    study: Path, data: Path, tmp_path: Path
) -> None:
    study.write_text(STUDY.replace("[2, 4]", "[2]"))
    flags = ["--log_path", str(tmp_path / "logs"), "--", "--data_dir", str(data)]
    command = [sys.executable, str(SCRIPT), str(study), *flags, "--epochs", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "logs" / "deeper" / "trial_0000" / "logs.json"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        deadline = time.monotonic() + 240
        while not (log.exists() and json.loads(log.read_text())["epochs"]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=200)
    assert process.returncode == 130
    assert error == ("search_hyperparameters.py: interrupted by SIGINT; the same command goes on\n")
    assert "trial_0000 failed: cut, to be repeated" in output
    assert json.loads(log.read_text())["exit"]["reason"] == "interrupted by SIGTERM"
