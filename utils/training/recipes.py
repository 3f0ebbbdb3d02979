"""Bundles of defaults for the flags of training, chosen with --recipe; imports nothing heavy.

A flag on the command line always wins over the recipe's value for it. With --resume the flags of
the run that goes on are the defaults.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.flags import is_labelled
from utils.training.resuming import check_unchanged, recorded_flags

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
NEVER_TAKEN_OVER = {"resume", "experiment_title", "log_path", "overwrite"}
"""Flags that a resumed run has as they are given."""


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
    try:
        if first.resume:
            directory = Path(first.log_path) / first.experiment_title
            recorded = recorded_flags(directory, Path(script).name)
            defaults |= recorded
        elif first.init:
            from utils.training.ancestor import ancestor_defaults, check_network_flags  # torch

            inherited = ancestor_defaults(first.init, {**plain, **defaults}["start_lr"])
            defaults |= inherited
        taken_over = defaults.keys() & plain.keys() - NEVER_TAKEN_OVER
        parser.set_defaults(**{name: defaults[name] for name in taken_over})
        flags = parser.parse_args(arguments)
        patience = defaults.get("early_stopping_patience")
        if flags.lr_schedule != "plateau" and patience in (None, defaults.get("epochs")):
            parser.set_defaults(early_stopping_patience=flags.epochs)
            flags = parser.parse_args(arguments)
        if first.resume:
            check_unchanged(flags, recorded, plain)
        elif first.init:
            check_network_flags(flags, inherited)
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
