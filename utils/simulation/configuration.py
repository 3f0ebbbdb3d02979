"""Frozen configuration records: to plain JSON types and back, and the checks of their fields.

A range is a field (low, high); both ends are values that may be drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from utils.errors import UserError

Config = TypeVar("Config")


def to_plain(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain JSON types, tuples as lists."""
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()
    }


def from_plain(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a ``cls`` from :func:`to_plain`'s result."""
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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
