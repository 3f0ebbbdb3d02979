"""A study in an Optuna database: asks for trials, runs them, prunes, repeats those that were cut.

A trial that a pruner ended is settled, as is one whose training failed by itself (too many
parameters, say). One that was cut - Ctrl-C, a killed process, a machine that went away - is
repeated: a copy waits in the database, marked ``repeats``, and the old one no longer counts.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import socket
import sqlite3
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import sqlalchemy
from optuna.trial import FrozenTrial, Trial, TrialState

from utils.errors import UserError
from utils.search.definition import Choice, StudyDefinition, Value, show, trial_arguments
from utils.search.trial import Outcome, run_training

METRIC = "valid_iou"
"""What the study makes as large as it can: its best value over the epochs of a trial."""
HEARTBEAT_SECONDS = 60
"""A trial of another machine without a sign of life for twice as long is repeated."""
MOST_REPEATS = 3
"""Of a trial whose machine went away; it may be the trial that kills it."""
SAME_FAILURES = 3
"""As many trials in a row that fail for the same reason end the search."""
PATIENCE_TRIALS, PATIENCE_EPOCHS = 5, 3
"""The median pruner spares the first trials, and the first epochs of each."""


class TrainingFailedError(Exception):
    """A trial's training ended by itself with a non-zero status."""


class InterruptedTrialError(Exception):
    """A trial was cut by the end of the search."""


class SurplusTrialError(Exception):
    """A trial that was asked for when nothing was left to do."""


@dataclass
class Search:
    """Runs the trials of one study on this machine; see :meth:`run`."""

    definition: StudyDefinition
    study: optuna.Study
    folder: Path
    """Of the trials' log directories."""
    extra: Sequence[str] = ()
    """Flags for every trial, after the fixed ones."""
    n_trials: int | None = None
    """Most trials of the whole study."""
    jobs: int = 1
    """Trials at a time."""
    gpus: Sequence[str] = ()
    """Handed out to the jobs in turn; none leaves that to the training script."""
    say: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)
    """Set it to cut the trials under way and end."""
    failure: str | None = None
    """Why trials fail again and again, once they do."""

    def run(self, seconds: float | None = None) -> None:
        """Run trials until the study is complete; start none after ``seconds``."""
        began = time.monotonic()
        self._free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock, self._failures = threading.Lock(), []
        for slot in range(self.jobs):
            self._free_slots.put(slot)
        while not self.stop.is_set() and not self.failure:
            left = None if seconds is None else seconds - (time.monotonic() - began)
            todo = self.remaining()
            if todo <= 0 or (left is not None and left <= 0):
                return
            self.study.optimize(
                self._objective,
                n_trials=None if todo == math.inf else int(todo),
                timeout=left,
                n_jobs=int(min(self.jobs, todo)),
                catch=(TrainingFailedError, InterruptedTrialError, SurplusTrialError),
                callbacks=[self._after_trial],
            )

    def remaining(self) -> float:
        """Return how many trials are still to be started, on whatever machine; may be infinite."""
        states = [trial.state for trial in counted_trials(self.study)]
        waiting = states.count(TrialState.WAITING)
        begun = len(states) - waiting
        room = math.inf if self.n_trials is None else max(0, self.n_trials - begun)
        return min(waiting, room) if self.definition.sampler == "grid" else room

    def _objective(self, trial: Trial) -> float:
        if self.definition.sampler == "grid" and not trial.user_attrs.get("queued"):
            raise SurplusTrialError  # another machine took the last combination
        values = suggest(trial, self.definition)
        title = trial_title(trial.number)
        self.say(f"{title} begins: {describe(values)}")
        outcome = self._train(trial, title, values)
        for name, fact in facts(outcome).items():
            trial.set_user_attr(name, fact)
        if outcome.stopped:
            requeue(self.study, self.study.trials[trial.number])
            raise InterruptedTrialError
        if outcome.pruned:
            raise optuna.TrialPruned
        if outcome.status or not outcome.epochs:
            trial.set_user_attr("failed", True)
            raise TrainingFailedError
        return max(record[METRIC] for record in outcome.epochs)

    def _train(self, trial: Trial, title: str, values: Mapping[str, Value]) -> Outcome:
        """Run the script for ``trial``; its directory, owner and process go into the database."""
        trial.set_user_attr("directory", str(self.folder / title))
        command = [
            *(sys.executable, str(self.definition.script_path)),
            *trial_arguments(self.definition, values, self.extra),
            *(f"--log_path={self.folder}", f"--experiment_title={title}"),
        ]

        def report(record: Mapping[str, Any]) -> bool:
            trial.report(record[METRIC], record["epoch"])
            return trial.should_prune()

        with self._slot() as environment:
            return run_training(
                command,
                self.folder / title,
                self.folder / f"{title}.txt",
                on_start=lambda process: trial.set_user_attr("owner", owner(process)),
                on_epoch=report,
                stop=self.stop,
                environment=environment,
            )

    @contextlib.contextmanager
    def _slot(self) -> Iterator[dict[str, str]]:
        """Yield the variables of a job: its share of the cores, and its GPU."""
        slot = self._free_slots.get()
        try:
            environment = {}
            if self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
                threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
                environment["OMP_NUM_THREADS"] = str(threads)
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
            yield environment
        finally:
            self._free_slots.put(slot)

    def _after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Say how a trial ended, and end the search when it is complete or in vain."""
        if "directory" in trial.user_attrs:
            self.say(f"{trial_title(trial.number)} {verdict(trial, study)}")
        with self._lock:
            if trial.user_attrs.get("failed"):
                title = trial_title(trial.number)
                self._failures.append(trial.user_attrs["reason"].replace(title, "TRIAL"))
            elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._failures.clear()
            latest = self._failures[-SAME_FAILURES:]
            if len(latest) == SAME_FAILURES and len(set(latest)) == 1:
                self.failure = trial.user_attrs.get("reason", latest[0])
        if self.stop.is_set() or self.failure or self.remaining() <= 0:
            study.stop()


# The study ----------------------------------------------------------------------------------------


def open_study(
    url: str,
    name: str,
    definition: StudyDefinition,
    *,
    extra: Sequence[str] = (),
    epochs: int | None = None,
    seed: int | None = None,
) -> optuna.Study:
    """Return the study ``name`` of the database at ``url``, new or as it was left.

    The combinations of a grid are put in the queue. ``epochs`` is the longest training, for
    Hyperband; ``seed`` makes a search by one process repeatable. Raises UserError (one line)
    when the database cannot be used, or holds another study of that name.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    wanted = {**definition.plain(), "extra": list(extra)}
    with database_errors(url):
        study = optuna.create_study(
            study_name=name,
            storage=_storage(url),
            direction="maximize",
            load_if_exists=True,
            pruner=build_pruner(definition, epochs),
        )
        known = study.user_attrs.get("definition")
        if known is None:
            study.set_user_attr("definition", wanted)
        elif known != wanted:
            raise UserError(f"the study {name} was begun with {_difference(known, wanted)}")
        study.sampler = build_sampler(definition, seed, len(study.trials))
        if definition.sampler == "grid":
            for point in definition.grid():
                study.enqueue_trial(point, user_attrs={"queued": True}, skip_if_exists=True)
        take_back_dead_trials(study)
    return study


def _storage(url: str) -> optuna.storages.RDBStorage:
    is_file = url.startswith("sqlite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": 60}} if is_file else {},
            heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=requeue_unless_hopeless,
        )
    if is_file:
        _lock_from_the_beginning(storage.engine)
    return storage


def _lock_from_the_beginning(engine: sqlalchemy.Engine) -> None:
    """Let transactions of SQLite exclude each other from their first word.

    Otherwise two workers read that a trial waits, and both take it: SQLite has no SELECT ... FOR
    UPDATE. The recipe is that of SQLAlchemy's documentation (SQLite, pysqlite dialect).
    """

    def leave_transactions_to_us(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", leave_transactions_to_us)
    sqlalchemy.event.listen(engine, "begin", begin)
    engine.dispose()  # connections made before know nothing of this


@contextlib.contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Turn what goes wrong with a database within the block into UserError."""
    try:
        yield
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        ImportError,
        RuntimeError,
    ) as error:
        cause = error.__cause__ or error
        place = hide_password(url)
        said = " ".join(str(cause).split("\n")[0].split())
        raise UserError(
            f"--storage {place}: {said}; a file is written sqlite:///study.db, a server "
            "postgresql+psycopg://user:password@host/database (its driver has to be installed)"
        ) from error


def hide_password(url: str) -> str:
    """Return ``url`` without its password."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return where two definitions differ, and what helps."""
    advice = "choose another --study, or go on with what it was begun with"
    for key in ("script", "extra"):
        if known[key] != wanted[key]:
            words = "flags after --" if key == "extra" else key
            return f"{words} {show(known[key])}, not {show(wanted[key])}; {advice}"
    for table in ("fixed", "search"):
        for name in sorted({*known[table], *wanted[table]}):
            old, new = (side[table].get(name, "nothing") for side in (known, wanted))
            if old != new:
                return f"[{table}] {name} = {show(old)}, not {show(new)}; {advice}"
    return f"its tables in another order; {advice}"


def build_sampler(
    definition: StudyDefinition, seed: int | None, trials: int
) -> optuna.samplers.BaseSampler:
    """Return what draws the values; ``trials`` done before shift the seed, so nothing comes twice.

    A grid's values come from the queue, whatever the sampler.
    """
    if seed is not None:
        seed = int(np.random.SeedSequence((seed, trials)).generate_state(1)[0])
    if definition.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def build_pruner(definition: StudyDefinition, epochs: int | None) -> optuna.pruners.BasePruner:
    """Return what ends trials that fall behind."""
    if definition.pruner == "median":
        return optuna.pruners.MedianPruner(PATIENCE_TRIALS, PATIENCE_EPOCHS)
    if definition.pruner == "hyperband":
        longest = epochs if epochs is not None else "auto"
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=longest)
    return optuna.pruners.NopPruner()


def suggest(trial: Trial, definition: StudyDefinition) -> dict[str, Value]:
    """Return a value for every searched flag."""
    values: dict[str, Value] = {}
    for name, wanted in definition.search.items():
        if isinstance(wanted, Choice):
            values[name] = trial.suggest_categorical(name, wanted.values)
        elif wanted.whole:
            step = int(wanted.step or 1)
            values[name] = trial.suggest_int(
                name, int(wanted.low), int(wanted.high), step=step, log=wanted.log
            )
        else:
            values[name] = trial.suggest_float(
                name, wanted.low, wanted.high, step=wanted.step, log=wanted.log
            )
    return values


# Trials -------------------------------------------------------------------------------------------


def trial_title(number: int) -> str:
    """Return the name of a trial's log directory."""
    return f"trial_{number:04d}"


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials without those that were cut or came to nothing; repeats stand for them."""
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get("repeats") for trial in trials}
    return [
        trial
        for trial in trials
        if trial.number not in repeated
        and (trial.state != TrialState.FAIL or trial.user_attrs.get("failed"))
    ]


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Let the values of ``trial`` wait to be tried again, once."""
    values = trial.system_attrs.get("fixed_params", trial.params)
    trials = study.get_trials(deepcopy=False)
    if values and not any(other.user_attrs.get("repeats") == trial.number for other in trials):
        study.enqueue_trial(values, user_attrs={"queued": True, "repeats": trial.number})


def requeue_unless_hopeless(study: optuna.Study, trial: FrozenTrial) -> None:
    """Repeat ``trial``, whose machine went away, unless that has happened several times."""
    trials = study.get_trials(deepcopy=False)
    before, number = 0, trial.user_attrs.get("repeats")
    while number is not None:
        before, number = before + 1, trials[number].user_attrs.get("repeats")
    if before < MOST_REPEATS:
        requeue(study, trial)


def retry_failed(study: optuna.Study) -> int:
    """Repeat every trial whose training failed; return how many."""
    failed = [trial for trial in counted_trials(study) if trial.state == TrialState.FAIL]
    for trial in failed:
        requeue(study, trial)
    return len(failed)


def take_back_dead_trials(study: optuna.Study) -> None:
    """Repeat the trials whose search was killed on this machine; end trainings they left behind.

    Those of other machines are repeated when their heartbeat has stopped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        known = trial.user_attrs.get("owner")
        if known and known["machine"] == machine() and not _is_alive(known["search"]):
            _end_left_behind(known["training"])
            study.tell(trial.number, state=TrialState.FAIL)
            requeue_unless_hopeless(study, trial)


def owner(training: int) -> dict[str, Any]:
    """Return who runs a trial: machine, this process and the training's."""
    return {
        "machine": machine(),
        "search": _identity(os.getpid()),
        "training": _identity(training),
    }


def machine() -> str:
    """Return a name of this machine."""
    return f"{socket.gethostname()}-{uuid.getnode():012x}"


def _identity(process: int) -> list[float]:
    """Return the id and the time of start of a process: an id alone is given out again."""
    try:
        return [process, psutil.Process(process).create_time()]
    except psutil.Error:  # it has ended already
        return [process, 0.0]


def _is_alive(identity: Sequence[float]) -> bool:
    now = _identity(int(identity[0]))
    return now[1] > 0 and abs(now[1] - identity[1]) < 1.0


def _end_left_behind(identity: Sequence[float]) -> None:
    if _is_alive(identity):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(identity[0]))
            process.terminate()
            process.wait(30)


# Words --------------------------------------------------------------------------------------------


def facts(outcome: Outcome) -> dict[str, Any]:
    """Return what the database keeps of a trial beside its values."""
    epochs = outcome.epochs
    best = max(epochs, key=lambda record: record[METRIC], default=None)
    return {
        "epochs": len(epochs),
        "best_iou": best and best[METRIC],
        "best_epoch": best and best["epoch"],
        "seconds": sum(record["seconds"] for record in epochs),
        "parameters": outcome.parameters,
        "reason": outcome.reason,
        "curve": [record[METRIC] for record in epochs],
    }


def describe(values: Mapping[str, Any]) -> str:
    """Return the values of flags in a line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {show(value)}"
        for name, value in values.items()
    )


def verdict(trial: FrozenTrial, study: optuna.Study) -> str:
    """Return a line on how a trial ended."""
    known = trial.user_attrs
    if trial.state == TrialState.FAIL:
        how = "failed" if known.get("failed") else "cut, to be repeated"
        return f"{how}: {known['reason']}" if known.get("reason") else how
    how = "complete" if trial.state == TrialState.COMPLETE else "pruned"
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = max(complete, key=lambda other: other.value, default=None)
    beside = f"; best so far {best.value:.3f} ({trial_title(best.number)})" if best else ""
    return (
        f"{how}: IoU {known['best_iou']:.3f} in epoch {known['best_epoch']} of {known['epochs']}, "
        f"{known['seconds'] / 60:.1f} min{beside}"
    )
