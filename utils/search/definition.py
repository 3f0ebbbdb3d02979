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

Every name in both tables is a flag of the script. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib.util
import io
import itertools
import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.errors import UserError, disk_errors
from utils.training.options import TrainingOptions, network_settings

SCRIPTS = {"train_basic_3dunet.py": 3, "train_basic_2dunet.py": 2}
"""Scripts that a study can run, and the dimensions of their networks."""
SAMPLERS = ("grid", "tpe", "random")
PRUNERS = ("none", "median", "hyperband")
RESERVED = ("log_path", "experiment_title", "resume", "seeds")
"""Flags that the search sets itself, or that make no sense in it."""
KEYS = ("question", "script", "sampler", "pruner", "n_trials", "fixed", "search")
ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, where the scripts stand."""

ParseFlags = Callable[[Sequence[str]], argparse.Namespace]
Value = bool | int | float | str


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]

    def ends(self) -> tuple[Value, ...]:
        """Return the values that have to be checked: all."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included; whole ones when both bounds are."""

    low: float
    high: float
    log: bool = False
    """Even in the logarithm."""
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> tuple[Value, ...]:
        """Return the values that have to be checked: the bounds."""
        return (self.low, self.high)


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
    search: Mapping[str, Choice | Range]

    @property
    def script_path(self) -> Path:
        """Where the script stands."""
        return ROOT / self.script

    def grid(self) -> Iterator[dict[str, Value]]:
        """Yield every combination; the flag named last changes fastest."""
        names = list(self.search)
        for values in itertools.product(*(self.search[name].ends() for name in names)):
            yield dict(zip(names, values, strict=True))

    def plain(self) -> dict[str, Any]:
        """Return what makes trials comparable, as JSON: script, fixed flags and search space."""
        space = {name: list(vars(wanted).items()) for name, wanted in self.search.items()}
        plain_space = {
            name: {key: list(v) if isinstance(v, tuple) else v for key, v in items}
            for name, items in space.items()
        }
        return {"script": self.script, "fixed": dict(self.fixed), "search": plain_space}


def read_study_file(path: str | Path) -> StudyDefinition:
    """Return the study in ``path``, checked against the flags of its script.

    Raises UserError that names the file.
    """
    path = Path(path)
    try:
        with disk_errors(path):
            content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    try:
        definition = _definition(path.stem, content)
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
            raise UserError(f"--{name} after --: {_why_reserved(name)}")
    parse, defaults = script_flags(definition.script)
    problem = _problem(parse, [*fixed_arguments(definition, defaults), *extra], definition.script)
    if problem:
        raise UserError(f"flags after --: {problem}")


def trial_arguments(
    definition: StudyDefinition, values: Mapping[str, Value], extra: Sequence[str] = ()
) -> list[str]:
    """Return the script's arguments for a trial with these values of the searched flags."""
    _, defaults = script_flags(definition.script)
    tried = [word for name, value in values.items() for word in as_flag(name, value, defaults)]
    return [*fixed_arguments(definition, defaults), *extra, *tried]


def fixed_arguments(definition: StudyDefinition, defaults: Mapping[str, Any]) -> list[str]:
    """Return the arguments of the fixed flags."""
    pairs = definition.fixed.items()
    return [word for name, value in pairs for word in as_flag(name, value, defaults)]


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


def script_flags(script: str) -> tuple[ParseFlags, dict[str, Any]]:
    """Return the flag parser of ``script`` and the defaults of its flags."""
    parse = _load(ROOT / script).parse_flags
    return parse, vars(parse([]))


def show(value: Any) -> str:
    """Return ``value`` as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {show(v)}' for key, v in value.items())} }}"
    return str(value)


@functools.cache
def _load(path: Path) -> ModuleType:
    """Return the script at ``path`` as a module; its ``main`` is not called."""
    name = f"flags_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as the import system does
    spec.loader.exec_module(module)
    return module


def _definition(name: str, content: Mapping[str, Any]) -> StudyDefinition:
    """Return the study that the parsed file describes; its flags are not checked yet."""
    for key in content:
        if key not in KEYS:
            raise UserError(f"unknown key {key}{_suggestion(key, KEYS)}")
    sampler = _one_of(content, "sampler", SAMPLERS, "tpe")
    n_trials = content.get("n_trials")
    if n_trials is not None and (type(n_trials) is not int or n_trials < 1):
        raise UserError(f"n_trials = {show(n_trials)}: must be a whole number from 1 on")
    search = _table(content, "search")
    if not search:
        raise UserError("[search] is missing or empty: name flags and the values to try")
    fixed = _table(content, "fixed")
    for flag in fixed:
        if flag in search:
            raise UserError(f"{flag} stands in [fixed] and in [search]: remove one")
    return StudyDefinition(
        name=name,
        question=str(content.get("question", "")).strip(),
        script=_one_of(content, "script", tuple(SCRIPTS), next(iter(SCRIPTS))),
        sampler=sampler,
        pruner=_one_of(content, "pruner", PRUNERS, "none" if sampler == "grid" else "median"),
        n_trials=n_trials,
        fixed=fixed,
        search={flag: _space(flag, wanted, sampler) for flag, wanted in search.items()},
    )


def _table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{key} = {show(table)}: must be a table, [{key}]")
    return table


def _one_of(content: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = content.get(key, default)
    if value not in choices:
        raise UserError(f"{key} = {show(value)}: must be one of {', '.join(choices)}")
    return value


def _space(flag: str, wanted: Any, sampler: str) -> Choice | Range:
    """Return the values to try; raises UserError for what is neither list nor range."""
    where = f"[search] {flag} = {show(wanted)}"
    if isinstance(wanted, dict) and sampler == "grid":
        raise UserError(f'{where}: a grid needs a list; or set sampler = "tpe" or "random"')
    if isinstance(wanted, dict):
        return _range(where, wanted)
    if not isinstance(wanted, list) or not wanted:
        raise UserError(
            f"{where}: must be a list such as [3, 4], or a range {{ low = 1, high = 4 }}"
        )
    if not all(isinstance(value, Value) for value in wanted):
        raise UserError(f"{where}: must hold numbers, text, true and false only")
    if len({(type(value), value) for value in wanted}) < len(wanted):
        raise UserError(f"{where}: a value stands twice")
    return Choice(tuple(wanted))


def _range(where: str, wanted: Mapping[str, Any]) -> Range:
    for key in wanted:
        if key not in ("low", "high", "log", "step"):
            raise UserError(f"{where}: unknown {key}; a range has low, high, log and step")
    low, high, step = (wanted.get(key) for key in ("low", "high", "step"))
    for key, number in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UserError(f"{where}: {key} must be a number")
        if not math.isfinite(number):
            raise UserError(f"{where}: {key} must be finite")
    log = wanted.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{where}: log must be true or false")
    if low >= high:
        raise UserError(f"{where}: low must be smaller than high")
    if log and low <= 0:
        raise UserError(f"{where}: log = true needs low above 0")
    if step is not None and (step <= 0 or log):
        raise UserError(f"{where}: step must be above 0, and excludes log = true")
    if step is not None and isinstance(low, int) and not isinstance(step, int):
        raise UserError(f"{where}: step must be whole, as low is")
    return Range(low, high, log, step)


def _check_flags(definition: StudyDefinition) -> None:
    """Raise UserError for a flag that the script has not, or a value that it refuses.

    Fixed flags are checked together; each value to try is checked beside them, alone.
    """
    parse, defaults = script_flags(definition.script)
    named = [*(("fixed", name) for name in definition.fixed)]
    named += [("search", name) for name in definition.search]
    for table, name in named:
        if name in RESERVED:
            raise UserError(f"[{table}] {name}: {_why_reserved(name)}")
        if name not in defaults:
            raise UserError(
                f"[{table}] {name}: {definition.script} has no flag --{name}"
                f"{_suggestion(name, defaults)}"
            )
    fixed = _arguments_in("fixed", definition.fixed.items(), defaults)
    problem = _problem(parse, fixed, definition.script)
    if problem:
        raise UserError(f"[fixed] {problem}")
    for name, wanted in definition.search.items():
        for value in wanted.ends():
            tried = _arguments_in("search", [(name, value)], defaults)
            problem = _problem(parse, [*fixed, *tried], definition.script)
            if problem:
                raise UserError(f"[search] {name} = {show(value)}: {problem}")


def _arguments_in(
    table: str, pairs: Iterable[tuple[str, Any]], defaults: Mapping[str, Any]
) -> list[str]:
    try:
        return [word for name, value in pairs for word in as_flag(name, value, defaults)]
    except UserError as error:
        raise UserError(f"[{table}] {error}") from error


def _problem(parse: ParseFlags, arguments: Sequence[str], script: str) -> str | None:
    """Return what the script would say against ``arguments`` before it looks at any data."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            flags = parse(arguments)
        TrainingOptions.from_flags(flags)
        network_settings(flags, SCRIPTS[script])
    except SystemExit:
        return said.getvalue().strip().partition(": ")[2].replace(" (--help lists the flags)", "")
    except UserError as error:
        return str(error)
    return None


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _why_reserved(name: str) -> str:
    if name == "resume":
        return "a trial begins anew; the search itself goes on where it stopped"
    if name == "seeds":
        return "a trial is one training; try seed = [0, 1, 2] in [search] instead"
    return "the search names the trials itself; see --log_path and --study"
