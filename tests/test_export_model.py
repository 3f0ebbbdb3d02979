"""A network made part of the program by the script."""

import gc
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import export_model
import predict
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


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # as bioimageio leaves them
def test_a_package_predicts_the_mask_of_its_log_directory(log, tmp_path, monkeypatch, capsys):
    pytest.importorskip("bioimageio.core")
    monkeypatch.setattr(export_model, "SAMPLE", 32)
    package, onnx = tmp_path / "net.zip", tmp_path / "net.onnx"
    flags = ["--checkpoint", str(log), "--bioimageio", str(package), "--onnx", str(onnx)]
    assert export_model.main([*flags, "--hardware", "a toaster"]) == 0
    gc.collect()
    assert capsys.readouterr().out == f"wrote {onnx}\nwrote {package}\n"
    with zipfile.ZipFile(package) as files:
        card = files.read("README.md").decode()
        assert files.read("network.onnx") == onnx.read_bytes()
    assert card.startswith("# net\n") and "a toaster" in card and "--checkpoint net.zip" in card
    stack = np.random.default_rng(0).poisson(30, (9, 10, 11)).astype(np.uint16)
    np.save(tmp_path / "stack.npy", stack)
    maps = []
    for name, checkpoint in {"a": log, "b": package}.items():
        outputs = [tmp_path / f"{name}.npy", tmp_path / f"{name}_p.npy"]
        files = ["--output", str(outputs[0]), "--probabilities", str(outputs[1]), "--no-preview"]
        stack_flags = ["--input", str(tmp_path / "stack.npy"), "--voxel_size", "1,1,1"]
        assert predict.main(["--checkpoint", str(checkpoint), *stack_flags, *files]) == 0
        maps.append([output.read_bytes() for output in outputs])
    assert maps[0] == maps[1] and np.ptp(np.load(tmp_path / "a_p.npy")) > 0
    assert export_model.main(flags) == 2
    assert "net.onnx: exists already; --overwrite" in capsys.readouterr().err
    (tmp_path / "net.zip").write_bytes(package.read_bytes()[:99])
    stack_flags += ["--output", str(tmp_path / "c.npy")]
    assert predict.main(["--checkpoint", str(package), *stack_flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--onnx", "net.pth"], "--onnx net.pth: the name must end with .onnx"),
        (["--bioimageio", "net"], "--bioimageio net: the name must end with .zip"),
        (["--onnx", "nowhere/net.onnx"], "the folder nowhere does not exist"),
        (["--bioimageio", "net.zip", "--license", "MITT"], "bioimage.io does not take 'MITT'"),
        (["--bioimageio", "net.zip", "--pretrained", "a b"], "'a b' is no name"),
        (["--bioimageio", "net.zip", "--checkpoint", "centres.pth"], "--objective keypoints"),
        (["--bioimageio", "net.zip", "--checkpoint", "lonely.pth"], "config.json: cannot be read"),
        (["--bioimageio", "net.zip", "--evaluation", "x"], "x/summary.json: cannot be read"),
    ],
)
def test_what_cannot_be_handed_on_is_one_line(log, tmp_path, monkeypatch, capsys, flags, message):
    pytest.importorskip("bioimageio.core")
    monkeypatch.chdir(tmp_path)
    state = load_checkpoint(log)
    torch.save(state, tmp_path / "lonely.pth")
    torch.save({**state, "flags": {"objective": "keypoints"}}, tmp_path / "centres.pth")
    before = sorted(tmp_path.iterdir())
    assert export_model.main(["--checkpoint", str(log), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("export_model.py: ") and captured.err.count("\n") == 1
    assert message in captured.err and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flag", "module"),
    [("--onnx", "onnxscript"), ("--bioimageio", "onnxruntime"), ("--bioimageio", "bioimageio")],
)
def test_missing_packages_name_what_to_install(log, tmp_path, monkeypatch, capsys, flag, module):
    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / ("net.onnx" if flag == "--onnx" else "net.zip")
    assert export_model.main(["--checkpoint", str(log), flag, str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{flag} needs " in error and "pip install -r requirements-export.txt" in error
    assert error.count("\n") == 1 and not path.exists()


def test_something_must_be_asked_for(log, capsys):
    with pytest.raises(SystemExit) as caught:
        export_model.main(["--checkpoint", str(log)])
    assert caught.value.code == 2
    assert "--pretrained NAME, --onnx FILE.onnx or --bioimageio" in capsys.readouterr().err


def test_what_is_needed_is_in_the_tests_environment():
    def lines(name):
        return {line for line in (ROOT / name).read_text().splitlines() if line[0] != "#"}

    assert lines("requirements-export.txt") <= lines("requirements-dev.txt")


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
