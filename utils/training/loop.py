"""The training loop, for images and volumes alike, on Lightning Fabric.

A data set yields (image, mask), both (1, *space) float32; a network maps (batch, 1, *space) to
logits of the same shape, or to a list of them, one a stack, of which the last is the prediction.
Epochs and batches are counted from 1.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.data.epochs import EpochDataset
from utils.devices import memory_format
from utils.training.ending import stop_if_asked
from utils.training.experiment import Example, Experiment
from utils.training.loaders import build_loader, loss_weight
from utils.training.losses import LossByParts
from utils.training.options import TrainingOptions
from utils.training.ranks import average_buffers
from utils.training.records import (
    EpochResult,
    Tally,
    epoch_record,
    estimate,
    event_files,
    summary,
    write_epoch,
)
from utils.training.state import Training, TrainingClock

EXAMPLES = 3  # validation patches shown in predictions.png
READ_EVERY = 20
"""Batches after which the losses are read from the device, for the progress bar and for errors."""
logger = logging.getLogger("utils.training")


def train(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    train_data: EpochDataset,
    valid_data: EpochDataset,
    options: TrainingOptions,
    experiment: Experiment,
    description: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> str:
    """Train ``model`` and return why it ended; everything else goes into ``experiment``.

    ``description`` goes into every checkpoint (``model_config``, ``normalizer``, ``patch_size``,
    ...: plain state). ``last.pth`` exists before the first epoch and holds the last completed one
    ever after, so that a run can be cut at any moment; ``state`` is its content where training goes
    on. Raises UserError for a loss that is no number, and Interrupted after a signal.
    """
    loss_function = loss_function.to(fabric.device)
    train_loss = loss_function
    if train_data.parts:
        train_loss = LossByParts(loss_function, train_data.parts)
    train_loader = build_loader(fabric, train_data, options, training=True)
    valid_loader = build_loader(fabric, valid_data, options)
    planned = options.epochs * len(train_loader)
    training = Training.begin(fabric, model, options, train_data[0][0].ndim + 1, planned, state)
    if not training.history:
        training.save(experiment, description, "last")
    first = len(training.history) + 1
    wanted = options.tensorboard and fabric.is_global_zero
    flags = description.get("flags", {})
    events = event_files(experiment.directory, flags, first) if wanted else nullcontext()
    with events as board:
        while (reason := reason_to_end(training, options)) is None:
            epoch, started = len(training.history) + 1, time.perf_counter()
            train_data.set_epoch(epoch)
            training.clock.set_rate(training.optimizer)
            learning_rate = training.optimizer.param_groups[0]["lr"]

            what = training.model, train_loss, train_loader, training.optimizer
            kept = training.clock, training.average
            trained = train_one_epoch(fabric, *what, f"epoch {epoch}, training", *kept)
            average_buffers(training.model.module, training.average)
            what = training.validated, loss_function, valid_loader
            validated, examples = evaluate(*what, f"epoch {epoch}, validation")
            if training.scheduler:
                training.scheduler.step(validated.loss)

            seconds = time.perf_counter() - started
            record = epoch_record(epoch, trained, validated, learning_rate, seconds)
            record |= {"steps": training.clock.steps, "minutes": training.clock.seconds / 60}
            record |= train_data.epoch_record()
            training.history.append(record)
            training.save(experiment, description, options.checkpoint_policy)
            experiment.update_log(epochs=training.history)
            experiment.draw(training.history, examples)
            if board:
                write_epoch(board, training.history, examples)
            logger.info(summary(record, options.epochs))
            if epoch == first:
                logger.info(estimate(record, options))
    return reason


def reason_to_end(training: Training, options: TrainingOptions) -> str | None:
    """Return why training ends here, None where it goes on."""
    epoch, stale_epochs = len(training.history), training.stale_epochs
    best = "best validation IoU {valid_iou:.3f} in epoch {epoch}".format_map(training.best)
    if epoch >= options.epochs:
        return f"completed {epoch} epochs ({best})"
    if epoch and training.clock.time_is_up():
        return f"{options.max_minutes:g} minutes are over: completed {epoch} epochs ({best})"
    if stale_epochs >= options.early_stopping_patience:
        return f"early stopping: no lower validation loss for {stale_epochs} epochs ({best})"
    return None


def train_one_epoch(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    where: str,
    clock: TrainingClock | None = None,
    average: AveragedModel | None = None,
) -> EpochResult:
    """Update ``model`` once a batch, on the sum of the stacks' losses (intermediate supervision).

    ``where`` names this pass in the progress bar and in errors. ``clock`` sets each step's learning
    rate and ends the epoch when the time is up; ``average`` follows the weights.
    """
    to_training_mode(model)
    tally = Tally(where)
    bar = progress_bar(loader, where)
    for batch, (images, masks) in enumerate(bar, 1):
        if clock:
            clock.set_rate(optimizer)
        images = images.contiguous(memory_format=memory_format(images.ndim))
        stacks = as_stacks(model(images))
        loss = torch.stack([loss_function(logits, masks) for logits in stacks]).sum()
        optimizer.zero_grad()
        fabric.backward(loss * loss_weight(loader, batch))
        optimizer.step()
        if average:
            average.update_parameters(model.module)
        tally.add(loss, torch.sigmoid(stacks[-1].detach().float()), masks)
        if batch % READ_EVERY == 0:
            tally.read()  # device and host meet
            bar.set_postfix_str(f"loss {tally.loss / tally.samples:.4f}", refresh=False)
        if clock:
            clock.steps += 1
            if clock.time_is_up():
                break
            stop_if_asked(batch)
    return tally.result()  # device and host meet


@torch.compiler.set_stance("force_eager")  # not worth another minute of compiling
@torch.inference_mode()
def evaluate(
    model: nn.Module, loss_function: nn.Module, loader: DataLoader, where: str
) -> tuple[EpochResult, list[Example]]:
    """Return loss and counts of the last stack over ``loader``, and its first patches as seen.

    Of several processes each goes over its own loader; the sums are over all of them, the patches
    are its own.
    """
    model.eval()
    tally = Tally(where)
    shown: list[Example] = []
    for images, masks in progress_bar(loader, where):
        images = images.contiguous(memory_format=memory_format(images.ndim))
        logits = as_stacks(model(images))[-1]
        probabilities = torch.sigmoid(logits.float())
        tally.add(loss_function(logits, masks), probabilities, masks)
        for patch in range(min(len(images), EXAMPLES - len(shown))):
            # Device and host meet, for the first batch or two.
            parts = (images[patch, 0], masks[patch, 0], probabilities[patch, 0])
            shown.append(tuple(part.float().cpu().numpy() for part in parts))
    return tally.result(), shown  # device and host meet


def score(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    data: EpochDataset,
    options: TrainingOptions,
) -> dict[str, float]:
    """Return loss and metrics of a trained ``model`` (not set up by Fabric yet) over ``data``."""
    loader = build_loader(fabric, data, options)
    model = fabric.setup_module(model.to(memory_format=memory_format(data[0][0].ndim + 1)))
    result, _ = evaluate(model, loss_function.to(fabric.device), loader, "test")
    return {"loss": result.loss, **result.confusion.metrics()}


def to_training_mode(model: nn.Module) -> None:
    """Have ``model`` train; a batch norm whose weights are frozen keeps its statistics too."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
            module.eval()


def as_stacks(output: Tensor | list[Tensor]) -> list[Tensor]:
    """Return a network's output as the list of its stacks' logits."""
    return output if isinstance(output, list) else [output]


def progress_bar(loader: DataLoader, text: str) -> tqdm:
    """Return ``loader`` with a bar on a terminal, silent elsewhere and where the logger is."""
    shown = None if logger.isEnabledFor(logging.INFO) else True
    return tqdm(loader, desc=text, unit="batch", leave=False, disable=shown)
