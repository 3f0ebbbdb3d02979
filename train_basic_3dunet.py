"""Train a 3D network to segment visual columns, on volumes that ./gen_data.sh has made.

    ./gen_data.sh
    python train_basic_3dunet.py --experiment_title first_try --start_channels 8 --batch_size 8
    python train_basic_3dunet.py --arch stacked_unet --num_stacks 2 --experiment_title two_stacks
    python train_basic_3dunet.py --on_the_fly --augment flips --experiment_title endless
    python train_basic_3dunet.py --on_the_fly --presets wide=0.75,reference=0.25 \
        --init columns3d_reference
    python train_basic_3dunet.py --init columns3d --recipe fast --max_minutes 20 --mix 0.5 \
        --train_files crop.tif=crop_labels.tif --ignore_label 99 --experiment_title ours

Records, checkpoints and pictures go to <log_path>/<experiment_title>/. All flags and their defaults
stand in FLAGS, right below; --help says what each means and which values it takes. Exit status: 0
when training ends as planned, 1 when it fails, 2 for a mistake in the flags or the data files, 130
when it is interrupted.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, exit_status
from utils.training.flag_table import make_parser, parse_training_flags
from utils.training.options import (
    Sources,
    TrainingOptions,
    check_patch_size,
    experiment_directory,
    find_sources,
    let_waiting_threads_sleep,
    live_shares,
    network_settings,
)

if TYPE_CHECKING:
    from utils.simulation.volume import Config, Mixture
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
        "patches_per_epoch": None,  # one a sample; 2048 with --on_the_fly, 256 with labelled stacks
        "augment": "none",
        "channel": None,
        "axes": None,
        "voxel_size": None,
        "ignore_label": None,
        "scale": "auto",
        "val_share": None,  # 0.2 of labelled stacks where no others are named
        "mix": None,
        "on_the_fly": False,
        "preset": None,
        "presets": None,
        "config": None,
        "patches_per_volume": 8,
        "num_workers": 2,
    },
    "network": {
        "init": None,
        "freeze": None,
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
    sources = find_sources(flags)

    # Torch comes with these, so they wait until the flags are known to be right.
    from models import ModelConfig, build_model
    from utils.training.run import run_training

    config = ModelConfig(**settings)
    network = config.to_dict(), functools.partial(build_model, config)
    load = functools.partial(load_data, flags, *sources, directory)
    return run_training(__file__, flags, options, directory, *network, flags.patch_size, load)


def load_data(
    flags: argparse.Namespace, train: Sources, valid: Sources, directory: Path
) -> TrainingData:
    """Open the data; training takes patches of labelled stacks, of simulated volumes, or of both.

    ``directory`` is the log directory, where a run that is resumed finds the spacing of columns
    that its labelled stacks were scaled to.
    """
    from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset
    from utils.data.simulated import MixedDataset, split_batch
    from utils.training import ranks
    from utils.training.labelled_stacks import load_labelled
    from utils.training.run import TrainingData
    from utils.training.starting import known_network

    patches = {"patch_size": flags.patch_size, "background_threshold": flags.background_threshold}
    of_volumes = of_labelled = flags.patches_per_epoch
    if flags.mix is not None:
        parts = split_batch(flags.batch_size, flags.mix, ranks.world_size())
        batches = -(-flags.patches_per_epoch // flags.batch_size)
        of_volumes, of_labelled = (batches * part for part in parts)
    trained_on = validation = spacing = None
    about: dict[str, str] = {}
    if train.files:
        trained_on = SegmentationFake3DDataset(
            train.files, patches_per_epoch=of_volumes, seed=flags.seed, **patches
        )
        about["train"] = f"{trained_on.num_samples:,} simulated volumes"
        spacing = trained_on.column_spacing()
    elif flags.on_the_fly or flags.mix is not None:
        trained_on = OnTheFly3DDataset(
            live_volumes(flags, valid.files),
            patches_per_epoch=of_volumes or 2048,
            patches_per_volume=flags.patches_per_volume,
            augment=flags.augment,
            seed=flags.seed,
            **patches,
        )
        about["train"] = f"volumes on the fly, {flags.patches_per_volume} patches of each"
    if valid.files:
        # Always the same validation patches, so that runs of different seeds can be compared.
        validation = SegmentationFake3DDataset(valid.files, seed=0, **patches)
        about["validation"] = f"{validation.num_samples:,} simulated volumes"
        spacing = spacing or validation.column_spacing()
    elif trained_on is not None and not train.labelled:
        spacing = spacing or trained_on.column_spacing()  # not that of stacks to validate on
    if train.labelled or valid.labelled:
        labelled = load_labelled(
            flags,
            train.labelled,
            valid.labelled,
            spatial_dims=3,
            patches=(of_labelled, None),
            ancestor=known_network(flags, directory),
            spacing=spacing and sum(spacing) / len(spacing),
            **patches,
        )
        about |= labelled.about
        validation = labelled.validation or validation
        if train.labelled or not spacing:
            spacing = labelled.spacing_voxels
        if flags.mix is not None:
            sets = trained_on, labelled.train
            trained_on = MixedDataset(*sets, parts, flags.augment, flags.seed)
            about["mix"] = f"{parts[0]} simulated and {parts[1]} labelled patches in every batch"
        elif train.labelled:
            trained_on = labelled.train
    about["patches"] = (
        f"{len(trained_on):,} of {flags.patch_size}^3 voxels in a training epoch, "
        f"augmentation {flags.augment}"
    )
    return TrainingData(trained_on, validation, spacing, about)


def live_volumes(flags: argparse.Namespace, valid_files: Sequence[Path]) -> Config | Mixture:
    """Return what volumes on the fly are: as the flags say, else those of a file to validate on.

    Where there is none either, a mixture of both presets, as the pretrained network has seen.
    """
    from utils.simulation.volume import VolumeConfig
    from utils.storage import VolumeFile
    from utils.storage.config_files import read_mixture

    shape, shares = VolumeConfig().shape, live_shares(flags)
    if valid_files:
        with VolumeFile(valid_files[0]) as file:
            shape, config = file.shape, file.config
        if not shares and not flags.config:
            if getattr(config, "table", None) is not None:
                raise UserError(
                    f"{valid_files[0]}: its columns are those of a table, which volumes on the fly "
                    "cannot have; say what they are by --preset, --presets or --config"
                )
            return config
    elif not flags.config:
        shares = shares or {"wide": 0.75, "reference": 0.25}
    return read_mixture(shares, flags.config, shape)


if __name__ == "__main__":
    sys.exit(main())
