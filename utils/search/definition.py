"""Study files: which script, which flags are fixed, which are tried; checked against the script.

A file is TOML, so a person can read and change it:

    question = "Does a deeper network find more columns?"
    script = "train_basic_3dunet.py"
    sampler = "grid"               # every combination of the lists; or "tpe", "random"
    pruner = "none"                # or "median", "hyperband": ends trials that fall behind
    # n_trials = 40                # of tpe and random; seeds and ranges are flags like any other

    [fixed]
    epochs = 20

    [search]
    depth = [3, 4, 5]                                   # one of these
    start_lr = { low = 1e-4, high = 1e-2, log = true }  # a range: tpe and random only

Every name in both tables is a flag of the script. Imports nothing heavy, but for ranges.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import io
import json
import math
import runpy
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, disk_errors
from utils.training.options import TrainingOptions, network_settings

SCRIPTS = {"train_basic_3dunet.py": 3, "train_basic_2dunet.py": 2}
"""Scripts that a study can run, and the dimensions of their networks."""
SAMPLERS = ("grid", "tpe", "random")
PRUNERS = ("none", "median", "hyperband")
RESERVED = {
    "log_path": "the search names the trials itself; see --log_path and --study",
    "experiment_title": "the search names the trials itself; see --log_path and --study",
    "resume": "a trial begins anew; the search itself goes on where it stopped",
}
"""Flags that no study may have, and why."""
KEYS = ("question", "script", "sampler", "pruner", "n_trials", "fixed", "search")
ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, where the scripts stand."""

ParseFlags = Callable[[Sequence[str]], argparse.Namespace]


@dataclass(frozen=True)
class StudyDefinition:
    """What a study file says."""

    name: str
    """The file's name without its ending."""
    question: str
    script: str
    sampler: str
    pruner: str
    n_trials: int | None
    fixed: Mapping[str, Any]
    search: Mapping[str, list[Any] | dict[str, Any]]
    """By flag: a list of values, or a range: ``low`` and ``high``, perhaps ``log`` or ``step``."""

    def size(self) -> float:
        """Return the number of combinations of a grid; infinite for other samplers."""
        return math.prod(map(len, self.search.values())) if self.sampler == "grid" else math.inf

    def plain(self) -> dict[str, Any]:
        """Return what makes trials comparable, as JSON."""
        names = ("script", "sampler", "fixed", "search")
        return {name: getattr(self, name) for name in names}


def read_study_file(path: str | Path) -> StudyDefinition:
    """Return the study in ``path``, checked against the flags of its script.

    Raises UserError that names the file and what is wrong in it.
    """
    path = Path(path)
    with disk_errors(path):
        content = path.read_bytes()
    try:
        parsed = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    try:
        definition = _definition(path.stem, parsed)
        _check_flags(definition)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return definition


def check_extra(definition: StudyDefinition, extra: Sequence[str]) -> None:
    """Raise UserError unless the flags ``extra`` of the command line suit the study.

    They follow the fixed flags and win over them; those that the study tries are refused.
    """
    for word in extra:
        name = word.partition("=")[0].removeprefix("--")
        if not word.startswith("--"):
            continue
        if name in definition.search:
            raise UserError(f"--{name} after --: the study tries it; change its file instead")
        if name in RESERVED:
            raise UserError(f"--{name} after --: {RESERVED[name]}")
    problem = _problem(definition.script, trial_arguments(definition, {}, extra))
    if problem:
        raise UserError(f"flags after --: {problem}")


def trial_arguments(
    definition: StudyDefinition, values: Mapping[str, Any], extra: Sequence[str] = ()
) -> list[str]:
    """Return the script's arguments for a trial with these values of the searched flags."""
    defaults = script_defaults(definition.script)
    fixed = [word for pair in definition.fixed.items() for word in as_flag(*pair, defaults)]
    tried = [word for pair in values.items() for word in as_flag(*pair, defaults)]
    return [*fixed, *extra, *tried]


def as_flag(name: str, value: Any, defaults: Mapping[str, Any]) -> list[str]:
    """Return ``--name=value``, a switch, or ``--name a b`` for a list.

    A switch that is off by default can only be turned on, one that is on only off. Raises
    UserError where a switch and another value are mixed up.
    """
    switch = isinstance(defaults[name], bool)
    if switch != isinstance(value, bool):
        right = "true or false" if switch else "a number or text"
        raise UserError(f"{name} = {show(value)}: must be {right}")
    if switch:
        return [] if value == defaults[name] else [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


@functools.cache
def script_parser(script: str) -> ParseFlags:
    """Return ``parse_flags`` of the script; its ``main`` is not called."""
    return runpy.run_path(str(ROOT / script))["parse_flags"]


def script_defaults(script: str) -> dict[str, Any]:
    """Return the defaults of the script's flags."""
    return vars(script_parser(script)([]))


def show(value: Any) -> str:
    """Return ``value`` nearly as TOML writes it."""
    return json.dumps(value, default=str)


def _definition(name: str, content: Mapping[str, Any]) -> StudyDefinition:
    """Return the study that the parsed file describes; its flags are not checked yet."""
    for key in content:
        if key not in KEYS:
            raise UserError(f"unknown key {key}{_suggestion(key, KEYS)}")
    for key in ("fixed", "search"):
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f"{key} = {show(content[key])}: must be a table, [{key}]")
    if not content.get("search"):
        raise UserError("[search] is missing or empty: name flags and the values to try")
    sampler = _one_of(content, "sampler", SAMPLERS, "tpe")
    n_trials = content.get("n_trials")
    if n_trials is not None and (type(n_trials) is not int or n_trials < 1):
        raise UserError(f"n_trials = {show(n_trials)}: must be a whole number from 1 on")
    return StudyDefinition(
        name=name,
        question=str(content.get("question", "")).strip(),
        script=_one_of(content, "script", tuple(SCRIPTS), next(iter(SCRIPTS))),
        sampler=sampler,
        pruner=_one_of(content, "pruner", PRUNERS, "none" if sampler == "grid" else "median"),
        n_trials=n_trials,
        fixed=content.get("fixed", {}),
        search=content["search"],
    )


def _one_of(content: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = content.get(key, default)
    if value not in choices:
        raise UserError(f"{key} = {show(value)}: must be one of {', '.join(choices)}")
    return value


def _check_flags(definition: StudyDefinition) -> None:
    """Raise UserError for a flag that the script has not, or a value that it refuses.

    Fixed flags are checked together; each value to try is checked beside them, alone.
    """
    defaults = script_defaults(definition.script)
    for table in ("fixed", "search"):
        for name in getattr(definition, table):
            if name in RESERVED:
                raise UserError(f"[{table}] {name}: {RESERVED[name]}")
            if name not in defaults:
                raise UserError(
                    f"[{table}] {name}: {definition.script} has no flag --{name}"
                    f"{_suggestion(name, defaults)}"
                )
    for name in definition.fixed:
        if name in definition.search:
            raise UserError(f"{name} stands in [fixed] and in [search]: remove one")
    _check_arguments(definition, {}, "[fixed]")
    for name, wanted in definition.search.items():
        where = f"[search] {name} = {show(wanted)}"
        for value in _values_to_check(where, wanted, definition.sampler):
            _check_arguments(definition, {name: value}, f"[search] {name} = {show(value)}:")


def _check_arguments(definition: StudyDefinition, values: Mapping[str, Any], where: str) -> None:
    """Raise UserError that begins with ``where`` unless the script takes a trial's arguments."""
    try:
        problem = _problem(definition.script, trial_arguments(definition, values))
    except UserError as error:  # of as_flag
        problem = str(error)
    if problem:
        raise UserError(f"{where} {problem}")


def _problem(script: str, arguments: Sequence[str]) -> str | None:
    """Return what the script would say against ``arguments`` before it looks at any data."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = script_parser(script)(arguments)
        TrainingOptions.from_flags(flags)
        network_settings(flags, SCRIPTS[script])
    except SystemExit:
        return said.getvalue().strip().partition(": ")[2].replace(" (--help lists the flags)", "")
    except UserError as error:
        return str(error)
    return None


def _values_to_check(where: str, wanted: Any, sampler: str) -> list[Any]:
    """Return all values of a list, or the ends of a range; raises UserError for anything else."""
    if isinstance(wanted, dict):
        if sampler == "grid":
            raise UserError(f'{where}: a grid needs a list; or set sampler = "tpe" or "random"')
        _check_range(where, wanted)
        return [wanted["low"], wanted["high"]]
    if not isinstance(wanted, list) or not wanted:
        raise UserError(
            f"{where}: must be a list such as [3, 4], or a range {{ low = 1, high = 4 }}"
        )
    if not all(isinstance(value, bool | int | float | str) for value in wanted):
        raise UserError(f"{where}: must hold numbers, text, true and false only")
    if len(set(wanted)) < len(wanted):
        raise UserError(f"{where}: a value stands twice")
    return wanted


def _check_range(where: str, wanted: Mapping[str, Any]) -> None:
    """Raise UserError unless Optuna can draw from the range."""
    if not {"low", "high"} <= set(wanted) <= {"low", "high", "log", "step"}:
        raise UserError(f"{where}: a range has low and high, and may have log = true or a step")
    for key in set(wanted) - {"log"}:
        if type(wanted[key]) not in (int, float):
            raise UserError(f"{where}: {key} must be a number")
    if is_whole(wanted) and not isinstance(wanted.get("step", 1), int):
        raise UserError(f"{where}: step must be whole, as low and high are")
    import optuna

    distributions = optuna.distributions
    kind = distributions.IntDistribution if is_whole(wanted) else distributions.FloatDistribution
    try:
        kind(**wanted)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def is_whole(wanted: Mapping[str, Any]) -> bool:
    """Return whether a range means whole numbers only: both of its ends are."""
    return isinstance(wanted["low"], int) and isinstance(wanted["high"], int)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
