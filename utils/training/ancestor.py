"""Training that starts from the weights of another network: ``--init``."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import UserError
from utils.prediction.trained_network import TrainedNetwork, read_network
from utils.training.experiment import LAST
from utils.training.options import NETWORK_FLAGS

RATE = 1 / 3  # of the default rate: weights that are good already are left by large steps
EPOCHS = 30  # default of --epochs: a shorter plan than from nothing


def ancestor_defaults(init: str, start_lr: float) -> dict[str, Any]:
    """Return the defaults of flags for a training from ``init``, whose own rate is ``start_lr``.

    Raises UserError where no network is found.
    """
    config = read_network(init).config
    network = {flag: config[field] for field, flag in NETWORK_FLAGS.items() if field in config}
    return {**network, "start_lr": RATE * start_lr, "epochs": EPOCHS}


def check_network_flags(flags: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Raise UserError for a flag of the network that was given otherwise than the ancestor's."""
    differences = [
        f"--{flag} is {getattr(flags, flag)}, and {defaults[flag]} there"
        for flag in NETWORK_FLAGS.values()
        if flag in defaults and getattr(flags, flag) != defaults[flag]
    ]
    if differences:
        raise UserError(
            f"--init {flags.init}: the network is that one's: {'; '.join(differences)}. Leave "
            "these flags out"
        )


def known_network(flags: argparse.Namespace, directory: Path) -> TrainedNetwork | None:
    """Return the network that a training with --init begins with, or is resumed with.

    The ancestor may be gone when a run in ``directory`` goes on.
    """
    last = directory / "checkpoints" / LAST
    begun = flags.resume and last.exists()
    return read_network(last if begun else flags.init) if flags.init else None


def inherit(model: nn.Module, init: str, dims: int) -> TrainedNetwork:
    """Give ``model``, of ``dims`` axes, the weights of ``init``; return that network.

    Raises UserError unless it is of the same configuration.
    """
    network = read_network(init)
    theirs = network.config.get("spatial_dims")
    if theirs != dims:
        raise UserError(
            f"--init {init}: is a {theirs}D network, and this script trains {dims}D ones"
        )
    network.restore(model, "cpu", dims).train()
    return network
