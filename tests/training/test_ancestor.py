"""Trainings that start from the weights of another network."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import train_basic_2dunet
import train_basic_3dunet
from utils.checkpoints.loading import load_checkpoint
from utils.simulation import VolumeConfig
from utils.storage import VolumeSet, write_simulated_file
from utils.training.recipes import FAST

pytestmark = pytest.mark.usefixtures("unrendered")
NETWORK = ["--depth", "2", "--start_channels", "2", "--conv_kernel_size", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: VolumeConfig) -> Path:
    """With a data file and the log directory of a first training."""
    folder = tmp_path_factory.mktemp("ancestor")
    logger = logging.getLogger("utils.training")
    before = list(logger.handlers), logger.propagate
    write_simulated_file(folder / "tiny.h5", VolumeSet(tiny_config, 1, 3))
    assert train_basic_3dunet.main([*flags(folder, "first"), *NETWORK, "--epochs", "1"]) == 0
    logger.handlers[:], logger.propagate = before  # announced before a test's own are kept
    return folder


def flags(folder: Path, title: str) -> list[str]:
    return [
        *("--train_files", str(folder / "tiny.h5"), "--val_files", str(folder / "tiny.h5")),
        *("--log_path", str(folder), "--experiment_title", title, "--patch_size", "8"),
        *("--batch_size", "2", "--num_workers", "0", "--device", "cpu", "--precision", "32"),
    ]


def test_the_network_and_its_weights_are_the_ancestors(folder: Path) -> None:
    """At a rate of nearly 0 the kernels stay to the bit what they were."""
    more = ["--init", str(folder / "first"), "--epochs", "1", "--start_lr", "1e-30"]
    assert train_basic_3dunet.main([*flags(folder, "second"), *more]) == 0
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
    assert train_basic_3dunet.main([*flags(folder, "third"), *more]) == 0
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
    assert train_basic_3dunet.main([*flags(folder, "killed"), *more]) == 0
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
    assert train_basic_3dunet.main([*flags(folder, title), *more, "1"]) == 0
    again = ["--resume", "--log_path", str(folder), "--experiment_title", title, "--epochs", "2"]
    assert train_basic_3dunet.main(again) == 0
    first, second = load_checkpoint(folder / "first"), load_checkpoint(folder / title)
    for name, tensor in first["model_state"].items():
        same = torch.equal(tensor, second["model_state"][name])
        assert same == (".encoder." in name), name


def test_only_an_ancestor_is_frozen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_basic_3dunet.main([*flags(folder, "none"), "--freeze", "encoder"]) == 2
    message = "--freeze encoder: keeps weights of a trained network; give --init too"
    assert message in capsys.readouterr().err and not (folder / "none").exists()
