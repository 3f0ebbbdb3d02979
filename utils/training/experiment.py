"""The log directory of one training run: records, checkpoints and pictures.

``<log_path>/<experiment_title>/`` holds ``config.json``, ``logs.json``, ``checkpoints/``,
``learning_curves.png``, ``predictions.png`` and a copy of the script. Every file is written under a
temporary name and renamed, so a reader never meets half of one.
"""

import fcntl
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from utils.errors import UserError, disk_errors
from utils.provenance import CHECKPOINT_FORMAT, describe_program
from utils.replacing import make_folder, read_json, replacing, write_json

LAST = "last.pth"  # the last completed epoch, with all that going on needs
RUNNING = {"reason": "running", "status": None}
"""How ``logs.json`` says that a run has not ended, or was killed."""
Example = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Image, mask and probabilities (0..1) of a validation patch, float32, 2D or 3D of one shape."""


@dataclass(frozen=True)
class Experiment:
    """The files of one experiment below ``directory``; make a new one with :meth:`create`."""

    directory: Path
    writes: bool = True
    """What saves, records or draws does nothing without; of several processes the first writes."""

    @classmethod
    def create(cls, directory: str | Path, config: Mapping[str, Any], script: str | Path) -> Self:
        """Make the directory with ``config.json``, an empty ``logs.json`` and a copy of ``script``.

        ``config`` is plain JSON; versions, machine and git revision are added to it. Raises
        UserError when the directory is there already, and leaves it untouched; any other
        failure leaves no directory behind.
        """
        experiment = cls(Path(directory))
        content = {**config, **describe_program(script)}
        make_folder(experiment.directory.parent)
        with disk_errors(directory, "made"):
            experiment.directory.mkdir()
        try:
            experiment.checkpoints.mkdir()
            write_json(experiment.directory / "config.json", content)
            write_json(experiment.log, {"epochs": [], "exit": RUNNING})
            shutil.copyfile(script, experiment.directory / Path(script).name)
        except BaseException:
            shutil.rmtree(experiment.directory, ignore_errors=True)
            raise
        experiment.occupy(script)
        return experiment

    @property
    def log(self) -> Path:
        """``logs.json``."""
        return self.directory / "logs.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of ``last.pth``, ``best.pth`` and ``epoch_0007.pth``."""
        return self.directory / "checkpoints"

    def read_log(self) -> dict[str, Any]:
        """Return the content of ``logs.json``."""
        return read_json(self.log)

    def update_log(self, **entries: Any) -> None:
        """Replace entries of ``logs.json`` (plain JSON), such as ``epochs``; others stay."""
        if self.writes:
            write_json(self.log, {**self.read_log(), **entries})

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> Path:
        """Write ``checkpoints/name`` from plain state (tensors, numbers, text, lists, dicts)."""
        path = self.checkpoints / name
        if self.writes:
            content = io.BytesIO()  # torch's own writer hides what a full disk says
            torch.save({"format": CHECKPOINT_FORMAT, **state}, content)
            with replacing(path) as temporary:
                temporary.write_bytes(content.getbuffer())
        return path

    def occupy(self, script: str | Path) -> None:
        """Lock the copy of the script until this process ends, however it does.

        Raises UserError where another process has locked it.
        """
        copy = self.directory / Path(script).name
        descriptor = os.open(copy, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A POSIX lock: loader processes that outlive a killed training do not inherit it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            in_use = f"{self.directory} is in use: another process is training there"
            raise UserError(in_use) from error
        except OSError:  # a file system without locks
            os.close(descriptor)

    def draw(self, history: Sequence[Mapping[str, Any]], examples: Sequence[Example]) -> None:
        """Refresh ``learning_curves.png`` and ``predictions.png``.

        The curves of volumes show the whole sheet's IoU, those of images have no such baseline.
        """
        if not self.writes:
            return
        from utils.figures.learning import WHOLE_SHEET_IOU, save_learning_curves, save_predictions

        baseline = WHOLE_SHEET_IOU if examples[0][0].ndim == 3 else None
        save_learning_curves(history, self.directory / "learning_curves.png", baseline=baseline)
        epoch = history[-1]["epoch"]
        titles = [f"epoch {epoch}, patch {i + 1}" for i in range(len(examples))]
        patches = zip(*examples, strict=True)
        save_predictions(*patches, self.directory / "predictions.png", titles=titles)
