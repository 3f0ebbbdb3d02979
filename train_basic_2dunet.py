"""Train a 2D network on simulated images: to segment columns, or to find their centres.

    python train_basic_2dunet.py --epochs 20 --experiment_title demo2d
    python train_basic_2dunet.py --objective keypoints --experiment_title centres
    python train_basic_2dunet.py --L_train 1024 --train_file "" --experiment_title more_images
    python train_basic_2dunet.py --train_file lab --experiment_title ours  # lab/images, lab/labels

The three sets are simulated at the first run and kept in the files named; an empty name keeps one
in memory, and --overwrite makes files anew that hold other images or too few. Records, checkpoints
and pictures go to <log_path>/<experiment_title>/, the scores of the best checkpoint on the test set
into logs.json under "test". All flags and their defaults stand in FLAGS, right below; --help says
what each means and which values it takes. Exit status: 0 when training ends as planned, 1 when it
fails, 2 for a mistake in the flags or the data files, 130 when it is interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, exit_status
from utils.flags import is_labelled
from utils.training.flag_table import make_parser, parse_training_flags
from utils.training.options import (
    TrainingOptions,
    check_label_flags,
    check_patch_size,
    experiment_directory,
    let_waiting_threads_sleep,
    network_settings,
)

if TYPE_CHECKING:
    from torch import nn

    from utils.data.images import Fake2DDataset
    from utils.training.run import TrainingData

FLAGS = {
    "experiment": {
        "experiment_title": "my_experiment",
        "resume": False,
        "log_path": "./logs",
        "checkpoint_policy": "best",
        "objective": "segmentation",
        "tensorboard": True,
        "seed": 0,
    },
    "data": {
        "L_train": 128,
        "L_validate": 32,
        "L_test": 32,
        "train_file": "./train_dataset.h5",
        "validation_file": "./validation_dataset.h5",
        "test_file": "./test_dataset.h5",
        "overwrite": False,
        "augment": "none",
        "channel": None,
        "axes": None,
        "voxel_size": None,
        "ignore_label": None,
        "scale": "auto",
        "val_share": None,  # 0.2 of labelled stacks where no others are named
        "num_workers": 0,
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
FILES = ("train_file", "validation_file", "test_file")
SEEDS = (111, 999, 2222)  # of the simulated sets, in that order
IMAGE_EDGE = 128  # in pixels


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exits with status 2 and one line for those that cannot be read."""
    parser = make_parser("Train a 2D network on simulated images.", FLAGS)
    return parse_training_flags(parser, arguments, __file__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, prepare, train, test; return the exit status."""
    let_waiting_threads_sleep()
    flags = parse_flags(arguments)
    return exit_status(
        "train_basic_2dunet.py", lambda: run(flags), "interrupted before training began"
    )


def run(flags: argparse.Namespace) -> int:
    """Train as ``flags`` say; raises UserError as long as no log has been begun."""
    options = TrainingOptions.from_flags(flags)
    settings = network_settings(flags, spatial_dims=2)
    a_step = min(flags.batch_size, flags.L_train)
    check_patch_size(IMAGE_EDGE, flags.depth, a_step, flags.stem_stride, "images with an edge of")
    labelled = check_files(flags)
    directory = experiment_directory(flags.log_path, flags.experiment_title, flags.resume)

    # Torch comes with these, so they wait until the flags are known to be right.
    from models import ModelConfig, build_model
    from utils.training.run import run_training

    config = ModelConfig(**settings)
    network = config.to_dict(), functools.partial(build_model, config)
    load = functools.partial(load_images if labelled else load_data, flags, directory)
    return run_training(__file__, flags, options, directory, *network, IMAGE_EDGE, load)


def check_files(flags: argparse.Namespace) -> bool:
    """Return whether the images are labelled ones instead of simulated.

    Raises UserError for sets of both kinds, or in one file, and flags that do not go together.
    """
    names = {flag: name for flag in FILES if (name := getattr(flags, flag))}
    labelled = [flag for flag, name in names.items() if is_labelled(name)]
    check_label_flags(flags, "train_file" in labelled, bool(labelled))
    missing = "train_file" not in labelled or len(labelled) < len(names)
    if labelled and (missing or flags.objective != "segmentation"):
        raise UserError(
            f"--{labelled[0]} {names[labelled[0]]}: is a folder or pair of labelled images; "
            "labelled images go with labelled images in all sets, and with --objective "
            "segmentation"
        )
    if not labelled and len({Path(name).absolute() for name in names.values()}) < len(names):
        raise UserError(f"--{', --'.join(names)}: each set needs a file of its own")
    return bool(labelled)


def load_images(flags: argparse.Namespace, directory: Path) -> TrainingData:
    """Open labelled images; ``directory`` is the log directory of a run that may be resumed."""
    from utils.training.labelled_stacks import load_labelled
    from utils.training.starting import known_network

    ancestor = known_network(flags, directory)
    size = {"patch_size": IMAGE_EDGE, "spatial_dims": 2, "ancestor": ancestor}
    valid = [flags.validation_file] if flags.validation_file else []
    numbers = flags.L_train, flags.L_validate
    data = load_labelled(flags, [flags.train_file], valid, patches=numbers, **size)
    if not flags.test_file:
        return data
    test = load_labelled(flags, [], [flags.test_file], patches=(None, flags.L_test), **size)
    return dataclasses.replace(data, test=test.validation)


def load_data(flags: argparse.Namespace, directory: Path) -> TrainingData:
    """Load or simulate the training, validation and test set."""
    from utils.training.run import TrainingData

    counts = flags.L_train, flags.L_validate, flags.L_test
    train, validation, test = map(functools.partial(load_set, flags), FILES, SEEDS, counts)
    about = {"train": repr(train), "validation": repr(validation), "test": repr(test)}
    data = TrainingData(train, validation, train.column_spacing(), about, test)
    if flags.objective == "segmentation":
        return data
    scores = functools.partial(score_keypoints, data=test)
    return dataclasses.replace(data, other_scores=scores)


def load_set(flags: argparse.Namespace, flag: str, seed: int, count: int) -> Fake2DDataset:
    """Load or simulate the set of a ``flag`` for files; items: (image, target), (1, X, Y) float32.

    Raises UserError for a file that holds others, unless --overwrite makes it anew.
    """
    from utils.data import KeypointDetectionFake2DDataset, SegmentationFake2DDataset
    from utils.storage import OtherParametersError

    make, file = SegmentationFake2DDataset, getattr(flags, flag)
    if flags.objective == "keypoints":
        make = functools.partial(KeypointDetectionFake2DDataset, with_centres=False)
    make = functools.partial(make, count, seed, file or None, shape=(IMAGE_EDGE, IMAGE_EDGE))
    try:
        return make()
    except OtherParametersError as error:
        if not flags.overwrite:
            way_out = f"--overwrite makes it anew, another --{flag} leaves it as it is"
            raise UserError(f"{error}; {way_out}") from error
    Path(file).unlink()
    return make()


def score_keypoints(model: nn.Module, data: Fake2DDataset) -> dict[str, float | None]:
    """Return precision, recall and mean distance of the peaks that ``model`` puts on all images."""
    import torch

    from utils.evaluation.keypoints import KeypointScores, find_peaks, match_points
    from utils.training.loop import as_stacks

    model.eval()
    device = next(model.parameters()).device
    total = KeypointScores()
    with torch.inference_mode():
        for index in range(len(data)):
            logits = as_stacks(model(data[index][0][None].to(device)))[-1]
            heat_map = torch.sigmoid(logits.float())[0, 0].cpu().numpy()
            total += match_points(find_peaks(heat_map), data.centres(index))
    return total.metrics()


if __name__ == "__main__":
    sys.exit(main())
