"""The flags of the training scripts: what they mean, once, and how a command line is read.

Which flags a script has, and their defaults, stands at its top; :func:`parse_training_flags` joins
the two. --recipe chooses another bundle of defaults, and with --resume the flags of the run that
goes on are the defaults; a flag on the command line always wins. Imports nothing heavy.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.flags import FlagParser, is_labelled, number_or_auto, voxel_size, whole_number
from utils.training import options

Defaults = Mapping[str, Mapping[str, Any]]  # by topic: the default of each flag, by its name

HELP = {
    # experiment
    "experiment_title": "name of the log directory; one that exists is never overwritten",
    "resume": "go on with the experiment of that name from its last checkpoint, with its flags",
    "log_path": "folder of the log directories",
    "checkpoint_policy": "keep the last state; the best by validation IoU too; or every epoch's",
    "objective": "learn the mask of the columns, or a heat map with a peak at each centre",
    "tensorboard": "write curves, slices and hyperparameters for TensorBoard too",
    "seed": "of the weights, the patches and their order; to the same bits with --deterministic",
    # data of three dimensions
    "data_dir": "folder in which bare file names are looked for",
    "train_files": "what to train on: files of simulated volumes, or labelled stacks: folders with "
    "images/ and labels/ or nnU-Net's imagesTr/ and labelsTr/, and pairs IMAGE=LABELS or "
    "IMAGE=LABELS=MASK, where MASK is 0 where nobody has annotated",
    "val_files": "likewise to validate on; default with labelled stacks: --val_share of them",
    "val_share": "share of the annotated voxels of each labelled stack that is held out, on one "
    "side of a plane, to validate on; default: 0.2 where no others are named",
    "mix": "share of simulated patches beside labelled ones in every batch and its loss: of the "
    "files among --train_files, else simulated meanwhile",
    "channel": "channel of labelled stacks, from 0; needed if there are several",
    "axes": "what the axes of labelled images are, as for predict.py, such as ZCYX",
    "voxel_size": "edge of a voxel of labelled stacks in micrometres, where files do not tell",
    "ignore_label": "value of labels where nobody has annotated: neither loss nor scores there",
    "scale": "enlarge labelled stacks so much; auto: so that columns stand as far apart as in "
    "--init, as predict.py does",
    "patch_size": "edge of the training patches, in voxels",
    "background_threshold": "largest share of background in a patch, 0..1",
    "patches_per_epoch": "training patches an epoch; else one a sample, 2048 with --on_the_fly, "
    "and 256 with labelled stacks",
    "on_the_fly": "train on volumes simulated meanwhile, each anew, with the parameters of the "
    "first of --val_files; files of volumes in --train_files are not read",
    "preset": "of which preset volumes on the fly are, of the shape of those of --val_files, "
    "instead of having their parameters; beside labelled stacks wide=0.75,reference=0.25",
    "presets": "a mixture of both by its shares, as wide=0.7,reference=0.3",
    "config": "TOML file with parameters of the preset that it names, as generate_3d_data.py "
    "--show_config prints them",
    "patches_per_volume": "patches cut from each volume on the fly",
    # data of two dimensions
    "L_train": "images to train on; patches an epoch of labelled images",
    "L_validate": "images to validate on; patches of labelled images",
    "L_test": "images to test the best checkpoint on, at the end; patches of labelled images",
    "train_file": 'file of the training set, made if it is not there; "" keeps the set in memory; '
    "or labelled images: a folder with images/ and labels/, or IMAGE=LABELS",
    "validation_file": "likewise of the validation set",
    "test_file": "likewise of the test set",
    "overwrite": "make files anew that hold another seed, other parameters or too few images",
    # data of both
    "augment": "change training patches at random: flips, exchange of the axes and turns by 90 "
    "degrees; full adds deformation, blur, noise and grey values, and is the default with labelled "
    "stacks",
    "num_workers": "processes that load or simulate, at most one a core; 0: only the training's",
    # network
    "arch": "one U-Net, or several in a row with intermediate supervision",
    "depth": "layers in each half of the U-Net; depth - 1 poolings",
    "start_channels": "channels at full resolution, doubled by each pooling",
    "stem_stride": "edge of the blocks of voxels that the network works on; 1 is full resolution",
    "num_stacks": "U-Nets in a row, for --arch stacked_unet",
    "conv_kernel_size": "edge of the convolution kernels, in voxels; odd",
    "init": "start from the weights of a network: a log directory, a .pth file, a package of "
    "export_model.py or a pretrained network's name; the network's flags are then its own, the "
    "rate lower and the plan shorter",
    "freeze": "leave the encoder of --init as it is, with its batch norm statistics",
    "resblocks": "residual blocks instead of plain ones",
    "MAX_PARAMS": "training does not start with more parameters; 30e6 can be written too",
    "MIN_PARAMS": "training does not start with fewer parameters",
    # training
    "recipe": "other defaults for a bundle of these flags; flags that are given win over it",
    "batch_size": "patches a step, on all devices together",
    "epochs": "most epochs to train",
    "max_minutes": "minutes after which training ends, within an epoch if need be; cosine and "
    "onecycle then follow the clock, so that the result depends on the machine's speed",
    "early_stopping_patience": "epochs without a lower validation loss after which training ends; "
    "with cosine and onecycle the default is --epochs",
    "optimizer": "how gradients become steps",
    "loss_type": "weighted_bce balances the labels; bce_dice is the sum of both; "
    "boundary_weighted_dice weighs voxels around the labels",
    "boundary_weight": "weight of voxels just outside the mask in boundary_weighted_dice; 1: dice",
    "boundary_thickness": "how far outside the mask that weight reaches, in voxels",
    "weight_decay": "L2 penalty on the weights; decoupled from the gradient with adamw",
    "start_lr": "learning rate at the start; the highest one with onecycle",
    "lr_schedule": "lower the rate when the validation loss stops falling; or along a cosine to 0 "
    "at the end; or the same after a climb over the first tenth",
    "lr_scheduler_factor": "factor on the rate when the validation loss stops falling (plateau)",
    "lr_scheduler_patience": "epochs to wait before that (plateau)",
    "ema": "decay of a moving average of the weights that is validated and kept, as 0.999; 0: off",
    "no_shuffle": "the same order in each epoch; without effect on --on_the_fly",
    # machine
    "device": "auto takes CUDA where there is some",
    "devices": "on each machine, a process each, which share the batches; auto takes all GPUs, one "
    "process on a CPU, or what torchrun or srun has started",
    "num_nodes": "machines, on each of which torchrun or srun starts this script",
    "precision": "of the network; auto: bf16 where the machine is fast at it; losses are float32",
    "compile": "torch.compile; auto: with CUDA; on a CPU it does not pay",
    "deterministic": "the same bits in each run on this machine, where torch can; slower, and "
    "compiled only with --compile on",
}
"""In two dimensions a patch is an image and a voxel a pixel."""

REFERENCE: Mapping[str, Any] = {
    "loss_type": "dice",
    "optimizer": "adam",
    "weight_decay": 0.0,
    "start_lr": 1e-3,
    "lr_schedule": "plateau",
    "lr_scheduler_factor": 0.20,
    "lr_scheduler_patience": 3,
    "ema": 0.0,
    "augment": "none",
    "no_shuffle": True,
}
"""How the reference trains: Adam, plateau, the same order in each epoch; of the network nothing."""

FAST: Mapping[str, Any] = {
    "arch": "unet",
    "stem_stride": 2,
    "start_channels": 16,
    "depth": 4,
    "loss_type": "bce_dice",
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "start_lr": 3e-3,
    "lr_schedule": "onecycle",
    "batch_size": 4,
    "ema": 0.998,
}
"""What learns most per minute on volumes: a network on blocks of two voxels, and one cycle."""

RECIPES: Mapping[str, Mapping[str, Any]] = {"reference": REFERENCE, "fast": FAST}
CHOICES = {**options.CHOICES, "recipe": tuple(RECIPES)}
NEVER_TAKEN_OVER = {"resume", "experiment_title", "log_path", "overwrite"}
"""Flags that a resumed run has as they are given."""


def devices_number(text: str) -> int | None:
    """Return the value of --devices, None for ``auto``; ValueError for what is no number."""
    return None if text == "auto" else int(text)


TYPES: Mapping[str, Callable[[str], Any]] = {
    "channel": int,
    "ignore_label": int,
    "mix": float,
    "val_share": float,
    "scale": number_or_auto,
    "voxel_size": voxel_size,
    "patches_per_epoch": int,
    "max_minutes": float,
    "MAX_PARAMS": whole_number,
    "MIN_PARAMS": whole_number,
    "devices": devices_number,
}
"""Of the flags whose default does not tell it; without one a flag is text."""

METAVARS = {
    **{float: "FLOAT", str: "STR", list: "FILE"},
    **{number_or_auto: "FACTOR|auto", voxel_size: "Z,Y,X"},
}


def make_parser(description: str, flags: Defaults) -> FlagParser:
    """Return the parser of a script whose flags and defaults are ``flags``."""
    parser = FlagParser(description=description)
    for topic, defaults in flags.items():
        group = parser.add_argument_group(topic)
        for name, default in defaults.items():
            kind = TYPES.get(name, str if default is None else type(default))
            reading: dict[str, Any] = {"type": kind, "metavar": METAVARS.get(kind, "INT")}
            if isinstance(default, bool):
                reading = {"action": argparse.BooleanOptionalAction if default else "store_true"}
            elif name in CHOICES:
                reading = {"choices": CHOICES[name]}
            elif kind is list:
                reading = {"nargs": "+", "metavar": METAVARS[list]}
            group.add_argument(f"--{name}", default=default, help=HELP[name], **reading)
    return parser


def parse_training_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, script: str
) -> argparse.Namespace:
    """Parse with the defaults of --recipe, --init and labelled stacks, or of the run to --resume.

    A schedule whose end is planned (any but plateau) sets the default of --early_stopping_patience
    to --epochs: it is not cut before its rate has come down, unless the flag is given. ``script``
    is the path of the training script. A mistake exits with status 2 and one line.
    """
    first = parser.parse_args(arguments)
    plain = {name: parser.get_default(name) for name in vars(first)}
    defaults = {**labelled_defaults(first, plain), **RECIPES.get(first.recipe, {})}
    if first.resume or first.init:
        from utils.training import starting  # with torch
    try:
        before: dict[str, Any] = {}
        if first.resume:
            directory = Path(first.log_path) / first.experiment_title
            before = starting.recorded_flags(directory, Path(script).name)
        elif first.init:
            before = starting.ancestor_defaults(first.init, {**plain, **defaults}["start_lr"])
        defaults |= before
        taken_over = defaults.keys() & plain.keys() - NEVER_TAKEN_OVER
        parser.set_defaults(**{name: defaults[name] for name in taken_over})
        flags = parser.parse_args(arguments)
        patience = defaults.get("early_stopping_patience")
        if flags.lr_schedule != "plateau" and patience in (None, defaults.get("epochs")):
            parser.set_defaults(early_stopping_patience=flags.epochs)
            flags = parser.parse_args(arguments)
        if first.resume:
            starting.check_unchanged(flags, before, plain)
        elif first.init:
            starting.check_network_flags(flags, before)
    except UserError as error:
        parser.error(str(error))
    return flags


def labelled_defaults(first: argparse.Namespace, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults where labelled stacks are trained on: there is little of them.

    ``plain`` are the script's own defaults: a set to validate or test on that is one of these is
    not meant.
    """
    names = getattr(first, "train_files", None) or [first.train_file]
    if not any(map(is_labelled, names)):
        return {}
    defaults = {"augment": "full", "patches_per_epoch": 256}
    if getattr(first, "test_file", None) is plain.get("test_file"):
        defaults["test_file"] = None
    for flag in ("val_files", "validation_file"):
        if flag in plain and (not getattr(first, flag) or getattr(first, flag) is plain[flag]):
            defaults |= {flag: None, "val_share": 0.2}
    return defaults


def recipe_values(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the recipe that are in force; none without --recipe."""
    values = RECIPES.get(flags.recipe, {})
    return {name: value for name, value in values.items() if vars(flags).get(name) == value}


def describe_recipe(flags: argparse.Namespace) -> str:
    """Return a line for the log: which values come from the recipe, which flags overrule it."""
    if flags.recipe is None:
        return "none: every flag as given or at its default"
    values = recipe_values(flags)
    overruled = [name for name in RECIPES[flags.recipe] if name in vars(flags).keys() - values]
    text = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{flags.recipe}: {text}" + (f"; overruled: {', '.join(overruled)}" * bool(overruled))
