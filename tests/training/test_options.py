"""Flags and options: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.training.options import (
    TrainingOptions,
    check_patch_size,
    check_values,
    describe_network,
    describe_training,
    experiment_directory,
    network_settings,
    resolve_files,
)

NETWORK = {
    "arch": "unet",
    "depth": 4,
    "start_channels": 4,
    "stem_stride": 1,
    "num_stacks": 1,
    "conv_kernel_size": 3,
    "resblocks": False,
    "MIN_PARAMS": 0,
    "MAX_PARAMS": 30_000_000,
}


def network_flags(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{**NETWORK, **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 1),
        ("batch_size", 1),
        ("early_stopping_patience", 1),
        ("lr_scheduler_patience", 0),
        ("lr_scheduler_factor", 0.999),
        ("weight_decay", 0.1),
        ("start_lr", 1e-12),
        ("boundary_weight", 0.0),
        ("boundary_thickness", 3),
        ("num_workers", 0),
        ("seed", 2**32 - 1),
        ("optimizer", "rmsprop"),
        ("loss_type", "boundary_weighted_dice"),
        ("checkpoint_policy", "all"),
        ("device", "cuda"),
        ("precision", "32"),
        ("optimizer", "adamw"),
        ("lr_schedule", "onecycle"),
        ("max_minutes", 0.01),
        ("ema", 0.0),
        ("ema", 0.9999),
        ("compile", "on"),
    ],
)
def test_good_options(field: str, value: object) -> None:
    assert getattr(TrainingOptions(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", -4, "at least 1"),
        ("early_stopping_patience", 0, "at least 1"),
        ("lr_scheduler_patience", -1, "at least 0"),
        ("lr_scheduler_factor", 1.0, "between 0 and 1"),
        ("lr_scheduler_factor", 0.0, "between 0 and 1"),
        ("lr_scheduler_factor", float("nan"), "between 0 and 1"),
        ("weight_decay", -1e-3, "at least 0"),
        ("weight_decay", float("inf"), "at least 0"),
        ("start_lr", 0.0, "larger than 0"),
        ("start_lr", float("nan"), "larger than 0"),
        ("start_lr", float("inf"), "larger than 0"),
        ("boundary_weight", -1.0, "at least 0"),
        ("boundary_thickness", 0, "at least 1"),
        ("num_workers", -1, "at least 0"),
        ("devices", 0, "at least 1"),
        ("num_nodes", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**32, "below 2^32"),
        ("optimizer", "sgd", "adam, adamw, rmsprop"),
        ("loss_type", "focal", "weighted_bce"),
        ("checkpoint_policy", "none", "last, best, all"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("precision", "16", "auto, 32, bf16"),
        ("lr_schedule", "step", "plateau, cosine, onecycle"),
        ("max_minutes", 0.0, "larger than 0"),
        ("max_minutes", float("nan"), "larger than 0"),
        ("ema", 1.0, "in 0..1"),
        ("ema", -0.1, "in 0..1"),
        ("ema", float("nan"), "in 0..1"),
        ("compile", "yes", "auto, on, off"),
    ],
)
def test_bad_options_name_flag_value_and_remedy(field: str, value: object, right: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainingOptions(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"--{field} ")
    assert str(value) in message
    assert right in message
    assert "\n" not in message


def test_options_take_the_flags_of_their_names() -> None:
    flags = argparse.Namespace(epochs=7, optimizer="rmsprop", log_path="elsewhere")
    options = TrainingOptions.from_flags(flags)
    assert (options.epochs, options.optimizer, options.batch_size) == (7, "rmsprop", 32)


def test_network_settings_are_the_models_words() -> None:
    settings = network_settings(network_flags(depth=3, resblocks=True), spatial_dims=2)
    assert settings == {
        "arch": "unet",
        "spatial_dims": 2,
        "depth": 3,
        "start_channels": 4,
        "stem_stride": 1,
        "num_stacks": 1,
        "conv_kernel_size": 3,
        "residual": True,
    }


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("depth", 0),
        ("depth", 10**9),
        ("start_channels", 0),
        ("stem_stride", 0),
        ("num_stacks", 0),
        ("conv_kernel_size", 4),
        ("conv_kernel_size", -3),
        ("MIN_PARAMS", -1),
        ("arch", "vnet"),
    ],
)
def test_bad_network_flags(flag: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^--{flag} "):
        network_settings(network_flags(**{flag: value}), spatial_dims=3)


@pytest.mark.parametrize(
    ("patch_size", "depth", "batch_size"), [(8, 4, 2), (1, 1, 2), (9, 4, 1), (64, 7, 32)]
)
def test_patches_that_survive_the_poolings(patch_size: int, depth: int, batch_size: int) -> None:
    check_patch_size(patch_size, depth, batch_size)


@pytest.mark.parametrize(
    ("patch_size", "depth", "batch_size", "message"),
    [
        (7, 4, 2, "--patch_size 7: must be at least 8"),
        (0, 1, 2, "--patch_size 0"),
        (64, 8, 2, "at least 128"),
        (8, 4, 1, "a single patch a step: .* batch norm"),
    ],
)
def test_patches_that_do_not(patch_size: int, depth: int, batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_patch_size(patch_size, depth, batch_size)


def test_a_strided_stem_needs_larger_patches() -> None:
    check_patch_size(16, 4, 2, stem_stride=2)
    for size, batch, message in (
        (15, 2, "--patch_size 15: must be at least 16 with --depth 4 and --stem_stride 2"),
        (16, 1, "a single patch a step: .* --stem_stride 2 one voxel"),
        (1, 2, "at least 16"),
    ):
        with pytest.raises(UserError, match=message):
            check_patch_size(size, 4, batch, stem_stride=2)


def test_flags_of_the_data_are_checked_too() -> None:
    check_values({"background_threshold": 0.0, "patches_per_epoch": None, "log_path": ""})
    for name, value in (
        ("background_threshold", 1.2),
        ("background_threshold", float("nan")),
        ("patches_per_epoch", 0),
        ("patches_per_volume", 0),
        ("L_test", 0),
        ("objective", "lines"),
    ):
        with pytest.raises(UserError, match=f"--{name} '?{value}'?: must "):
            network_settings(network_flags(**{name: value}), spatial_dims=3)


@pytest.mark.parametrize("title", ["my_experiment", "α 7", "-x", "a.b", "..c"])
def test_good_titles(tmp_path: Path, title: str) -> None:
    assert experiment_directory(tmp_path / "new", title) == tmp_path / "new" / title
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "title", ["", " ", ".", "..", "a/b", "/a", "a\\b", " a", "a\n", "a\0", "x" * 201]
)
def test_bad_titles(tmp_path: Path, title: str) -> None:
    with pytest.raises(UserError, match="--experiment_title"):
        experiment_directory(tmp_path, title)


def test_an_existing_experiment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(UserError, match="exists already.*--experiment_title"):
        experiment_directory(tmp_path, "old")


def test_bare_names_are_in_the_data_directory_and_paths_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.h5").write_text("")
    files = ["a.h5", str(tmp_path / "sub" / "b.h5")]
    assert resolve_files(files, tmp_path, "--train_files") == [
        tmp_path / "a.h5",
        tmp_path / "sub" / "b.h5",
    ]
    with pytest.raises(UserError, match=r"c\.h5 does not exist; run \./gen_data\.sh"):
        resolve_files(["a.h5", "c.h5"], tmp_path, "--train_files")


def test_descriptions_tell_what_is_about_to_happen() -> None:
    line = describe_network(network_flags(arch="stacked_unet", num_stacks=2, resblocks=True), 1234)
    for part in ("stacked_unet", "num_stacks 2", "depth 4", "resblocks True", "1,234 parameters"):
        assert part in line
    assert "no effect" in describe_network(network_flags(num_stacks=2), 1)
    line = describe_training(TrainingOptions(epochs=3, batch_size=7, seed=5))
    for part in ("dice", "adam", "0.001", "plateau", "batch_size 7", "epochs 3", "seed 5"):
        assert part in line
    assert "minutes" not in line
    line = describe_training(TrainingOptions(max_minutes=7.5, ema=0.99, lr_schedule="onecycle"))
    for part in ("max_minutes 7.5", "ema 0.99", "onecycle"):
        assert part in line
    assert "stem_stride 2" in describe_network(network_flags(stem_stride=2), 1)


def test_openmp_is_told_before_torch_is_loaded() -> None:
    code = (
        "import train_basic_3dunet as script, os, sys; script.run = lambda *_: 0;"
        "assert script.main([]) == 0 and 'torch' not in sys.modules;"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in ((None, "passive"), ("active", "active")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": given} if given else {}
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == expected
