"""Frozen configuration records: to plain JSON types and back, and the checks of their fields.

A range is a field (low, high); both ends are values that may be drawn.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from utils.errors import UserError


class PlainConfig:
    """A frozen dataclass of numbers, tuples of numbers, and parts of this kind."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types (tuples as lists, parts nested); ``from_dict`` is the inverse."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from :meth:`to_dict`'s result; what is left out has its default."""
        hints = typing.get_type_hints(cls)
        return cls(**{name: _typed(value, hints.get(name)) for name, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, PlainConfig):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, PlainConfig):
        return hint.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def check_each(config: Any, minima: Mapping[str, float]) -> None:
    """Raise UserError, naming the field, for a tuple field with a value below its minimum."""
    for name, low in minima.items():
        values = getattr(config, name)
        if not values or any(not np.isfinite(v) or v < low for v in values):
            raise UserError(f"{name} {values}: every value must be at least {low}")


def check_ranges(config: Any, minima: Mapping[str, float]) -> None:
    """Raise UserError, naming the field, unless minimum <= low <= high."""
    check_each(config, minima)
    for name in minima:
        values = getattr(config, name)
        if len(values) != 2 or values[0] > values[1]:
            raise UserError(f"{name} {values}: must be (low, high) with low <= high")


def check_minima(config: Any, minima: Mapping[str, float]) -> None:
    """Raise UserError, naming the field, for a number below its minimum or not finite."""
    for name, low in minima.items():
        value = getattr(config, name)
        if not np.isfinite(value) or value < low:
            raise UserError(f"{name} {value}: must be at least {low}")


def check_shares(config: Any, names: Iterable[str]) -> None:
    """Raise UserError, naming the field, for a number, or one of a tuple, outside of 0 to 1."""
    for name in names:
        if not np.all(
            (np.array(getattr(config, name)) >= 0) & (np.array(getattr(config, name)) <= 1)
        ):
            raise UserError(f"{name} {getattr(config, name)}: must be from 0 to 1")
