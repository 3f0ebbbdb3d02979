"""A mistake of the user is one line and status 2; a bug of ours keeps its traceback, status 1."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, write_fake_file
from utils.errors import UserError, disk_errors, exit_status

PREDICT = str(ROOT / "predict.py")
IN_CHECKOUT = {**os.environ, "PYTHONPATH": str(ROOT)}
SMALL = "--checkpoint columns3d"
TINY = "--patch_size 16 --batch_size 2 --train_files ./a.h5 --val_files ./a.h5"
WORK = [
    # (script, what of its work is broken, its arguments)
    ("predict", "utils.stacks.open_stack", f"{SMALL} --input a.npy"),
    ("predict", "utils.stacks.stack.Stack.read", f"{SMALL} --input a.npy"),
    ("find_columns", "utils.columns.finding.find_in_blocks", "--input a.npy"),
    (
        "evaluate",
        "utils.storage.VolumeFile.read_volume",
        "--checkpoint columns3d --data a.h5 --volumes 1",
    ),
    ("export_model", "utils.checkpoints.loading.load_checkpoint", "--checkpoint x --pretrained y"),
    ("search_hyperparameters", "utils.search.study.open_study", "--n_trials 1 --log_path logs"),
    ("train_basic_3dunet", "models.build_model", TINY),
    ("train_basic_3dunet", "utils.training.run.train", TINY),
    ("train_basic_2dunet", "utils.training.run.build_loss", "--L_train 2 --L_validate 2"),
    ("utils.figures.__main__", "utils.simulation.simulate_volume", "samples --count 1"),
]


@pytest.mark.parametrize("kind", [ValueError, OSError])
@pytest.mark.parametrize(("script", "target", "arguments"), WORK)
def test_a_bug_keeps_its_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    target: str,
    arguments: str,
    kind: type[Exception],
) -> None:
    def bug(*arguments: object, **options: object) -> None:
        raise kind("planted")

    np.save(tmp_path / "a.npy", np.zeros((16, 16, 16), np.uint8))
    write_fake_file(tmp_path / "a.h5", num_samples=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target, bug)
    try:
        status = importlib.import_module(script).main(arguments.split())
    except kind:  # Python prints it and ends with status 1: the test below
        status, printed = 1, traceback.format_exc()
    else:
        printed = capsys.readouterr().err
    assert status == 1
    assert "Traceback" in printed and f"{kind.__name__}: planted" in printed


def test_a_script_ends_with_what_main_raises(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 4), np.float32))
    code = "import runpy, sys, utils.stacks; utils.stacks.open_stack = None; sys.argv[1:] = "
    code += f"['--input', 'a.npy', '--checkpoint', 'columns3d']; runpy.run_path({PREDICT!r}, "
    command = [sys.executable, "-c", code + "run_name='__main__')"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=IN_CHECKOUT)
    assert ended.returncode == 1
    assert ended.stderr.endswith("TypeError: 'NoneType' object is not callable\n")


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> None:
        raise UserError("--depth 0:\n must be at least 1")

    assert exit_status("script.py", mistake) == 2
    assert capsys.readouterr().err == "script.py: --depth 0: must be at least 1\n"


def test_ctrl_c_is_told_in_the_scripts_words(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_status("script.py", interrupted, "interrupted; nothing is kept") == 130
    assert capsys.readouterr().err == "script.py: interrupted; nothing is kept\n"
    assert exit_status("script.py", lambda: None) == 0
    assert exit_status("script.py", lambda: 3) == 3


def test_the_disk_s_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "file"
    with pytest.raises(UserError, match=r"absent/file: cannot be read \(No such file"):
        with disk_errors(path):
            path.read_bytes()
    with pytest.raises(LookupError), disk_errors(path):
        raise LookupError
