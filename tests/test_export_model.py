"""A network made part of the program by the script."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export_model
from models import ModelConfig, build_model
from utils.checkpoints.loading import load_checkpoint
from utils.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def log(tmp_path):
    config = ModelConfig(depth=1, start_channels=1)
    compute = {"device": "cpu", "precision": "32"}
    record = {"flags": {"depth": 1}, "parameters": 9, "compute": compute}
    experiment = Experiment.create(tmp_path / "log", record, __file__)
    state = {
        "model_config": config.to_dict(),
        "model_state": build_model(config).state_dict(),
        "normalizer": {"low_percent": 1.0, "high_percent": 99.0},
        "spacing_voxels": [9.0] * 3,
        "patch_size": 16,
        "epoch": 3,
    }
    experiment.save_checkpoint("last.pth", state)
    return experiment.directory


def test_file_and_card(log, tmp_path, capsys):
    output = tmp_path / "pretrained"
    flags = ["--checkpoint", str(log), "--pretrained", "small", "--output", str(output)]
    assert export_model.main([*flags, "--hardware", "a toaster"]) == 0
    assert capsys.readouterr().out == f"wrote {output / 'small.pth'}\nwrote {output / 'small.md'}\n"
    assert load_checkpoint(output / "small.pth")["epoch"] == 3
    assert "a toaster" in (output / "small.md").read_text()
    assert export_model.main(flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert export_model.main([*flags, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "absent"], "absent does not exist"),
        (["--pretrained", "a b"], "'a b' is no name"),
        (["--evaluation", "nowhere"], "nowhere/summary.json: cannot be read (No such file"),
        (["--checkpoint", "lonely.pth"], "config.json: cannot be read (No such file"),
    ],
)
def test_a_users_mistake_is_one_line(log, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    torch.save(load_checkpoint(log), tmp_path / "lonely.pth")
    base = ["--checkpoint", str(log), "--pretrained", "x", "--output", "out"]
    assert export_model.main([*base, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("export_model.py: ") and captured.err.count("\n") == 1
    assert message in captured.err and not (tmp_path / "out").exists()


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, export_model\n"
        "try: export_model.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--pretrained NAME" in done.stdout
