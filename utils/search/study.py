"""A study in an Optuna database: trials are run, pruned, repeated where they were cut, compared.

A trial is a training script as a process, followed epoch by epoch through its logs.json. One that a
pruner ended is settled, as is one whose training failed by itself (too many parameters, say). One
that was cut - Ctrl-C, a killed process, a machine that went away - waits in the database to be run
again, as Optuna's retry callback puts it there.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import sqlalchemy
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy import stats

from utils.errors import UserError
from utils.search.definition import ROOT, StudyDefinition, is_whole, show, trial_arguments

METRIC = "valid_iou"  # made as large as can be: its best value over the epochs of a trial
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
HEARTBEAT_SECONDS, DEAD_SECONDS = 15, 60
"""Between two signs of life of a trial; without one for so long it is repeated."""
MOST_REPEATS = 3  # of a trial that went silent; it may be the trial that kills its machine
SAME_FAILURES = 3  # as many trials in a row that fail for the same reason end the search
PATIENCE_TRIALS, PATIENCE_EPOCHS = 5, 3
"""The median pruner spares the first trials, and the first epochs of each."""
POLL_SECONDS = 0.5  # between two looks at the process and its log
GRACE_SECONDS = 60.0  # that a process has to end after it was asked to
REPLICATE = "seed"  # a searched flag that makes replicates: rows that differ in nothing else
FRONT = ("trial", "state", "iou", "epoch", "epochs_trained", "minutes", "parameters")
BACK = ("reason", "directory")
WIDEST = 60  # characters of the reason in a printed table


@dataclass
class Search:
    """Runs the trials of one study on this machine; see :meth:`run`."""

    definition: StudyDefinition
    study: optuna.Study
    folder: Path  # of the trials' log directories
    n_trials: float = math.inf  # most trials of the whole study
    jobs: int = 1  # trials at a time
    gpus: Sequence[str] = ()  # handed out to the jobs in turn; none: the training script chooses
    say: Callable[[str], None] = print
    stop: threading.Event = field(default_factory=threading.Event)  # set it to cut trials and end
    failure: str | None = None  # why trials fail again and again, once they do

    def run(self, seconds: float = math.inf) -> None:
        """Run trials until the study is complete; start none after ``seconds``."""
        began = time.monotonic()
        self._free_gpus: queue.SimpleQueue[str] = queue.SimpleQueue()
        for job in range(self.jobs if self.gpus else 0):
            self._free_gpus.put(self.gpus[job % len(self.gpus)])
        while not self.stop.is_set() and not self.failure:
            optuna.storages.fail_stale_trials(self.study)  # those of searches that were killed
            passed, todo = time.monotonic() - began, self.remaining()
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if passed >= seconds:
                return
            if todo > 0:
                self.study.optimize(
                    self._objective,
                    n_trials=None if math.isinf(todo) else int(todo),
                    timeout=None if math.isinf(seconds) else seconds - passed,
                    n_jobs=int(min(self.jobs, todo)),
                    callbacks=[self._after_trial],
                )
            elif running and passed < 2 * DEAD_SECONDS:
                self.stop.wait(1)  # until it is known which of them are dead
            else:
                return

    def remaining(self) -> float:
        """Return how many trials are still to be started, on whatever machine; may be infinite."""
        begun = {  # two machines may have begun the same point of a grid in the same moment
            trial.system_attrs.get("grid_id", trial.number)
            for trial in counted_trials(self.study)
            if trial.state != TrialState.WAITING
        }
        return max(0, min(self.n_trials, self.definition.size()) - len(begun))

    def _objective(self, trial: Trial) -> float:
        """Train once; return the best IoU, or NaN for a trial that Optuna shall call failed."""
        values = {name: suggest(trial, name, w) for name, w in self.definition.search.items()}
        title = f"trial_{trial.number:04d}"
        self.say(f"{title} begins: {', '.join(f'{n} {show(v)}' for n, v in values.items())}")
        outcome = self._train(trial, title, values)
        if outcome.stopped:
            trial.set_user_attr("reason", "cut, to be repeated")
            RetryHeartbeatStaleTrialCallback()(self.study, self.study.trials[trial.number])
            return math.nan
        best: Mapping[str, Any] = max(outcome.epochs, key=lambda r: r[METRIC], default={})
        for name, value in {  # what the database keeps beside the values and the curve
            "iou": best.get(METRIC),
            "epoch": best.get("epoch"),
            "epochs_trained": len(outcome.epochs),
            "minutes": sum(record["seconds"] for record in outcome.epochs) / 60,
            "parameters": outcome.parameters,
            "reason": "fell behind" if outcome.pruned else outcome.reason,
        }.items():
            trial.set_user_attr(name, value)
        if outcome.pruned:
            raise optuna.TrialPruned
        return best[METRIC] if best and not outcome.status else math.nan

    def _train(self, trial: Trial, title: str, values: Mapping[str, Any]) -> Outcome:
        """Run the script for ``trial``, with a job's share of the cores and its GPU."""
        directory = self.folder / title
        trial.set_user_attr("directory", str(directory))
        command = [
            *(sys.executable, str(ROOT / self.definition.script)),
            *trial_arguments(self.definition, values),
            *(f"--log_path={self.folder}", f"--experiment_title={title}"),
        ]

        def is_behind(record: Mapping[str, Any]) -> bool:
            trial.report(record[METRIC], record["epoch"])
            return trial.should_prune()

        environment = {}
        if self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
            environment["OMP_NUM_THREADS"] = str(threads)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._free_gpus.get()
        output, how = self.folder / f"{title}.txt", {"on_epoch": is_behind, "stop": self.stop}
        try:
            return run_training(command, directory, output, environment=environment, **how)
        finally:
            if self.gpus:
                self._free_gpus.put(environment["CUDA_VISIBLE_DEVICES"])

    def _after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Say how a trial ended, and end the search when it is complete or in vain."""
        failed = trial.state == TrialState.FAIL
        told = "{reason}" if failed else "IoU {iou:.3f} in epoch {epoch} of {epochs_trained}"
        how = told.format(**trial.user_attrs)
        self.say(f"trial_{trial.number:04d} {STATES[trial.state]}: {how}")
        latest = [t for t in counted_trials(study) if t.state.is_finished()][-SAME_FAILURES:]
        endings = {(t.state, t.user_attrs.get("reason")) for t in latest}
        if len(latest) == SAME_FAILURES and len(endings) == 1:
            state, reason = endings.pop()
            self.failure = reason if state == TrialState.FAIL else None
        if self.stop.is_set() or self.failure or self.remaining() <= 0:
            study.stop()


def open_study(
    url: str, name: str, definition: StudyDefinition, seed: int | None = None
) -> optuna.Study:
    """Return the study ``name`` of the database at ``url``, new or as it was left.

    ``seed`` makes a search by one process repeatable. Raises UserError when the database cannot be
    used, or holds another study of that name.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeat
    study = optuna.create_study(
        study_name=name,
        storage=_storage(url),
        direction="maximize",
        load_if_exists=True,
        pruner=build_pruner(definition),
    )
    study.sampler = build_sampler(definition, seed, len(study.get_trials(deepcopy=False)))
    wanted = definition.plain()
    known = study.user_attrs.get("definition", wanted)
    other = [key for key in wanted if known.get(key) != wanted[key]]
    if other:
        was = "; ".join(f"{key}: {show(known.get(key))}" for key in other)
        raise UserError(
            f"the study {name} was begun with other values ({was}); choose another --study, or go "
            "on with what it was begun with"
        )
    study.set_user_attr("definition", wanted)
    return study


def _storage(url: str) -> optuna.storages.RDBStorage:
    """Open the database, new or as it was left; raises UserError where that cannot be."""
    is_file = url.startswith("sqlite")
    connect = {"timeout": 60, "isolation_level": None} if is_file else {}
    try:
        storage = optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": connect},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=DEAD_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(MOST_REPEATS),
        )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        # The last two: no driver, and tables of another version of Optuna.
        said = str(error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"--storage: {said}; a file is written sqlite:///study.db, a server "
            "postgresql+psycopg://user:password@host/database (its driver has to be installed)"
        ) from error
    if is_file:
        # Two jobs must not read that a trial waits, and both take it: SQLite has no SELECT ... FOR
        # UPDATE, so that a transaction has to exclude others from its first word.
        sqlalchemy.event.listen(
            storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return storage


def build_sampler(
    definition: StudyDefinition, seed: int | None, trials: int
) -> optuna.samplers.BaseSampler:
    """Return what draws the values; ``trials`` done before shift the seed, so nothing comes twice.

    The order of a grid is shuffled, and the same on all machines.
    """
    if definition.sampler == "grid":
        return optuna.samplers.GridSampler(definition.search, seed=0)
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return kinds[definition.sampler](seed=None if seed is None else (seed + trials) % 2**32)


def build_pruner(definition: StudyDefinition) -> optuna.pruners.BasePruner:
    """Return what ends trials that fall behind."""
    return {
        "median": optuna.pruners.MedianPruner(PATIENCE_TRIALS, PATIENCE_EPOCHS),
        "hyperband": optuna.pruners.HyperbandPruner(),
        "none": optuna.pruners.NopPruner(),
    }[definition.pruner]


def suggest(trial: Trial, name: str, wanted: list[Any] | dict[str, Any]) -> Any:
    """Return a value for the searched flag ``name``."""
    if isinstance(wanted, list):
        return trial.suggest_categorical(name, wanted)
    draw = trial.suggest_int if is_whole(wanted) else trial.suggest_float
    return draw(name, **wanted)


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials without those that were repeated."""
    trials = study.get_trials(deepcopy=False)
    repeated = {number for t in trials for number in t.system_attrs.get("retry_history", ())}
    return [trial for trial in trials if trial.number not in repeated]


def retry_failed(study: optuna.Study) -> int:
    """Repeat every trial whose training failed; return how many."""
    failed = [trial for trial in counted_trials(study) if trial.state == TrialState.FAIL]
    for trial in failed:
        RetryHeartbeatStaleTrialCallback()(study, trial)
    return len(failed)


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
        while not ended and not pruned and not stop.wait(POLL_SECONDS):
            ended = process.poll() is not None  # first, so that its last record is read below
            for record in read_log(directory)[0][told:]:
                told += 1
                pruned = on_epoch(record) or pruned
    finally:
        stopped = not pruned and process.poll() is None
        process.terminate()  # nothing where it has ended
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # all of its session
            process.wait()
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


def read_log(directory: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the epochs in a log directory's ``logs.json`` and why training ended, if it has."""
    path = directory / "logs.json"
    if not path.exists():
        return [], None
    content = json.loads(path.read_text())
    ending = content["exit"]
    return content["epochs"], None if ending["status"] is None else ending["reason"]


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return a row for each trial that was begun and not repeated, in their order.

    Between the columns :data:`FRONT` and :data:`BACK` stands one for each flag tried. ``iou`` is a
    trial's best validation IoU, ``epoch`` where it was reached.
    """
    trials = [trial for trial in counted_trials(study) if trial.state in STATES]
    flags = dict.fromkeys(name for trial in trials for name in trial.params)
    rows = [
        {"trial": trial.number, "state": STATES[trial.state], **trial.user_attrs, **trial.params}
        for trial in trials
    ]
    return pd.DataFrame(rows, columns=[*FRONT, *flags, *BACK]).convert_dtypes()


def means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each setting apart from its seed, the best mean first.

    Beside the mean of ``n`` seeds stand the bounds of its two-sided 95 % interval by Student's t
    with n - 1 degrees of freedom (it supposes that seeds scatter normally), nothing for a single
    seed. Only complete trials count; without a searched seed there are no rows.
    """
    flags = [name for name in table if name not in (*FRONT, *BACK, REPLICATE)]
    complete = table[table["state"] == "complete"]
    if REPLICATE not in table or complete.empty:
        return pd.DataFrame()
    groups = complete.groupby(flags or [0] * len(complete), dropna=False)["iou"]
    means = groups.agg(["mean", "count", "sem"]).astype(float)
    half = stats.t.ppf(0.975, means["count"] - 1) * means["sem"]
    means.insert(1, "low", means["mean"] - half)
    means.insert(2, "high", means["mean"] + half)
    means = means.rename(columns={"count": "n"}).drop(columns="sem").astype({"n": int})
    return means.reset_index(drop=not flags).sort_values("mean", ascending=False)


def format_trials(table: pd.DataFrame) -> str:
    """Return the table that is printed: complete trials by falling IoU, then the others."""
    shown = table.assign(place=table["state"].map([*STATES.values()].index))
    shown = shown.sort_values(["place", "iou"], ascending=[True, False])
    shown["reason"] = shown["reason"].where(shown["state"] == "failed", "").str[:WIDEST]
    return format_table(shown.drop(columns=["place", "directory"]))


def format_table(table: pd.DataFrame) -> str:
    """Return text with aligned columns and four significant digits."""
    return table.to_string(index=False, float_format="{:.4g}".format, na_rep="-")
