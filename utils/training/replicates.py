"""The same training once a seed, and what the replicates say together: mean and interval.

``--seeds 0,1,2`` makes ``<log_path>/<experiment_title>/seed_0``, ``seed_1``, ..., each a usual log
directory, and ``replicates.json`` beside them. Each replicate is a process of its own, run with the
script's command line and one ``--seed``: whatever ends one (no memory, a signal, a crash in a
driver) leaves the others alone, and each is to the bit what that command alone gives.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from utils.errors import INTERRUPTED, UserError
from utils.replacing import replacing
from utils.training.options import experiment_directory
from utils.training.processes import find_launcher
from utils.training.resuming import MAY_CHANGE, changed_flags, recorded_flags

REPORT = "replicates.json"
_LENGTH = {"epochs", "max_minutes", "early_stopping_patience"}
MAY_DIFFER = (MAY_CHANGE - _LENGTH) | {"seed", "seeds"}
"""Flags that replicates of one training may have otherwise: where it runs and where files lie."""
LEVEL = 0.95
INTERVAL = (
    "mean over seeds, and its two-sided 95 % interval by Student's t with n - 1 degrees of freedom "
    "(it supposes that seeds scatter normally)"
)


def seed_list(text: str) -> tuple[int, ...]:
    """Return the seeds that ``text`` lists, as in ``0,1,2``; one-line error for anything else."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be numbers such as 0,1,2") from None
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: must be different numbers in 0..2^32 - 1")
    return seeds


def wants_replicates(arguments: Sequence[str]) -> bool:
    """Return whether --seeds is among a script's arguments."""
    return any(_is(argument, "--seeds") for argument in arguments)


def train_replicates(
    script: str,
    arguments: Sequence[str],
    parse_flags: Callable[[Sequence[str]], argparse.Namespace],
) -> int:
    """Run ``script`` once for each of --seeds, report them together, return the exit status.

    ``arguments`` are the script's, which ``parse_flags`` reads. With --resume finished replicates
    are left as they are, the others go on or begin. The status is 0 where all have succeeded, 130
    after an interrupt, 2 where the script refuses the flags (the first replicate says why), else 1.
    Raises UserError for flags that --seeds excludes, where the directory exists, and where
    replicates that are there have other flags than those that are to begin.
    """
    resume = "--resume" in arguments
    common = _without_own_flags(arguments)
    flags = parse_flags([argument for argument in arguments if argument != "--resume"])
    if any(_is(argument, "--seed") for argument in arguments):
        raise UserError("--seed and --seeds exclude each other: name all seeds in --seeds")
    launcher = find_launcher()
    if launcher:
        raise UserError(f"--seeds does not go with {launcher.launcher}: start one run per --seed")
    directory = experiment_directory(flags.log_path, flags.experiment_title, resume)
    if (directory / "config.json").exists():
        raise UserError(
            f"{directory} holds a single run: go on with it by --resume, without --seeds"
        )
    check_alike(directory, flags, Path(script).name)
    statuses: dict[int, int] = {}
    for number, seed in enumerate(flags.seeds, 1):
        print(f"replicate {number} of {len(flags.seeds)}: {directory / name(seed)}", flush=True)
        statuses[seed] = _train_one(script, common, directory, seed, resume)
        if statuses[seed] in (2, INTERRUPTED):
            break
        save_report(directory, flags.seeds)
    if directory.is_dir():
        print(describe(save_report(directory, flags.seeds)), flush=True)
    reached = set(statuses.values())
    return next((status for status in (INTERRUPTED, 2) if status in reached), int(any(reached)))


def check_alike(directory: Path, flags: argparse.Namespace, script: str) -> None:
    """Raise UserError if ``flags`` would begin replicates unlike one that is in ``directory``.

    Replicates that go on have the flags they were begun with; new ones those of the command line.
    """
    begun = [seed for seed in flags.seeds if (directory / name(seed) / "config.json").exists()]
    if not begun or all((directory / name(seed)).is_dir() for seed in flags.seeds):
        return
    recorded = recorded_flags(directory / name(begun[0]), script)
    changed = changed_flags(recorded, {key: vars(flags).get(key) for key in recorded})
    differences = [
        f"--{key}: {name(begun[0])} has {was}, a new one would have {new}"
        for key, (was, new) in changed.items()
        if key not in MAY_DIFFER
    ]
    if differences:
        raise UserError(
            f"--seeds: replicates must be alike; {'; '.join(differences)}. Give the flags of the "
            "first call again, with --resume"
        )


def name(seed: int) -> str:
    """Return the name of a replicate's log directory."""
    return f"seed_{seed}"


def save_report(directory: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Write ``replicates.json`` about the replicates of ``directory``, and return its content."""
    replicates = [read_replicate(directory, seed) for seed in seeds]
    report = {
        "seeds": list(seeds),
        "replicates": replicates,
        "interval": INTERVAL,
        "summary": summarise([one for one in replicates if one["status"] == 0]),
    }
    with replacing(directory / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def read_replicate(directory: Path, seed: int) -> dict[str, Any]:
    """Return how a replicate has ended, and its metrics where it has completed an epoch.

    ``final`` are the validation metrics of the last epoch, ``best`` those of the epoch with the
    highest IoU, ``test`` those of the best checkpoint on a test set, where the script has one.
    """
    found: dict[str, Any] = {"seed": seed, "directory": name(seed)}
    try:
        log = json.loads((directory / name(seed) / "logs.json").read_text())
    except (OSError, ValueError) as error:
        return {**found, "status": None, "reason": f"no readable logs.json ({error})"}
    found |= {"status": log["exit"]["status"], "reason": log["exit"]["reason"]}
    if not log["epochs"]:
        return found
    best = max(log["epochs"], key=lambda record: record["valid_iou"])
    found |= {"epochs": len(log["epochs"]), "best_epoch": best["epoch"]}
    found |= {"final": _validation(log["epochs"][-1]), "best": _validation(best)}
    if "test" in log:
        found["test"] = {key: log["test"][key] for key in log["test"] if key != "epoch"}
    return found


def summarise(replicates: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean, scatter and interval of each metric, in the groups of the replicates."""
    summary: dict[str, dict[str, Any]] = {}
    for group in ("final", "best", "test"):
        records = [one[group] for one in replicates if group in one]
        known = records[0] if records else {}
        names = [key for key in known if all(_is_number(one.get(key)) for one in records)]
        summary[group] = {key: interval([record[key] for record in records]) for key in names}
    return {group: metrics for group, metrics in summary.items() if metrics}


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return ``n``, ``mean``, ``sd`` and the bounds ``low`` and ``high`` of the mean's interval.

    The interval is the two-sided 95 % one of Student's t, ``mean +- t(0.975, n - 1) sd / sqrt(n)``;
    a single value has neither scatter nor interval (None).
    """
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"n": n, "mean": mean, "sd": None, "low": None, "high": None}
    sd = statistics.stdev(values)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def describe(report: Mapping[str, Any]) -> str:
    """Return the report in lines for a person: each replicate, then IoU and loss together."""
    lines = []
    for one in report["replicates"]:
        scored = ""
        if "best" in one:
            scored = f"best validation IoU {one['best']['valid_iou']:.3f}, "
            scored += f"final {one['final']['valid_iou']:.3f}; "
        lines.append(f"{one['directory']}: {scored}{one['reason']}")
    shown = ("valid_iou", "valid_loss", "iou", "loss")
    for group, metrics in report["summary"].items():
        for key in (key for key in shown if key in metrics):
            lines.append(f"{group} {key}: {_words(metrics[key])}")
    return "\n".join(lines)


def _words(found: Mapping[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['mean']:.4f} (one seed: no interval)"
    return (
        f"{found['mean']:.4f}, 95 % interval {found['low']:.4f} to {found['high']:.4f} "
        f"(Student's t, {found['n']} seeds)"
    )


def _train_one(script: str, common: Sequence[str], directory: Path, seed: int, resume: bool) -> int:
    """Train one replicate, unless it is finished; return its exit status."""
    before = read_replicate(directory, seed)
    if resume and before["status"] == 0:
        print(f"{name(seed)} is finished: {before['reason']}", flush=True)
        return 0
    own = ["--seed", str(seed), "--log_path", str(directory), "--experiment_title", name(seed)]
    if resume and (directory / name(seed)).is_dir():
        own.append("--resume")
    children: list[subprocess.Popen] = []
    with _passing_on(children) as received:
        children.append(subprocess.Popen([sys.executable, script, *common, *own]))
        if signal.SIGTERM in received:  # while it was being started
            children[0].terminate()
        status = children[0].wait()
    return INTERRUPTED if received else status


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Within the block SIGTERM goes on to ``children``, which get a terminal's Ctrl-C themselves.

    Yields the list of the signals received.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children if number == signal.SIGTERM else ():
            child.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _without_own_flags(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` without --resume, and without --seeds and its value."""
    kept, skip = [], False
    for argument in arguments:
        if not (skip or argument == "--resume" or _is(argument, "--seeds")):
            kept.append(argument)
        skip = argument == "--seeds"
    return kept


def _is(argument: str, flag: str) -> bool:
    return argument == flag or argument.startswith(f"{flag}=")


def _validation(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key.startswith("valid_")}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
