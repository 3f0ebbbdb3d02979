"""A program for the tests: trains in forked children, each of which may be killed with SIGKILL.

    python forked_trainings.py trainings '[[["--epochs", "4"], null], [["--resume"], [3, 4]]]'
    python forked_trainings.py saves FOLDER

One start of Python and torch serves many trainings. Children have nothing of each other but files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import train_basic_3dunet
from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset
from utils.training.experiment import Experiment
from utils.training.options import TrainingOptions
from utils.training.starting import find_resumption
from utils.training.state import Training, TrainingClock

CLOCK = TrainingClock(TrainingOptions(), planned=2)


def in_child(work: Callable[[], int]) -> int:
    """Return the exit status of ``work`` in a forked process, -9 where SIGKILL has ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def train_and_die(arguments: list[str], moment: list[int] | None) -> int:
    """Train; die when the n-th patch of an epoch is read, for a ``moment`` (epoch, n).

    With --on_the_fly it is the n-th volume of which patches are cut.
    """
    reads: list[int] = []

    def kill_at_the_moment(kind: type, method: str) -> None:
        original, process = getattr(kind, method), os.getpid()

        def watched(self: Any, item: int, *more: Any) -> object:
            reads.append(self.epoch)  # of validation patches 0
            if moment and reads.count(moment[0]) == moment[1]:
                os.kill(process, signal.SIGKILL)  # the training, also where a loader process reads
            return original(self, item, *more)

        setattr(kind, method, watched)

    kill_at_the_moment(SegmentationFake3DDataset, "__getitem__")
    kill_at_the_moment(OnTheFly3DDataset, "cut_patches")
    Experiment.draw = lambda self, history, examples: None
    return train_basic_3dunet.main(arguments)


def save_and_die(folder: Path, training: Training, moment: int) -> int:
    """Save two epochs; die before the ``moment``-th call that changes the disk."""
    experiment = Experiment.create(folder, {"flags": {}}, __file__)
    experiment.save_checkpoint("last.pth", {"model_state": {"w": torch.zeros(1000)}, "epoch": 0})
    (folder / "saved").write_text("0")
    calls = []

    def watching(event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.link", "os.remove"):
            calls.append(event)
            if len(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sync = os.fsync

    def syncing(descriptor: int) -> None:
        watching("open", ())
        sync(descriptor)

    os.fsync = syncing
    sys.addaudithook(watching)
    for epoch in (1, 2):
        training.history.append({"epoch": epoch, "valid_iou": epoch / 2, "valid_loss": 0.5})
        training.model.w.data.fill_(epoch)
        training.save(experiment, {}, "best")
        descriptor = os.open(folder / "saved", os.O_WRONLY)
        os.write(descriptor, str(epoch).encode())
        os.close(descriptor)
    return 0


def kill_all_saves(folder: Path) -> list[dict[str, object]]:
    """Kill at one moment after the other until none is left; tell what each has left behind."""
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    training = Training(model, optimizer, None, None, model, CLOCK)
    optimizer.state_dict()  # what torch imports for it is not imported in each process
    found = []
    while True:
        run = folder / f"run_{len(found)}"
        status = in_child(partial(save_and_die, run, training, len(found) + 1))
        last, _ = find_resumption(run)
        whole = bool((last["model_state"]["w"] == last["epoch"]).all())
        saved = int((run / "saved").read_text())
        found.append({"status": status, "epoch": last["epoch"], "saved": saved, "whole": whole})
        if status != -signal.SIGKILL:
            return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "saves":
        print(json.dumps(kill_all_saves(Path(sys.argv[2]))))
    else:
        trainings = json.loads(sys.argv[2])
        statuses = [in_child(partial(train_and_die, a, m)) for a, m in trainings]
        print(json.dumps(statuses))
