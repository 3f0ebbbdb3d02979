"""A trained network as prediction takes it: its checkpoint, checked, and its weights in place.

Which network a configuration means is not known here: scripts build it, ``models`` stays apart.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from utils.checkpoints.loading import load_checkpoint
from utils.data.normalize import PercentileNormalizer, measure_limits
from utils.devices import memory_format
from utils.errors import UserError
from utils.prediction.network_voxels import network_shape
from utils.prediction.sliding_window import Windows, predict_volume, window_within
from utils.prediction.trust import Calibration
from utils.prediction.whole_stack import StackPrediction
from utils.replacing import read_json
from utils.simulation import SimulatedVolume
from utils.stacks import Stack

Config = TypeVar("Config")
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMALISATIONS = (nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class TrainedNetwork:
    """What a checkpoint says; made by :func:`read_network`."""

    path: str  # as it was asked for: a file, a log directory or a name
    epoch: int  # epochs completed
    config: Mapping[str, Any]  # of the model, plain
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    normalizer: PercentileNormalizer  # the rule by which its training data were scaled
    patch_size: int  # edge of the patches that it was trained on, in voxels
    spacing: float  # of neighbouring columns in its training, in voxels (mean of the axes)
    objective: str | None  # a 2D network's; None where the checkpoint does not say
    mirrored: bool  # False where its last training is known to have shown no mirror images
    trust: Calibration | None = None  # what IoU to expect of its masks; None: not measured

    def parse_config(self, from_dict: Callable[[dict[str, Any]], Config]) -> Config:
        """Return ``from_dict(config)``; UserError for a configuration that it refuses."""
        try:
            return from_dict(dict(self.config))
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"{self.path}: its network cannot be built ({error})") from error

    def restore(self, model: nn.Module, device: str, dims: int) -> nn.Module:
        """Return ``model``, of ``dims`` axes, with the weights on ``device``, to predict only.

        Raises UserError if the weights are those of another network.
        """
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise UserError(
                f"{self.path}: the stored weights do not fit the stored model configuration "
                f"({str(error).splitlines()[0]})"
            ) from error
        return model.to(device, memory_format=memory_format(dims + 2)).eval()

    def fingerprint(self) -> str:
        """Return a check sum of the weights."""
        digest = hashlib.sha256()
        for name, tensor in self.weights.items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()


def read_network(path: str | Path) -> TrainedNetwork:
    """Read what :func:`utils.checkpoints.loading.load_checkpoint` finds under ``path``.

    Raises what that does, and UserError if it lacks a part, or holds what cannot be right.
    """
    state = load_checkpoint(path)
    try:
        lengths = [float(length) for length in state["spacing_voxels"]]
        # checkpoints that name no rule: images are still scaled as they were
        in_2d = dict(state["model_config"]).get("spatial_dims") == 2
        rule = {"rule": "percentiles" if in_2d else "robust"}
        flags = dict(state.get("flags", {}))
        network = TrainedNetwork(
            path=str(path),
            epoch=int(state["epoch"]),
            config=dict(state["model_config"]),
            weights=state["model_state"],
            normalizer=PercentileNormalizer(**{**rule, **state["normalizer"]}),
            patch_size=int(state["patch_size"]),
            spacing=sum(lengths) / len(lengths),
            objective=flags.get("objective"),
            mirrored=flags.get("augment") != "none",
            trust=Calibration.from_dict(state["trust"]) if "trust" in state else None,
        )
    except KeyError as error:
        raise UserError(f"{path}: no whole checkpoint: it lacks {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: no sound checkpoint ({error})") from error
    if network.patch_size < 1:
        raise UserError(f"{path}: no sound checkpoint (patch_size is {network.patch_size})")
    for name, tensor in network.weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{path}: its weights are not finite ({name}): the training had diverged; take an "
                "earlier checkpoint"
            )
    return network


def fused(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` for evaluation only, without the normalisations it can lack.

    In evaluation a batch normalisation is one factor and one offset a channel, which the weights
    and bias of a convolution directly before it in an ``nn.Sequential`` can carry. The answers stay
    the same but for rounding; a U-Net of 4 channels takes a fifth less time in bfloat16.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for k in range(len(module) - 1):
                first, second = module[k], module[k + 1]
                if isinstance(first, CONVOLUTIONS) and isinstance(second, NORMALISATIONS):
                    module[k], module[k + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
    return model


class PlaneByPlane(nn.Module):
    """Passes windows that are one plane deep through a network for images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits of (batch, 1, X, Y, 1) windows; of several maps the last."""
        logits = self.network(windows[..., 0])
        if isinstance(logits, (list, tuple)):
            logits = logits[-1]
        return logits[..., None]


@dataclass(frozen=True)
class NetworkPredictions:
    """A network that predicts whole volumes from their images, as an evaluation asks for them."""

    checkpoint: Path
    network: TrainedNetwork
    model: nn.Module
    parameters: int  # weights that training changes
    window: int
    overlap: float
    batch_size: int
    trained_on: str | None
    """A training file that is one of the data, or has their seed, if the record names one."""
    tta: tuple[str, ...] = ()  # views of each window that are averaged, as in predict.py
    scale: float | str = "auto"  # of stacks, as in predict.py; simulated volumes stay as they are
    said: list[str] = field(default_factory=list)
    """Lines on what the network saw of stacks, to which :meth:`predict_stack` adds."""

    def predict(self, index: int, volume: SimulatedVolume) -> tuple[np.ndarray, None]:
        """Return probabilities (X, Y, Z); simulated volumes have no voxel size."""
        names = ("window", "overlap", "batch_size", "tta")
        how = {name: getattr(self, name) for name in names}
        return predict_volume(self.model, volume.image, self.network.normalizer, **how), None

    def predict_stack(self, stack: Stack) -> tuple[np.ndarray, tuple[float, ...] | None]:
        """Return probabilities (X, Y, Z) or (X, Y) of a stack, as predict.py, and its voxel size.

        In the stack's own voxels; those of the network are cubes, scaled to its column spacing.
        """
        by_planes = self.network.config["spatial_dims"] < len(stack.shape)
        shape, reasons = network_shape(stack, self.scale, self.network.spacing, by_planes=by_planes)
        self.said.extend(f"{stack.path.name}: {reason}" for reason in reasons)
        edges = window_within(shape, self.window)
        model = PlaneByPlane(self.model) if by_planes else self.model
        edges = (*edges[:-1], 1) if by_planes else edges
        windows = Windows(edges, self.overlap, self.batch_size, self.tta)
        normalizer = self.network.normalizer
        limits = measure_limits(stack, normalizer)
        prediction = StackPrediction(model, stack, normalizer, limits, shape, windows)
        result = np.empty(stack.shape, np.float32)
        for start, slab in prediction.slabs():
            result[..., start : start + slab.shape[-1]] = slab
        return result, stack.spacing

    def describe(self) -> dict[str, Any]:
        """Return what predicted, as plain JSON."""
        return {
            "checkpoint": str(self.checkpoint),
            "epoch": self.network.epoch,
            "model": {**self.network.config, "parameters": self.parameters},
            "normalizer": self.network.normalizer.to_dict(),
            "window": self.window,
            "overlap": self.overlap,
            "tta": self.tta,
            "device": next(self.model.parameters()).device.type,
        }


def training_file(
    directory: Path, seed: int | None = None, files: Iterable[Path] = ()
) -> str | None:
    """Return a training file with this seed, or one of ``files``, that the record there names."""
    try:
        data = read_json(directory / "config.json").get("data")
    except UserError:  # there is none, or it is of another program: a note's worth is lost
        return None
    train = data.get("train") if isinstance(data, dict) else None
    if not isinstance(train, list):  # as of volumes on the fly, which no file holds
        return None
    paths = {path.resolve() for path in files}
    for entry in train:
        if entry.get("seed", -1) == seed or Path(entry.get("file", "")).resolve() in paths:
            return entry.get("file")  # volumes that were mixed in have none
    return None
