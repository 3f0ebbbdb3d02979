"""The log directory of one training run: records, checkpoints, pictures, and how it ended.

``<log_path>/<experiment_title>/`` holds ``config.json``, ``logs.json``, ``checkpoints/``,
``learning_curves.png``, ``predictions.png`` and a copy of the script. Every file is written under a
temporary name and renamed, so a reader never meets half of one.
"""

from __future__ import annotations

import _thread
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from utils.checkpoints.loading import CHECKPOINT_FORMAT
from utils.devices import is_out_of_memory
from utils.errors import UserError, disk_errors
from utils.provenance import describe_program
from utils.replacing import make_folder, replacing
from utils.training.determinism import NOT_DETERMINISTIC
from utils.training.processes import INTERRUPTED, settle
from utils.training.watch import disband, is_lost_connection, last_words

LAST = "last.pth"
"""The last completed epoch, with all that going on needs."""
LAST_BEFORE = "last_before.pth"
"""The one before, for the case that the last is damaged later on."""
RETRY_SECONDS = 0.02
"""After which an interrupt that was lost is tried again."""
RUNNING = {"reason": "running", "status": None}
"""How ``logs.json`` says that a run has not ended, or was killed."""

logger = logging.getLogger("utils.training")


class TrainingError(RuntimeError):
    """Training cannot go on, for a reason that one line tells."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """A few validation patches as they were seen in the latest epoch; equal shapes, 2D or 3D."""

    images: Sequence[np.ndarray]
    """float32, 0..1."""
    masks: Sequence[np.ndarray]
    """float32, 0 or 1."""
    probabilities: Sequence[np.ndarray]
    """float32, 0..1."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The files of one experiment below ``directory``; make a new one with :meth:`create`."""

    directory: Path

    @classmethod
    def create(
        cls, directory: str | Path, config: Mapping[str, Any], script: str | Path
    ) -> Experiment:
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
            _write_json(experiment.directory / "config.json", content)
            _write_json(experiment.log, {"epochs": [], "exit": RUNNING})
            shutil.copyfile(script, experiment.directory / Path(script).name)
        except BaseException:
            shutil.rmtree(experiment.directory, ignore_errors=True)
            raise
        experiment._occupy(script)
        return experiment

    @classmethod
    def reopen(
        cls,
        directory: str | Path,
        config: Mapping[str, Any],
        script: str | Path,
        history: Sequence[Mapping[str, Any]],
        resumption: Mapping[str, Any],
    ) -> Experiment:
        """Go on in a directory that :meth:`create` has made, with the epochs of ``history``.

        ``config.json`` tells of the latest start; ``logs.json`` lists under ``resumptions`` each of
        them: ``resumption`` with date, git revision, and how the run had ended before. Raises
        UserError, before anything is written, where another process writes there still.
        """
        experiment = cls(Path(directory))
        experiment._occupy(script)
        log = experiment.read_log() if experiment.log.exists() else {}
        content = {**config, **describe_program(script)}
        resumption = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **resumption,
            "git_revision": content["git_revision"],
            "before": log.get("exit", RUNNING),
        }
        _write_json(experiment.directory / "config.json", content)
        resumptions = [*log.get("resumptions", []), resumption]
        entries = {"epochs": list(history), "exit": RUNNING, "resumptions": resumptions}
        _write_json(experiment.log, {**log, **entries})
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
        return json.loads(self.log.read_text())

    def update_log(self, **entries: Any) -> None:
        """Replace entries of ``logs.json`` (plain JSON), such as ``epochs``; others stay."""
        _write_json(self.log, {**self.read_log(), **entries})

    def finish(self, reason: str, status: int) -> None:
        """Record how the run ended."""
        self.update_log(exit={"reason": reason, "status": status})

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> Path:
        """Write ``checkpoints/name`` from plain state (tensors, numbers, text, lists, dicts)."""
        path = self.checkpoints / name
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save({"format": CHECKPOINT_FORMAT, **state}, file)
        except RuntimeError as error:
            disk = error.__context__  # torch fails again while it closes what could not be written
            if isinstance(disk, OSError):
                raise OSError(disk.errno, disk.strerror, str(path)) from error
            raise
        return path

    def save_last(self, state: Mapping[str, Any]) -> Path:
        """Write ``last.pth``; the one that is there becomes ``last_before.pth``.

        Both names hold a whole checkpoint at every moment, once there has been one.
        """
        last, before = self.checkpoints / LAST, self.checkpoints / LAST_BEFORE
        if last.exists():
            with replacing(before) as temporary:
                temporary.unlink(missing_ok=True)
                try:
                    os.link(last, temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(last, temporary)
        return self.save_checkpoint(LAST, state)

    def _occupy(self, script: str | Path) -> None:
        """Lock the copy of the script until this process ends, however it does.

        Raises UserError where another process has locked it.
        """
        copy = self.directory / Path(script).name
        descriptor = os.open(copy, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A POSIX lock: loader processes that outlive a killed training do not inherit it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"{self.directory} is in use: another process is training there"
            ) from error
        except OSError:  # a file system without locks
            os.close(descriptor)

    def draw(self, history: Sequence[Mapping[str, Any]], examples: Examples) -> None:
        """Refresh ``learning_curves.png`` and ``predictions.png``.

        The curves of volumes show the whole sheet's IoU, those of images have no such baseline.
        """
        from utils import figures

        baseline = figures.WHOLE_SHEET_IOU if examples.images[0].ndim == 3 else None
        curves = self.directory / "learning_curves.png"
        figures.save_learning_curves(history, curves, baseline=baseline)
        epoch = history[-1]["epoch"]
        titles = [f"epoch {epoch}, patch {i + 1}" for i in range(len(examples.images))]
        figures.save_predictions(
            examples.images,
            examples.masks,
            examples.probabilities,
            self.directory / "predictions.png",
            titles=titles,
        )


class Bystander(Experiment):
    """The experiment as all ranks but the first know it: they read it and write nothing."""

    def update_log(self, **entries: Any) -> None:
        """Leave it to rank 0."""

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> Path:
        """Leave it to rank 0; return the path."""
        return self.checkpoints / name

    def save_last(self, state: Mapping[str, Any]) -> Path:
        """Leave it to rank 0; return the path."""
        return self.checkpoints / LAST

    def draw(self, history: Sequence[Mapping[str, Any]], examples: Examples) -> None:
        """Leave it to rank 0."""


def record_exit(experiment: Experiment, run: Callable[[], str]) -> int:
    """Call ``run``, write how it ended into ``logs.json``, and return the exit status.

    ``run`` returns the reason of a proper end (status 0). Ctrl-C and a request to terminate end
    with status 130, every failure with status 1; only one that this program cannot explain prints
    its traceback. Of several processes all end with the first failure, and rank 0 records it.
    """
    signals: list[str] = []
    failure: BaseException | None = None
    last_words(lambda reason, status: _record(experiment, reason, status))
    try:
        with _signals_as_interrupts(signals):
            reason, status = run(), 0
    except (Exception, KeyboardInterrupt) as error:
        failure = error
        if isinstance(error, KeyboardInterrupt) and not signals:
            signals.append("a KeyboardInterrupt")
        reason, status = explain(error, signals), INTERRUPTED if signals else 1
    with _signals_ignored():
        ending = settle(reason, status, lost=failure is not None and is_lost_connection(failure))
        if failure and ending.own and not signals and not _is_known(failure):
            traceback.print_exception(failure)
        status = ending.status
        if ending.speaks:
            status = _record(experiment, ending.reason, status)
        disband(status)
    return status


def _record(experiment: Experiment, reason: str, status: int) -> int:
    """Print a failure, write into ``logs.json`` how the run ended; return the exit status."""
    if status:
        print(f"training stopped: {reason}", file=sys.stderr)
    try:
        experiment.finish(reason, status)
    except OSError as error:
        print(f"cannot record this in {experiment.directory}: {error}", file=sys.stderr)
        status = status or 1
    return status


def explain(error: BaseException, signals: Sequence[str] = ()) -> str:
    """Return one line on what went wrong and, where it is known, what helps.

    ``signals`` names those received: whatever fell over after them, they are the reason.
    """
    text = " ".join(_own_words(error).split())
    if signals:
        return f"interrupted by {signals[0]}"
    if is_out_of_memory(error):
        lower = "lower --batch_size, --start_channels or (3D) --patch_size"
        return f"out of memory: {lower} ({text[:200]})"
    if _is_dead_worker(error):
        return f"a loader process died; try --num_workers 0 ({text[:200]})"
    if is_lost_connection(error):
        return f"the connection to another process of this training is lost ({text[:200]})"
    if _is_not_deterministic(error):
        return f"--deterministic: torch cannot, use --device cpu or leave it out ({text[:200]})"
    if isinstance(error, TrainingError):
        return text
    return f"{type(error).__name__}: {text}"


def show_log() -> None:
    """Let the log of this package appear on standard output, as scripts want it."""
    logger.handlers[:] = [logging.StreamHandler(sys.stdout)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def announce(lines: Mapping[str, str]) -> None:
    """Show the log from now on, and first what the run is about to do, a line a topic."""
    show_log()
    width = max(len(topic) for topic in lines)
    for topic, text in lines.items():
        logger.info(f"{topic:<{width}}  {text}")


def _own_words(error: BaseException) -> str:
    """Return an error's text; of one in a loader process the last line of the traceback in it."""
    lines = str(error).strip().splitlines()
    if not lines or "in DataLoader worker process" not in lines[0]:
        return str(error)
    return lines[-1].partition(": ")[2] or lines[-1]


def _is_dead_worker(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def _is_not_deterministic(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and NOT_DETERMINISTIC in str(error)


def _is_known(error: BaseException) -> bool:
    from utils.errors import UserError
    from utils.simulation.geometry import GeometryError

    expected = isinstance(error, (TrainingError, UserError, GeometryError))
    ours = is_out_of_memory(error) or _is_dead_worker(error) or is_lost_connection(error)
    return expected or ours or _is_not_deterministic(error)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextmanager
def _signals_as_interrupts(received: list[str]) -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise KeyboardInterrupt; their names go to ``received``.

    A signal to the whole process group also ends the loader processes, so that another error may
    overtake the interrupt; ``received`` tells nonetheless. An interrupt that falls into a finaliser
    or the callback of a weak reference (torch.compile has many), where Python drops what is raised,
    comes again a moment later.
    """
    dropped, main = sys.unraisablehook, threading.main_thread().ident
    sending, ended = threading.Lock(), False

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        while frame and frame.f_code is not hear_of_dropped.__code__:
            frame = frame.f_back
        if not frame:
            raise KeyboardInterrupt
        try_again(number)  # what is raised there is dropped as well

    def hear_of_dropped(unraisable: Any) -> None:
        if received and unraisable.exc_type is KeyboardInterrupt:
            try_again(signal.Signals[received[-1]])
        else:
            dropped(unraisable)

    def try_again(number: int) -> None:
        # threading.Thread would take a lock that the interrupted code may hold.
        _thread.start_new_thread(send, (number,))

    def send(number: int) -> None:
        time.sleep(RETRY_SECONDS)
        with sending:
            if not ended:
                signal.pthread_kill(main, number)

    with _handling(interrupt):
        sys.unraisablehook = hear_of_dropped
        try:
            yield
        finally:
            sys.unraisablehook = dropped
            ended = True
            with sending:  # one that is on its way arrives while it is still handled
                pass


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM do nothing, so that the last record is written.

    Nor does a loader process that ends: torch answers that with an exception, wherever we are.
    """
    with _handling(signal.SIG_IGN), _handling(signal.SIG_DFL, (signal.SIGCHLD,)):
        yield


@contextmanager
def _handling(
    handler: Any, numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """Set ``handler`` for signals within the block (in the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
