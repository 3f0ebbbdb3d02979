"""Event files that TensorBoard shows: scalars, example slices and hyperparameters of one run.

``tensorboard --logdir logs`` then compares all experiments. Steps are epochs, counted from 1. The
package ``tensorboard`` is imported when training starts, not with this module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.figures.learning import compared_slice

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from utils.training.experiment import Examples

FOLDER = "tensorboard"  # within the log directory
NAMES = {
    "lr": "learning_rate",
    "seconds": "speed/seconds_per_epoch",
    "samples_per_second": "speed/samples_per_second",
}
"""Tags of those entries of a record that belong to no phase."""
BEST_IOU = "iou/best_valid"
COMPARED = (BEST_IOU, "iou/valid", "loss/valid")
"""Metrics in the table of hyperparameters, which shows the last value of each."""

logger = logging.getLogger("utils.training")


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
    with SummaryWriter(str(Path(directory) / FOLDER), purge_step=first_epoch) as writer:
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(start)
        yield writer
        writer.file_writer.add_summary(success)


def write_epoch(
    writer: SummaryWriter, history: Sequence[Mapping[str, Any]], examples: Examples
) -> None:
    """Write the latest record of ``history`` (as in ``logs.json``) and the example patches."""
    epoch = history[-1]["epoch"]
    for tag, value in scalars(history).items():
        writer.add_scalar(tag, value, epoch)
    patches = zip(examples.images, examples.masks, examples.probabilities, strict=True)
    for number, patch in enumerate(patches, 1):
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
            values[NAMES.get(name, tag)] = float(value)
    ious = [record["valid_iou"] for record in history if record.get("valid_iou") is not None]
    return {**values, BEST_IOU: max(ious)} if ious else values
