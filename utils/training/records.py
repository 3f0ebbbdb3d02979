"""What is gathered over an epoch, and how it is told: to ``logs.json``, a person and TensorBoard.

``tensorboard --logdir logs`` compares all experiments. Its steps are epochs, counted from 1. The
package ``tensorboard`` is imported when training starts, not with this module.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError
from utils.evaluation.confusion import Confusion, count_voxels
from utils.figures.learning import compared_slice
from utils.training.experiment import Example
from utils.training.options import TrainingOptions
from utils.training.ranks import pooled

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENT_FOLDER = "tensorboard"  # within the log directory
CURVES = {
    "lr": "learning_rate",
    "seconds": "speed/seconds_per_epoch",
    "samples_per_second": "speed/samples_per_second",
}
"""Tags of those entries of a record that belong to no phase."""
BEST_IOU = "iou/best_valid"
COMPARED = (BEST_IOU, "iou/valid", "loss/valid")
"""Metrics in the table of hyperparameters, which shows the last value of each."""

logger = logging.getLogger("utils.training")


@dataclass(frozen=True)
class EpochResult:
    """What one pass over a data set gave."""

    loss: float  # mean over samples
    confusion: Confusion  # of the last stack, pooled over all voxels
    samples: int
    seconds: float


class Tally:
    """Losses and voxel counts of one pass over a data set, kept on the device.

    A GPU works through what it has been told while the host runs ahead. Asking it for a number
    (``item``, ``tolist``, ``if tensor``) makes the host wait until it has caught up, and then the
    GPU for the host. So nothing is asked but in :meth:`read`, every few batches.
    """

    def __init__(self, where: str) -> None:
        self.where = where  # the pass, as errors name it
        self.loss = 0.0  # sum over the samples of the batches that have been read
        self.samples = 0
        self.batches = 0  # those that have been read
        self._unread: list[Tensor] = []
        self._counts = torch.zeros(4, dtype=torch.int64)
        self._started = time.perf_counter()

    def add(self, loss: Tensor, probabilities: Tensor, masks: Tensor) -> None:
        """Count a batch: its mean loss, what its last stack says, 0..1, and its masks."""
        self._unread.append(loss.detach().double() * len(masks))
        self._counts = self._counts.to(masks.device) + count_voxels(probabilities, masks)
        self.samples += len(masks)

    def read(self) -> None:
        """Wait for the device, and read the losses; raise UserError where one is no number."""
        losses = torch.stack(self._unread).tolist() if self._unread else []
        self._unread.clear()
        for loss in losses:
            self.batches += 1
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} in {self.where}, batch {self.batches}: lower --start_lr "
                    "or try --precision 32"
                )
            self.loss += loss

    def result(self) -> EpochResult:
        """Return the result of the whole pass, over all processes; every one gets the same."""
        self.read()
        total, samples, counts = pooled(self.loss, self.samples, self._counts)
        seconds = time.perf_counter() - self._started
        return EpochResult(total / samples, Confusion(*counts.tolist()), samples, seconds)


def epoch_record(
    epoch: int, trained: EpochResult, validated: EpochResult, learning_rate: float, seconds: float
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
    speed = {"seconds": seconds, "samples_per_second": trained.samples / trained.seconds}
    return {"epoch": epoch, **losses, **metrics, "lr": learning_rate, **speed}


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
    told = map(tqdm.format_interval, (record["seconds"], seconds))
    return "about {} an epoch, {} to go at most: until {}".format(*told, end)


@contextmanager
def event_files(
    directory: str | Path, flags: Mapping[str, Any], first_epoch: int = 1
) -> Iterator[SummaryWriter | None]:
    """Yield a writer into ``directory/tensorboard`` for a run with a script's ``flags``.

    What a broken-off run before it has written of ``first_epoch`` and of later ones is hidden, so
    that a resumed run shows no epoch twice. Flags that are text, numbers or switches become the
    hyperparameters; a block that ends without an error is marked a success. Yields None,
    with a line in the log, when the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        logger.warning("no event files: pip install tensorboard, or say --no-tensorboard")
        yield None
        return

    compared = {
        name: value for name, value in flags.items() if isinstance(value, str | int | float)
    }
    experiment, start, success = hparams(compared, dict.fromkeys(COMPARED))
    with SummaryWriter(str(Path(directory) / EVENT_FOLDER), purge_step=first_epoch) as writer:
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(start)
        yield writer
        writer.file_writer.add_summary(success)


def write_epoch(
    writer: SummaryWriter, history: Sequence[Mapping[str, Any]], examples: Sequence[Example]
) -> None:
    """Write the latest record of ``history`` (as in ``logs.json``) and the example patches."""
    epoch = history[-1]["epoch"]
    for tag, value in scalars(history).items():
        writer.add_scalar(tag, value, epoch)
    for number, patch in enumerate(examples, 1):
        picture = compared_slice(*patch)
        writer.add_image(f"examples/patch_{number}", picture, epoch, dataformats="HWC")
    writer.flush()


def scalars(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the finite numbers of the latest record by tag, and the best validation IoU so far.

    ``train_loss`` becomes ``loss/train``, so that curves of both phases share a panel.
    """
    values = {}
    for name, value in history[-1].items():
        phase, _, metric = name.partition("_")
        tag = f"{metric}/{phase}" if phase in ("train", "valid") else f"other/{name}"
        if name != "epoch" and isinstance(value, (int, float)) and math.isfinite(value):
            values[CURVES.get(name, tag)] = float(value)
    ious = [record["valid_iou"] for record in history if record.get("valid_iou") is not None]
    return {**values, BEST_IOU: max(ious)} if ious else values
