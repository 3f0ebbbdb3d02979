"""One trial: a training script as a process, followed epoch by epoch through its logs.json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5  # between two looks at the process and its log
GRACE_SECONDS = 60.0  # that a process has to end after it was asked to


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    status: int  # exit status of the process; negative: the signal that ended it
    reason: str  # one line
    epochs: Sequence[Mapping[str, Any]]  # the records of ``logs.json``, one an epoch
    parameters: int | None  # of the network; None when training never began
    pruned: bool = False  # ended because ``on_epoch`` wanted so
    stopped: bool = False  # ended because ``stop`` was set


def run_training(
    command: Sequence[str],
    directory: Path,
    output: Path,
    *,
    on_epoch: Callable[[Mapping[str, Any]], bool],
    stop: threading.Event,
    environment: Mapping[str, str],
) -> Outcome:
    """Run ``command`` to its end and return how it ended; what it prints goes to ``output``.

    ``on_epoch`` is called once with each record of the ``logs.json`` in ``directory``, the log
    directory that the program will make, and returns whether training is to end now, as it does
    once ``stop`` is set: by SIGTERM, and :data:`GRACE_SECONDS` later SIGKILL. ``environment``
    comes on top of this process's own.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C in the terminal is for the search, which ends it
        )
    told, pruned, ended = 0, False, False
    try:
        while not ended and not pruned and not stop.is_set():
            ended = process.poll() is not None  # first, so that its last record is read below
            for record in read_log(directory)[0][told:]:
                told += 1
                pruned = on_epoch(record) or pruned
            if not ended and not pruned:
                stop.wait(POLL_SECONDS)
    finally:
        stopped = not pruned and process.poll() is None
        end(process)
    epochs, reason = read_log(directory)
    config, status = directory / "config.json", process.returncode
    printed = output.read_text(errors="replace").strip().splitlines()
    return Outcome(
        status=status,
        reason=reason or (printed[-1].strip()[:500] if printed else f"exit status {status}"),
        epochs=epochs,
        parameters=json.loads(config.read_text())["parameters"] if config.exists() else None,
        pruned=pruned,
        stopped=stopped,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` if it runs still: politely, and after a while with all of its session."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_log(directory: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the epochs in a log directory's ``logs.json`` and why training ended, if it has."""
    path = directory / "logs.json"
    if not path.exists():
        return [], None
    content = json.loads(path.read_text())
    ended = content["exit"]["status"] is not None
    return content["epochs"], content["exit"]["reason"] if ended else None
