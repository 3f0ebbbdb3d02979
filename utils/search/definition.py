"""Study files: which script, which flags are fixed, which are tried; checked against the script.

A file is TOML, as those in experiments/: question, script, sampler, pruner, n_trials, and tables
[fixed] and [search]. Every name in both is a flag of the script, whose own parser checks them. What
is tried is a list of values or, for tpe and random, a range, as { low = 1, high = 4, log = true }.
Imports nothing heavy, but for ranges.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import math
import runpy
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, disk_errors

SCRIPTS = {"train_basic_3dunet.py": 3, "train_basic_2dunet.py": 2}
"""Scripts that a study can run, and the dimensions of their networks."""
CHOICES = {
    "script": tuple(SCRIPTS),
    "sampler": ("grid", "tpe", "random"),
    "pruner": ("none", "median", "hyperband"),
}
RESERVED = ("log_path", "experiment_title", "resume")
"""Flags that no study may have: the search itself names the trials and goes on."""
ROOT = Path(__file__).resolve().parents[2]  # of the checkout, where the scripts stand


@dataclasses.dataclass(frozen=True)
class StudyDefinition:
    """What a study file says, and the command line adds to it."""

    name: str  # the file's name without its ending
    extra: Sequence[str]  # flags for every trial, after the fixed ones, which they win over
    search: Mapping[str, list[Any] | dict[str, Any]]
    """By flag: a list of values, or a range: ``low`` and ``high``, perhaps ``log`` or ``step``."""
    pruner: str
    question: str = ""
    script: str = "train_basic_3dunet.py"
    sampler: str = "tpe"
    n_trials: int | None = None
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def size(self) -> float:
        """Return the number of combinations of a grid; infinite for other samplers."""
        return math.prod(map(len, self.search.values())) if self.sampler == "grid" else math.inf

    def plain(self) -> dict[str, Any]:
        """Return what makes trials comparable, as JSON."""
        names = ("script", "sampler", "fixed", "search")
        return {name: getattr(self, name) for name in names} | {"flags after --": [*self.extra]}


def read_study_file(path: str | Path, extra: Sequence[str] = ()) -> StudyDefinition:
    """Return the study in ``path`` with the flags ``extra``, checked by the parser of its script.

    Raises UserError that names the file and what is wrong in it.
    """
    path = Path(path)
    with disk_errors(path):
        content = path.read_bytes()
    try:
        definition = _definition(path.stem, tomllib.loads(content.decode()), extra)
        _check(definition)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    return definition


def trial_arguments(definition: StudyDefinition, values: Mapping[str, Any]) -> list[str]:
    """Return the script's arguments for a trial with these values of the searched flags."""
    defaults = vars(script_parser(definition.script)([]))
    fixed = [word for pair in definition.fixed.items() for word in as_flag(*pair, defaults)]
    tried = [word for pair in values.items() for word in as_flag(*pair, defaults)]
    return [*fixed, *definition.extra, *tried]


def as_flag(name: str, value: Any, defaults: Mapping[str, Any]) -> list[str]:
    """Return ``--name=value``, a switch, or ``--name a b`` for a list.

    A switch that is off by default can only be turned on, one that is on only off.
    """
    if isinstance(value, bool):
        same = value == defaults.get(name)
        return [] if same else [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


@functools.cache
def script_parser(script: str) -> Callable[[Sequence[str]], argparse.Namespace]:
    """Return ``parse_flags`` of the script; its ``main`` is not called."""
    return runpy.run_path(str(ROOT / script))["parse_flags"]


def show(value: Any) -> str:
    """Return ``value`` nearly as TOML writes it."""
    return json.dumps(value, default=str)


def is_whole(wanted: Mapping[str, Any]) -> bool:
    """Return whether a range means whole numbers only: both of its ends are."""
    return isinstance(wanted["low"], int) and isinstance(wanted["high"], int)


def _definition(name: str, content: dict[str, Any], extra: Sequence[str]) -> StudyDefinition:
    """Return the study that the parsed file describes; its flags are not checked yet."""
    keys = ("question", *CHOICES, "n_trials", "fixed", "search")
    if unknown := [key for key in content if key not in keys]:
        raise UserError(f"unknown key {unknown[0]}; there are {', '.join(keys)}")
    pruner = "none" if content.get("sampler") == "grid" else "median"
    values = {"pruner": pruner, "search": {}, **content}
    definition = StudyDefinition(name=name, extra=tuple(extra), **values)
    for key, choices in CHOICES.items():
        value = getattr(definition, key)
        if value not in choices:
            raise UserError(f"{key} = {show(value)}: must be one of {', '.join(choices)}")
    if not isinstance(definition.fixed, dict) or not isinstance(definition.search, dict):
        raise UserError("fixed and search must be tables, [fixed] and [search]")
    if not definition.search:
        raise UserError("[search] is missing or empty: name flags and the values to try")
    n = definition.n_trials
    if n is not None and not (isinstance(n, int) and n > 0):
        raise UserError(f"n_trials = {show(n)}: must be a whole number from 1 on")
    return definition


def _check(definition: StudyDefinition) -> None:
    """Raise UserError for flags that trials cannot have; each value to try is checked alone."""
    given = {word.partition("=")[0][2:] for word in definition.extra if word.startswith("--")}
    for name in RESERVED:
        if name in {*definition.fixed, *definition.search, *given}:
            raise UserError(f"{name}: the search names the trials itself, and goes on by itself")
    for name in definition.search:
        if name in definition.fixed or name in given:
            raise UserError(f"{name} is tried: it cannot be fixed, in [fixed] or after --, too")
    _parse(definition, {})
    for name, wanted in definition.search.items():
        if isinstance(wanted, dict):
            if definition.sampler == "grid":
                raise UserError(f'{name}: a grid needs a list; or set sampler = "tpe" or "random"')
            from optuna.distributions import FloatDistribution, IntDistribution

            try:
                (IntDistribution if is_whole(wanted) else FloatDistribution)(**wanted)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{name} = {show(wanted)} is no range: {error}") from error
            wanted = [wanted["low"], wanted["high"]]
        elif not isinstance(wanted, list) or not wanted:
            raise UserError(
                f"{name} = {show(wanted)}: must be a list such as [3, 4], or a range "
                "{ low = 1, high = 4 }"
            )
        for value in wanted:
            _parse(definition, {name: value})


def _parse(definition: StudyDefinition, values: Mapping[str, Any]) -> None:
    """Raise UserError with what the script's parser says against a trial's arguments."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            script_parser(definition.script)(trial_arguments(definition, values))
    except SystemExit as error:
        raise UserError(said.getvalue().strip().partition(": ")[2]) from error
