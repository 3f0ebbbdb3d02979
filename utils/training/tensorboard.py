"""Event files that TensorBoard shows: scalars, example slices and hyperparameters of one run.

``tensorboard --logdir logs`` then compares all experiments. Steps are epochs, counted from 1. The
package ``tensorboard`` is imported when training starts, not with this module.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.figures import compared_slice

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from utils.training.experiment import Examples

FOLDER = "tensorboard"
"""Within the log directory."""
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


class TensorBoard:
    """Writes the event files of one run; a context that closes them. See :func:`event_files`.

    The first epoch that is written hides whatever a broken-off run before it has written of this
    epoch and of later ones, so that a resumed run shows no epoch twice. Every epoch is flushed.
    Those of ``flags`` that are :func:`comparable` become the hyperparameters.
    """

    def __init__(self, directory: str | Path, flags: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        self.flags = dict(flags)
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(succeeded=kind is None)

    def write_epoch(self, history: Sequence[Mapping[str, Any]], examples: Examples) -> None:
        """Write the latest record of ``history`` (as in ``logs.json``) and the example patches."""
        epoch = history[-1]["epoch"]
        writer = self._opened(epoch)
        for tag, value in scalars(history).items():
            writer.add_scalar(tag, value, epoch)
        patches = zip(examples.images, examples.masks, examples.probabilities, strict=True)
        for number, patch in enumerate(patches, 1):
            picture = compared_slice(*patch)
            writer.add_image(f"examples/patch_{number}", picture, epoch, dataformats="HWC")
        writer.flush()

    def close(self, *, succeeded: bool) -> None:
        """Close the file; a run that ``succeeded`` is marked so. The second call does nothing."""
        if self._writer is None:
            return
        if succeeded:
            self._writer.file_writer.add_summary(self._hyperparameter_summaries()[2])
        self._writer.close()
        self._writer = None

    def _opened(self, epoch: int) -> SummaryWriter:
        """Return the writer; the first call opens it and writes the hyperparameters."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory), purge_step=epoch)
            for summary in self._hyperparameter_summaries()[:2]:
                self._writer.file_writer.add_summary(summary)
        return self._writer

    def _hyperparameter_summaries(self) -> Sequence[Any]:
        """Return what the plugin wants in the run's own folder: experiment, start and end."""
        from torch.utils.tensorboard.summary import hparams

        return hparams(comparable(self.flags), dict.fromkeys(COMPARED))


@contextmanager
def event_files(
    directory: str | Path, flags: Mapping[str, Any], wanted: bool = True
) -> Iterator[TensorBoard | None]:
    """Yield a writer into ``directory/tensorboard`` for a run with a script's ``flags``.

    Yields None unless ``wanted``, and, with a line in the log, when the package is not installed.
    """
    if not wanted or not _is_installed():
        yield None
        return
    with TensorBoard(Path(directory) / FOLDER, flags) as board:
        yield board


def _is_installed() -> bool:
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        logger.warning("no event files: pip install tensorboard, or say --no-tensorboard")
        return False
    return True


def comparable(flags: Mapping[str, Any]) -> dict[str, str | float]:
    """Return the flags that are text, finite numbers or switches (0 and 1)."""
    return {
        name: value
        for name, value in flags.items()
        if isinstance(value, str)
        or (isinstance(value, (bool, int, float)) and math.isfinite(value))
    }


def scalars(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the finite numbers of the latest record by tag, and the best validation IoU so far.

    ``train_loss`` becomes ``loss/train``, so that curves of both phases share a panel.
    """
    values = {}
    for name, value in history[-1].items():
        if name != "epoch" and isinstance(value, (int, float)) and math.isfinite(value):
            values[tag_of(name)] = float(value)
    ious = [record["valid_iou"] for record in history if record.get("valid_iou") is not None]
    return {**values, BEST_IOU: max(ious)} if ious else values


def tag_of(name: str) -> str:
    """Return the tag of an entry of a record."""
    phase, _, metric = name.partition("_")
    if phase in ("train", "valid") and metric:
        return f"{metric}/{phase}"
    return NAMES.get(name, f"other/{name}")
