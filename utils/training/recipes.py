"""Bundles of defaults for the flags of training, chosen with --recipe; imports nothing heavy.

A flag on the command line always wins over the recipe's value for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

REFERENCE: Mapping[str, Any] = MappingProxyType(
    {
        "loss_type": "dice",
        "optimizer": "adam",
        "weight_decay": 0.0,
        "start_lr": 1e-3,
        "lr_schedule": "plateau",
        "lr_scheduler_factor": 0.20,
        "lr_scheduler_patience": 3,
        "ema": 0.0,
        "no_shuffle": True,
    }
)
"""How the reference trains: Adam, plateau, the same order in each epoch; of the network nothing."""

FAST: Mapping[str, Any] = MappingProxyType(
    {
        "arch": "unet",
        "stem_stride": 2,
        "start_channels": 16,
        "depth": 4,
        "loss_type": "bce",
        "optimizer": "adamw",
        "weight_decay": 1e-2,
        "start_lr": 3e-3,
        "lr_schedule": "onecycle",
        "batch_size": 8,
    }
)
"""What learns most per minute on volumes: a network on blocks of two voxels, and one cycle."""

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"reference": REFERENCE, "fast": FAST})


def parse_training_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse with the defaults of the recipe that --recipe names; flags that are given win.

    A schedule whose end is planned (any but plateau) sets the default of --early_stopping_patience
    to --epochs: it is not cut before its rate has come down, unless the flag is given.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", default=None)
    try:
        recipe = first.parse_known_args(arguments)[0].recipe
    except argparse.ArgumentError:  # the parser proper says it in its own words
        recipe = None
    known = {action.dest for action in parser._actions}
    values = {name: value for name, value in RECIPES.get(recipe, {}).items() if name in known}
    parser.set_defaults(**values)
    flags = parser.parse_args(arguments)
    if flags.lr_schedule != "plateau":
        parser.set_defaults(early_stopping_patience=flags.epochs)
        flags = parser.parse_args(arguments)
    return flags


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
