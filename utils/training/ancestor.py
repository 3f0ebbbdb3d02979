"""Training that starts from the weights of another network: ``--init``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import UserError
from utils.prediction.trained_network import TrainedNetwork, read_network
from utils.training.experiment import LAST

FLAGS = {
    "arch": "arch",
    "depth": "depth",
    "start_channels": "start_channels",
    "stem_stride": "stem_stride",
    "num_stacks": "num_stacks",
    "conv_kernel_size": "conv_kernel_size",
    "residual": "resblocks",
}
"""The flag of each field of a network's configuration."""
RATE = 1 / 3
"""Of the default rate: weights that are good already are left by large steps."""
EPOCHS = 30
"""Default of --epochs: a shorter plan than from nothing."""


def ancestor_defaults(init: str, start_lr: float) -> dict[str, Any]:
    """Return the defaults of flags for a training from ``init``, whose own rate is ``start_lr``.

    Raises UserError where no network is found.
    """
    config = read_network(init).config
    network = {flag: config[field] for field, flag in FLAGS.items() if field in config}
    return {**network, "start_lr": RATE * start_lr, "epochs": EPOCHS}


def check_network_flags(flags: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Raise UserError for a flag of the network that was given otherwise than the ancestor's."""
    differences = [
        f"--{flag} is {getattr(flags, flag)}, and {defaults[flag]} there"
        for flag in FLAGS.values()
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
    if not flags.init:
        return None
    return read_network(last if flags.resume and last.exists() else flags.init)


def read_ancestor(init: str, model_config: Mapping[str, Any]) -> TrainedNetwork:
    """Return the network to start from; UserError unless it is of this configuration."""
    network = read_network(init)
    dims, own = network.config.get("spatial_dims"), model_config["spatial_dims"]
    if dims != own:
        raise UserError(f"--init {init}: is a {dims}D network, and this script trains {own}D ones")
    return network


def inherit(model: nn.Module, ancestor: TrainedNetwork) -> nn.Module:
    """Return ``model`` with the ancestor's weights, ready to be trained."""
    return ancestor.restore(model, "cpu", ancestor.config["spatial_dims"]).train()


def freeze_encoder(model: nn.Module) -> nn.Module:
    """Return ``model``, whose encoder no training changes any more, batch norm included."""
    model.encoder.requires_grad_(False)
    return model


def describe_ancestor(ancestor: TrainedNetwork) -> dict[str, Any]:
    """Return which network that is, as plain JSON: its name may mean another one some day."""
    return {
        "checkpoint": ancestor.path,
        "epoch": ancestor.epoch,
        "sha256": ancestor.fingerprint(),
    }
