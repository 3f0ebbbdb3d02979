"""Training steps that the benchmarks time: those of this project's loop, and plain float32 ones.

A batch is (images, masks), each (batch, 1, x, y, z) float32; masks are 0 or 1. Whatever trains on
batches returns the seconds that it took.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.data import SegmentationFake3DDataset
from utils.devices import Compute, memory_format
from utils.simulation import VolumeConfig
from utils.storage import VolumeSet, write_simulated_file
from utils.training.computing import Compiling, compile_network
from utils.training.loaders import build_loader
from utils.training.loop import as_stacks, train_one_epoch
from utils.training.losses import build_loss
from utils.training.options import TrainingOptions
from utils.training.ranks import make_fabric
from utils.training.speed_up_on_cpu import speed_up_on_cpu
from utils.training.state import build_optimizer

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class OurLoop:
    """A network in this project's loop: its Fabric, memory format, loss, optimiser and counting."""

    fabric: Fabric
    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer

    @classmethod
    def around(
        cls, model: nn.Module, compute: Compute, options: TrainingOptions, compiled: bool, edge: int
    ) -> OurLoop:
        """Set ``model`` up as the training script does; its first step compiles it, if it is."""
        fabric = make_fabric(compute, options.seed)
        model = model.to(memory_format=memory_format(5))
        if compute.device == "cpu":
            model = speed_up_on_cpu(model)
        model, optimizer = fabric.setup(model, build_optimizer(model, options))
        compiling = Compiling(compiled, required=True, reason="as the benchmark is told")
        compile_network(model.module, compiling)
        return cls(fabric, model, build_loss(options).to(fabric.device), optimizer)

    def train(self, batches: Iterable[Batch]) -> float:
        """Take a step on each batch."""
        return train_one_epoch(
            self.fabric, self.model, self.loss, batches, self.optimizer, "benchmark"
        ).seconds


@dataclass(frozen=True)
class PlainLoop:
    """A network as tutorials train it: float32, contiguous, the same loss and optimiser."""

    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer

    @classmethod
    def around(cls, model: nn.Module, device: str, options: TrainingOptions) -> PlainLoop:
        """Set ``model`` up on ``device``."""
        model = model.to(device)
        return cls(model, build_loss(options).to(device), build_optimizer(model, options))

    def train(self, batches: Iterable[Batch]) -> float:
        """Take a step on each batch."""
        self.model.train()
        started = time.perf_counter()
        for images, masks in batches:
            self.optimizer.zero_grad()
            stacks = as_stacks(self.model(images))
            loss = torch.stack([self.loss(logits, masks) for logits in stacks]).sum()
            loss.backward()
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - started


@contextmanager
def training_file(given: Path | None, volumes: int) -> Iterator[Path]:
    """Give the data file to read patches from: ``given``, or one of default volumes made for it."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.h5"
        write_simulated_file(path, VolumeSet(VolumeConfig(), seed=1, num_samples=volumes))
        path.read_bytes()
        yield path


def open_loader(
    fabric: Fabric, path: Path, edge: int, options: TrainingOptions, patches: int
) -> Iterable[Batch]:
    """Return the training loader of ``patches`` patches of ``edge`` voxels an epoch."""
    data = SegmentationFake3DDataset(path, patch_size=edge, patches_per_epoch=patches)
    return build_loader(fabric, data, options, training=True)


def time_loader(loader: Iterable[Batch], device: str) -> float:
    """Return samples a second of a loader that nothing waits for."""
    started, samples = time.perf_counter(), 0
    for images, _ in loader:
        samples += len(images)
    wait_for(device)
    return samples / (time.perf_counter() - started)


def wait_for(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
