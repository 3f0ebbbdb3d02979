"""The training loop, for images and volumes alike, on Lightning Fabric.

A data set yields (image, mask), both (1, *space) float32; a network maps (batch, 1, *space) to
logits of the same shape, or to a list of them, one a stack, of which the last is the prediction.
Epochs and batches are counted from 1.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler
from tqdm import tqdm

from utils.devices import memory_format
from utils.errors import UserError
from utils.evaluation.confusion import Confusion, count_voxels
from utils.simulation.streams import Purpose, make_rng
from utils.training.averaging import averaged_weights
from utils.training.compiling import NOT_COMPILED, Compiling, compile_network
from utils.training.ending import stop_if_asked
from utils.training.experiment import Examples, Experiment
from utils.training.fabric import loader_processes
from utils.training.learner import (
    Learner,
    Progress,
    go_on,
    save_checkpoints,
    set_up,
    whole_state,
)
from utils.training.options import TrainingOptions
from utils.training.ranks import (
    BatchShares,
    average_buffers,
    loss_weight,
    own_block,
    own_share,
    pooled,
    rank,
    world_size,
)
from utils.training.resuming import Resumption
from utils.training.schedules import Pace
from utils.training.tensorboard import event_files

EXAMPLES = 3
"""Validation patches shown in ``predictions.png``."""
logger = logging.getLogger("utils.training")


class NonFiniteLossError(UserError):
    """The loss is infinite or not a number; names the epoch and the batch."""


@dataclass(frozen=True)
class EpochResult:
    """What one pass over a data set gave."""

    loss: float
    """Mean over samples."""
    confusion: Confusion
    """Of the last stack, pooled over all voxels."""
    samples: int
    seconds: float


class EpochSampler(Sampler[int]):
    """All indices in an order that depends on ``seed`` and ``epoch`` alone; set the latter.

    Without ``shuffle`` they come as they are.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.length))
        rng = make_rng(Purpose.BATCH_ORDER, self.seed, self.epoch)
        return iter(rng.permutation(self.length).tolist())


def train(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    train_data: Dataset,
    valid_data: Dataset,
    options: TrainingOptions,
    experiment: Experiment,
    facts: Mapping[str, Any],
    compiling: Compiling = NOT_COMPILED,
    resumption: Resumption | None = None,
) -> str:
    """Train ``model`` and return why it ended; everything else goes into ``experiment``.

    ``facts`` go into every checkpoint (``model_config``, ``normalizer``, ``patch_size``, ...: plain
    state). A data set with a ``set_epoch`` method is told each epoch. ``last.pth`` exists before
    the first epoch and holds the last completed one ever after, so that a run can be cut at any
    moment. Raises NonFiniteLossError, and Interrupted after a signal.
    """
    shape = train_data[0][0].shape
    learner = set_up(fabric, model, options, len(shape) + 1)
    loss_function = loss_function.to(fabric.device)
    sampler = EpochSampler(len(train_data), options.seed, shuffle=not options.no_shuffle)
    loaders = (
        build_loader(fabric, train_data, options, sampler),
        build_loader(fabric, valid_data, options),
    )
    progress, history, past = go_on(learner, resumption.state if resumption else None)
    pace = Pace(options, options.epochs * len(loaders[0]), agree=fabric.broadcast, **past)

    if not progress.epoch:
        experiment.save_last(whole_state(learner, facts, progress, history, pace))
    first = progress.epoch + 1
    whole = min(options.batch_size, len(train_data))
    even = hasattr(train_data, "make_loader")  # its loader gives all ranks the same number
    batch = (whole // world_size() if even else own_share(whole), *shape)
    wanted = options.tensorboard and fabric.is_global_zero
    with (
        event_files(experiment.directory, facts.get("flags", {}), wanted) as board,
        compile_network(fabric, learner.model, loss_function, batch, compiling),
    ):
        while (reason := ending(progress, pace, options)) is None:
            epoch = progress.epoch + 1
            set_epoch(train_data, sampler, epoch)
            record, examples = train_and_validate(learner, loss_function, loaders, pace, epoch)
            if hasattr(train_data, "epoch_record"):
                record |= train_data.epoch_record()
            history.append(record)
            progress = progress.after(record["valid_loss"], record["valid_iou"])
            state = whole_state(learner, facts, progress, history, pace)
            save_checkpoints(experiment, state, options.checkpoint_policy, progress)
            experiment.update_log(epochs=history)
            experiment.draw(history, examples)
            if board:
                board.write_epoch(history, examples)
            logger.info(summary(record, options.epochs))
            if epoch == first:
                logger.info(estimate(record, options))
    return reason


def ending(progress: Progress, pace: Pace, options: TrainingOptions) -> str | None:
    """Return why training ends here, None where it goes on."""
    best = f"best validation IoU {progress.best_iou or 0:.3f} in epoch {progress.best_epoch}"
    if progress.epoch >= options.epochs:
        return f"completed {progress.epoch} epochs ({best})"
    if progress.epoch and pace.time_is_up():
        minutes = f"{options.max_minutes:g} minutes are over"
        return f"{minutes}: completed {progress.epoch} epochs ({best})"
    if progress.stale_epochs >= options.early_stopping_patience:
        stale = f"no lower validation loss for {progress.stale_epochs} epochs"
        return f"early stopping: {stale} ({best})"
    return None


def train_and_validate(
    learner: Learner,
    loss_function: nn.Module,
    loaders: tuple[DataLoader, DataLoader],
    pace: Pace,
    epoch: int,
) -> tuple[dict[str, Any], Examples]:
    """Go through one epoch; return its entry of ``logs.json``, and patches as seen."""
    started = time.perf_counter()
    pace.set_rate(learner.optimizer)
    learning_rate = learner.optimizer.param_groups[0]["lr"]
    trained = train_one_epoch(
        *(learner.fabric, learner.model, loss_function, loaders[0], learner.optimizer),
        f"epoch {epoch}, training",
        pace=pace,
        average=learner.average,
    )
    average_buffers(learner.model.module, learner.average)
    with averaged_weights(learner.model, learner.average):
        validated, examples = evaluate(
            learner.model, loss_function, loaders[1], f"epoch {epoch}, validation"
        )
    if learner.scheduler:
        learner.scheduler.step(validated.loss)
    seconds = time.perf_counter() - started
    record = epoch_record(epoch, trained, validated, learning_rate, seconds)
    return {**record, "steps": pace.steps, "minutes": pace.seconds / 60}, examples


def train_one_epoch(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    where: str,
    pace: Pace | None = None,
    average: AveragedModel | None = None,
) -> EpochResult:
    """Update ``model`` once a batch, on the sum of the stacks' losses (intermediate supervision).

    ``where`` names this pass in the progress bar and in errors. ``pace`` sets each step's learning
    rate and ends the epoch when the time is up; ``average`` follows the weights.
    """
    model.train()
    started = time.perf_counter()
    total, samples, counts = 0.0, 0, torch.zeros(4, dtype=torch.int64, device=fabric.device)
    for batch, (images, masks) in enumerate(_progress_bar(loader, where), 1):
        stacks = as_stacks(model(to_memory_format(images)))
        loss = torch.stack([loss_function(logits, masks) for logits in stacks]).sum()
        value = finite(loss, where, batch)
        if pace:
            pace.set_rate(optimizer)
        optimizer.zero_grad()
        fabric.backward(loss * loss_weight(loader, batch))
        optimizer.step()
        if average:
            average.update_parameters(model.module)
        total += value * len(images)
        samples += len(images)
        counts += count_voxels(torch.sigmoid(stacks[-1].detach().float()), masks)
        if pace:
            pace.step_done()
            if pace.time_is_up():
                break
            stop_if_asked(batch)
    total, samples, counts = pooled(total, samples, counts)
    seconds = time.perf_counter() - started
    return EpochResult(total / samples, Confusion(*counts.tolist()), samples, seconds)


@torch.inference_mode()
def evaluate(
    model: nn.Module, loss_function: nn.Module, loader: DataLoader, where: str
) -> tuple[EpochResult, Examples]:
    """Return loss and counts of the last stack over ``loader``, and its first patches as seen.

    Of several processes each goes over its own loader; the sums are over all of them, the patches
    are its own.
    """
    model.eval()
    started = time.perf_counter()
    total, samples, counts = 0.0, 0, torch.zeros(4, dtype=torch.int64)
    shown: list[tuple[np.ndarray, ...]] = []
    for batch, (images, masks) in enumerate(_progress_bar(loader, where), 1):
        logits = as_stacks(model(to_memory_format(images)))[-1]
        loss = finite(loss_function(logits, masks), where, batch)
        probabilities = torch.sigmoid(logits.float())
        total += loss * len(images)
        samples += len(images)
        counts = counts.to(masks.device) + count_voxels(probabilities, masks)
        for triple in zip(images, masks, probabilities, strict=True):
            if len(shown) < EXAMPLES:
                shown.append(tuple(part[0].float().cpu().numpy() for part in triple))
    total, samples, counts = pooled(total, samples, counts)
    seconds = time.perf_counter() - started
    result = EpochResult(total / samples, Confusion(*counts.tolist()), samples, seconds)
    return result, Examples(*([triple[part] for triple in shown] for part in range(3)))


def score(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    data: Dataset,
    options: TrainingOptions,
    where: str = "test",
) -> dict[str, float]:
    """Return loss and metrics of a trained ``model`` (not set up by Fabric yet) over ``data``."""
    loader = build_loader(fabric, data, options)
    model = fabric.setup_module(model.to(memory_format=memory_format(data[0][0].ndim + 1)))
    result, _ = evaluate(model, loss_function.to(fabric.device), loader, where)
    return {"loss": result.loss, **result.confusion.metrics()}


def build_loader(
    fabric: Fabric, data: Dataset, options: TrainingOptions, sampler: EpochSampler | None = None
) -> DataLoader:
    """Return a loader that ``fabric`` feeds to its device; in order when there is no ``sampler``.

    With a sampler (training) a last batch of one sample is left out where there are others: batch
    norm would take its statistics, and the optimiser a whole step, from a single patch. A data set
    with a ``make_loader`` method makes its own. Of several processes (ranks) each gets its part of
    every batch, or without a sampler its block of the items.
    """
    local_ranks = min(world_size(), getattr(fabric.strategy, "num_processes", 1))
    workers = loader_processes(options.num_workers, local_ranks)
    if hasattr(data, "make_loader"):
        own = data.make_loader(
            options.batch_size,
            num_workers=workers,
            pin_memory=fabric.device.type == "cuda",
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
        return fabric.setup_dataloaders(own, use_distributed_sampler=False)
    if sampler:
        batches = BatchShares(sampler, options.batch_size, rank(), world_size())
    else:
        batch_size = -(-options.batch_size // world_size())
        batches = BatchSampler(own_block(len(data)), batch_size, drop_last=False)
    loader = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=fabric.device.type == "cuda",
        # Its own, so that how often loaders begin leaves torch's global generator alone.
        generator=torch.Generator().manual_seed(options.seed),
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def set_epoch(data: Dataset, sampler: EpochSampler, epoch: int) -> None:
    """Tell the sampler, and a data set that draws its samples anew, which epoch comes."""
    sampler.epoch = epoch
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)


def as_stacks(output: Tensor | list[Tensor]) -> list[Tensor]:
    """Return a network's output as the list of its stacks' logits."""
    return output if isinstance(output, list) else [output]


def to_memory_format(images: Tensor) -> Tensor:
    """Return ``images`` with the channels last in memory, which convolutions are fastest on."""
    return images.contiguous(memory_format=memory_format(images.ndim))


def finite(loss: Tensor, where: str, batch: int) -> float:
    """Return the loss as a finite number; raise NonFiniteLossError where it is none."""
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the loss is {value} in {where}, batch {batch}: lower --start_lr or try --precision 32"
        )
    return value


def epoch_record(
    epoch: int,
    trained: EpochResult,
    validated: EpochResult,
    learning_rate: float,
    seconds: float,
) -> dict[str, Any]:
    """Return the entry of ``logs.json``: losses, metrics, the learning rate used, and speed.

    The training loss is the sum over stacks, the validation loss that of the last. ``seconds`` is
    for training and validation together, ``samples_per_second`` of training.
    """
    phases = {"train": trained, "valid": validated}
    losses = {f"{phase}_loss": result.loss for phase, result in phases.items()}
    metrics = {
        f"{phase}_{name}": value
        for phase, result in phases.items()
        for name, value in result.confusion.metrics().items()
    }
    return {
        "epoch": epoch,
        **losses,
        **metrics,
        "lr": learning_rate,
        "seconds": seconds,
        "samples_per_second": trained.samples / trained.seconds,
    }


def summary(record: Mapping[str, Any], epochs: int) -> str:
    """Return the line that tells a person about one epoch."""
    volumes = ""
    if "volumes_per_second" in record:
        waited = record["seconds_waiting_for_data"]
        volumes = f"  {record['volumes_per_second']:.1f} volumes/s, waited {waited:.1f} s for them"
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"loss {record['train_loss']:.4f} (valid {record['valid_loss']:.4f})  "
        f"IoU {record['train_iou']:.3f} (valid {record['valid_iou']:.3f})  "
        f"lr {record['lr']:.1e}  {record['seconds']:.1f} s  "
        f"{record['samples_per_second']:.1f} samples/s{volumes}"
    )


def estimate(record: Mapping[str, Any], options: TrainingOptions) -> str:
    """Return the line that tells, after a first epoch, how long the others will take at most."""
    seconds = (options.epochs - record["epoch"]) * record["seconds"]
    if options.max_minutes is not None:
        seconds = max(0.0, min(seconds, 60 * (options.max_minutes - record["minutes"])))
    end = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
    return (
        f"about {duration(record['seconds'])} an epoch, {duration(seconds)} to go at most: "
        f"until {end}"
    )


def duration(seconds: float) -> str:
    """Return a length of time in its usual unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _progress_bar(loader: DataLoader, text: str) -> tqdm:
    """Return ``loader`` with a bar on a terminal, silent elsewhere and where the logger is."""
    shown = None if logger.isEnabledFor(logging.INFO) else True
    return tqdm(loader, desc=text, unit="batch", leave=False, disable=shown)
