"""Configurations of volumes as TOML: ``--config FILE`` is read here, ``--show_config`` written.

The key ``preset`` says which preset's fields the other keys are; a part of a configuration is a
table. What is left out has the preset's default. The volumes' shape is no key: flags give it.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import textwrap
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, disk_errors
from utils.simulation.configuration import PlainConfig
from utils.simulation.volume import PRESETS, Config, Mixture, preset, preset_of

NOT_KEYS = ("shape", "table")  # fields that flags give


def read_config(path: str | Path, name: str | None = None) -> Config:
    """Return the configuration that a TOML file describes.

    ``name`` is the preset's, which the file may say instead; if both do, they must agree. Raises
    UserError if the file cannot be read, or for a key or a value that is not right; names both.
    """
    with disk_errors(path):
        text = Path(path).read_bytes()
    try:
        values = tomllib.loads(text.decode())
    except ValueError as error:
        raise UserError(f"{path}: is not TOML: {error}") from error
    said = values.pop("preset", name)
    if said not in list(PRESETS) or name not in (None, said):
        asked = f"must be {name}, as --preset says" if name else f"one of {', '.join(PRESETS)}"
        raise UserError(f"{path}: preset {said!r}: {asked}; say so in the file or by --preset")
    return _build(PRESETS[said], values, f"{path}: ")


def read_mixture(
    shares: Mapping[str, float], path: str | Path | None, shape: tuple[int, int, int]
) -> Mixture:
    """Return a mixture of presets, one of which a file may describe; by itself it is the whole."""
    configs = {name: preset(name, shape=shape) for name in shares}
    if path is not None:
        config = read_config(path, next(iter(shares)) if len(shares) == 1 else None)
        name = preset_of(config)
        if shares and name not in shares:
            raise UserError(f"{path}: preset {name!r}: is none of {', '.join(shares)}")
        configs[name] = dataclasses.replace(config, shape=shape)
    return Mixture(tuple((config, shares.get(name, 1.0)) for name, config in configs.items()))


def show_config(config: Config) -> str:
    """Return TOML of all fields, with their docstrings as comments, that gives ``config`` back."""
    return f'preset = "{preset_of(config)}"\n' + "\n".join(_lines(config)) + "\n"


def _build(kind: type[Any], values: Mapping[str, Any], place: str) -> Any:
    """Return a configuration of ``values``; ``place`` begins every message."""
    hints = {name: h for name, h in typing.get_type_hints(kind).items() if name not in NOT_KEYS}
    made = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise UserError(f"{place}{key}: there is no such key (the nearest is {near[0]})")
        made[key] = _typed(value, hints[key], f"{place}{key}")
    try:
        return kind(**made)
    except UserError as error:
        raise UserError(f"{place}{error}") from error


def _typed(value: Any, hint: Any, place: str) -> Any:
    """Return a value of TOML as a field's type has it; UserError for one of another type."""
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return _build(typing.cast("type[Any]", hint), value, f"{place}.")
        raise UserError(f"{place} {value!r}: must be a table, [{place.rpartition(' ')[2]}]")
    kinds = typing.get_args(hint)
    if kinds:
        if isinstance(value, list) and len(value) == len(kinds):
            return tuple(_typed(v, kind, place) for v, kind in zip(value, kinds, strict=True))
        raise UserError(f"{place} {value!r}: must be a list of {len(kinds)} numbers")
    if type(value) is int and hint is float:
        return float(value)
    if type(value) is not hint:
        kind = "whole number" if hint is int else "number"
        raise UserError(f"{place} {value!r}: must be a {kind}")
    return value


def _lines(config: PlainConfig, part: str = "") -> Iterator[str]:
    """Yield the lines of a configuration: its numbers, and then its parts as tables."""
    texts = field_texts(type(config))
    values = {name: v for name, v in vars(config).items() if name not in NOT_KEYS}
    for name, value in values.items():
        if not isinstance(value, PlainConfig):
            yield from textwrap.wrap(texts[name], 98, initial_indent="# ", subsequent_indent="# ")
            yield f"{name} = {json.dumps(value)}"
    for name, value in values.items():
        if isinstance(value, PlainConfig):
            yield from ("", f"[{part}{name}]", f"# {texts[name]}")
            yield from _lines(value, f"{part}{name}.")


def field_texts(kind: type[Any]) -> dict[str, str]:
    """Return the text beside or below each field of a dataclass, in one line; they tell units."""
    source = inspect.getsource(kind)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for node, after in itertools.pairwise([*body.body, ast.Pass()]):
        if isinstance(node, ast.AnnAssign):
            beside = source.splitlines()[node.lineno - 1].partition("  # ")[2]
            below = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
            texts[ast.unparse(node.target)] = " ".join((beside or below).split()).rstrip(".")
    return texts
