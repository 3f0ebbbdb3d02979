"""Train a 3D network to segment visual columns, on volumes that ./gen_data.sh has made.

    ./gen_data.sh
    python train_basic_3dunet.py --experiment_title first_try --start_channels 8 --batch_size 8
    python train_basic_3dunet.py --arch stacked_unet --num_stacks 2 --experiment_title two_stacks
    python train_basic_3dunet.py --on_the_fly --augment flips --experiment_title endless
    python train_basic_3dunet.py --on_the_fly --presets wide=0.75,reference=0.25 \
        --init columns3d_reference

Records, checkpoints and pictures go to <log_path>/<experiment_title>/. All flags and their defaults
stand in FLAGS, right below; --help says what each means and which values it takes. Exit status: 0
when training ends as planned, 1 when it fails, 2 for a mistake in the flags or the data files, 130
when it is interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import exit_status
from utils.training.flag_table import make_parser
from utils.training.options import (
    TrainingOptions,
    check_patch_size,
    experiment_directory,
    let_waiting_threads_sleep,
    live_shares,
    network_settings,
    resolve_files,
)
from utils.training.recipes import parse_training_flags

if TYPE_CHECKING:
    from utils.training.run import TrainingData

FLAGS = {
    "experiment": {
        "experiment_title": "my_experiment",
        "resume": False,
        "log_path": "./logs",
        "checkpoint_policy": "best",
        "tensorboard": True,
        "seed": 0,
    },
    "data": {
        "data_dir": "./vol_data",
        "train_files": [f"vol_train_set{i}.h5" for i in (1, 2, 3, 4)],
        "val_files": ["vol_val_set.h5"],
        "patch_size": 64,
        "background_threshold": 0.95,
        "patches_per_epoch": None,  # one a sample; 2048 with --on_the_fly
        "augment": "none",
        "on_the_fly": False,
        "preset": None,
        "presets": None,
        "config": None,
        "patches_per_volume": 8,
        "num_workers": 2,
    },
    "network": {
        "init": None,
        "arch": "unet",
        "depth": 4,
        "start_channels": 4,
        "stem_stride": 1,
        "num_stacks": 1,
        "conv_kernel_size": 3,
        "resblocks": False,
        "MAX_PARAMS": 30_000_000,
        "MIN_PARAMS": 0,
    },
    "training": {
        "recipe": None,
        "batch_size": 32,
        "epochs": 100,
        "max_minutes": None,
        "early_stopping_patience": 15,
        "optimizer": "adam",
        "loss_type": "dice",
        "boundary_weight": 1.0,
        "boundary_thickness": 1,
        "weight_decay": 0.0,
        "start_lr": 1e-3,
        "lr_schedule": "plateau",
        "lr_scheduler_factor": 0.20,
        "lr_scheduler_patience": 3,
        "ema": 0.0,
        "no_shuffle": False,
    },
    "machine": {
        "device": "auto",
        "devices": "auto",
        "num_nodes": 1,
        "precision": "auto",
        "compile": "auto",
        "deterministic": False,
    },
}


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exits with status 2 and one line for those that cannot be read."""
    parser = make_parser("Train a 3D network to segment visual columns.", FLAGS)
    return parse_training_flags(parser, arguments, __file__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, prepare, train; return the exit status."""
    let_waiting_threads_sleep()
    flags = parse_flags(arguments)
    return exit_status(
        "train_basic_3dunet.py", lambda: run(flags), "interrupted before training began"
    )


def run(flags: argparse.Namespace) -> int:
    """Train as ``flags`` say; raises UserError as long as nothing has been written."""
    options = TrainingOptions.from_flags(flags)
    settings = network_settings(flags, spatial_dims=3)
    check_patch_size(flags.patch_size, flags.depth, flags.batch_size, flags.stem_stride)
    directory = experiment_directory(flags.log_path, flags.experiment_title, flags.resume)
    shares = live_shares(flags)
    train_files = []
    if not flags.on_the_fly:
        train_files = resolve_files(flags.train_files, flags.data_dir, "--train_files")
    valid_files = resolve_files(flags.val_files, flags.data_dir, "--val_files")

    # Torch comes with these, so they wait until the flags are known to be right.
    from models import ModelConfig, build_model
    from utils.training.run import run_training

    config = ModelConfig(**settings)
    return run_training(
        __file__,
        flags,
        options,
        directory,
        config.to_dict(),
        lambda: build_model(config),
        flags.patch_size,
        lambda: load_data(flags, train_files, valid_files, shares),
    )


def load_data(
    flags: argparse.Namespace,
    train_files: Sequence[Path],
    valid_files: Sequence[Path],
    shares: Mapping[str, float],
) -> TrainingData:
    """Open the data files; training takes its patches from them or from volumes on the fly."""
    from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset
    from utils.storage import VolumeFile
    from utils.storage.config_files import read_mixture
    from utils.training.run import TrainingData

    patches = {"patch_size": flags.patch_size, "background_threshold": flags.background_threshold}
    # Always the same validation patches, so that runs of different seeds can be compared.
    validation = SegmentationFake3DDataset(valid_files, seed=0, **patches)
    validated = f"{validation.num_samples:,} validation samples in"
    if flags.on_the_fly:
        with VolumeFile(valid_files[0]) as file:
            live = file.config
        if shares or flags.config:
            live = read_mixture(shares, flags.config, live.shape)
        train = OnTheFly3DDataset(
            live,
            patches_per_epoch=flags.patches_per_epoch or 2048,
            patches_per_volume=flags.patches_per_volume,
            augment=flags.augment,
            seed=flags.seed,
            **patches,
        )
        idle = ", --no_shuffle has no effect" * flags.no_shuffle
        samples = (
            f"training volumes simulated on the fly, {flags.patches_per_volume} patches of each "
            f"(--train_files are not read{idle}); {validated} {len(valid_files)} files"
        )
    else:
        train = SegmentationFake3DDataset(
            train_files, patches_per_epoch=flags.patches_per_epoch, seed=flags.seed, **patches
        )
        samples = f"{train.num_samples:,} training and {validated} "
        samples += f"{len(train_files)} and {len(valid_files)} files"
    return TrainingData(
        train,
        validation,
        spacing_voxels=(validation if flags.on_the_fly else train).column_spacing(),
        about={
            "data": samples,
            "patches": f"{len(train):,} of {flags.patch_size}^3 voxels in a training epoch, "
            f"augmentation {flags.augment}",
        },
    )


if __name__ == "__main__":
    sys.exit(main())
