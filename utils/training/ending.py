"""How a training ends: as planned, by a signal or by a failure; ``logs.json`` and one line say so.

The first SIGINT (Ctrl-C) or SIGTERM is noted and nothing more. The training loop asks for it after
each step and drops the epoch that it is in, so that ``last.pth`` stays that of the epoch before.
The second one ends the process at once, which leaves no less than ``kill -9`` does: a log directory
that --resume goes on with.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from utils.devices import is_out_of_memory
from utils.errors import INTERRUPTED, UserError
from utils.training.experiment import Experiment
from utils.training.ranks import rank, word_of_the_first, world_size

TOLD_EVERY = 10
"""Steps after which the first of several ranks tells the others whether training shall end."""
KNOWN = {
    "DataLoader worker (pid": "a loader process died; try --num_workers 0",
    "does not have a deterministic implementation": (
        "--deterministic: torch cannot, use --device cpu or leave it out"
    ),
    "TORCHDYNAMO_VERBOSE": "--compile on: compiling the network failed; use --compile off",
    " by peer": "another process of this training has ended, its own message says why",
}
"""What torch's RuntimeErrors say, and what that means here."""

_signals: list[str] = []  # names of those received in the training that runs


class Interrupted(Exception):
    """A signal has asked that training end."""


def stop_if_asked(step: int) -> None:
    """Raise Interrupted after ``step`` (from 1 in each epoch) if a signal has come.

    Of several ranks, which all call this, the first decides; they hear of it in the same step.
    """
    if world_size() > 1 and (step - 1) % TOLD_EVERY:
        return
    if word_of_the_first(bool(_signals)):
        raise Interrupted


def record_exit(experiment: Experiment, run: Callable[[], str]) -> int:
    """Call ``run``, write how it ended into ``logs.json``, and return the exit status.

    ``run`` returns the reason of a planned end (status 0). A signal ends with status 130, a failure
    that is known with status 1, both with a line on standard error; a bug of ours is raised again
    once it is recorded. Ranks but the first tell of their own failures alone: a signal that ends
    all of them is no failure, lest the launcher kill the first rank while it records that.
    """
    bug, status = None, 1
    with _handling(_note, signal.SIGINT, signal.SIGTERM):
        try:
            reason, status = run(), 0
        except Exception as error:
            if _signals or isinstance(error, Interrupted):
                # Whatever has failed since: a signal to the process group also ends loaders.
                reason = f"interrupted by {_signals[0] if _signals else 'the first rank'}"
                status = INTERRUPTED if experiment.writes else 0
            elif (line := explain(error)) is not None:
                reason = line
            else:
                bug, reason = error, f"{type(error).__name__}: {_own_words(error)}"
        if status:
            who = f"rank {rank()}: " if rank() else ""
            print(f"training stopped: {who}{reason}", file=sys.stderr)
        # torch raises where a loader process ends meanwhile, at whatever line that is.
        with _handling(signal.SIG_DFL, signal.SIGCHLD):
            try:
                experiment.update_log(exit={"reason": reason, "status": status})
            except UserError as error:
                print(f"this end cannot be recorded: {error}", file=sys.stderr)
                status = status or 1
    _signals.clear()
    if bug:
        raise bug
    return status


def explain(error: Exception) -> str | None:
    """Return one line on a failure that is known, with what helps; None for a bug of ours."""
    text = _own_words(error)
    if is_out_of_memory(error):
        detail = f" ({text[:200]})" if text else ""
        return f"out of memory: lower --batch_size, --start_channels or (3D) --patch_size{detail}"
    if isinstance(error, RuntimeError):
        for sign, meaning in KNOWN.items():
            if sign in text:
                return f"{meaning} ({text[:200]})"
    return text if isinstance(error, UserError) else None


def _own_words(error: Exception) -> str:
    """Return an error's text as a line; of one in a loader process without the traceback in it."""
    lines = str(error).strip().splitlines()
    if lines and "in DataLoader worker process" in lines[0]:
        lines = [lines[-1].partition(": ")[2] or lines[-1]]
    return " ".join(" ".join(lines).split())


def _note(number: int, frame: FrameType | None) -> None:
    """Note a signal, and let the next one end the process whatever it is doing.

    Loader processes inherit this, so that Ctrl-C, which reaches them too, leaves them at work.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    name = signal.Signals(number).name
    _signals.append(name)
    if multiprocessing.parent_process() is None and not rank():
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{name}: training ends after this step; again: at once\n".encode())


@contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Set ``handler`` for signals within the block; Python wants that in the main thread alone."""
    numbers = numbers if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
