"""Frozen configuration records: the limits of their fields, and to plain JSON types and back.

A range is a field (low, high); both ends are values that may be drawn.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from utils.errors import UserError

Range = tuple[float, float]  # (low, high)
Shape = tuple[int, int, int]  # voxels along x, y, z


def limited(default: Any, least: float, most: float = np.inf, *, is_range: bool = True) -> Any:
    """Return a field whose number, or whose tuple's numbers, lie in least..most and are finite.

    A tuple has as many numbers as its default; two are a range, low <= high, unless ``is_range``
    says otherwise.
    """
    is_range = is_range and isinstance(default, tuple)
    limits = {"least": least, "most": most, "is_range": is_range, "size": np.size(default)}
    return dataclasses.field(default=default, metadata=limits)


class PlainConfig:
    """A frozen dataclass of numbers, tuples of numbers, and parts of this kind.

    Raises UserError, naming the field, for a value outside the limits of :func:`limited`.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(typing.cast("Any", self)):
            if field.metadata:
                self._check(field.name, **field.metadata)

    def _check(self, name: str, least: float, most: float, is_range: bool, size: int) -> None:
        value = getattr(self, name)
        numbers = np.atleast_1d(value)
        if not numbers.size or not np.all(np.isfinite(numbers) & (numbers >= least)):
            every = "every value " if isinstance(value, tuple) else ""
            raise UserError(f"{name} {value}: {every}must be at least {least}")
        if numbers.max() > most:
            raise UserError(f"{name} {value}: must be at most {most}")
        if is_range and (numbers.size != 2 or numbers[0] > numbers[1]):
            raise UserError(f"{name} {value}: must be (low, high) with low <= high")
        if numbers.size != size:
            raise UserError(f"{name} {value}: must be {size} numbers")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types (tuples as lists, parts nested); ``from_dict`` is the inverse."""

        def plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
            return {name: list(v) if isinstance(v, tuple) else v for name, v in fields}

        return dataclasses.asdict(typing.cast("Any", self), dict_factory=plain)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a configuration from :meth:`to_dict`'s result; what is left out has its default."""
        hints = typing.get_type_hints(cls)
        made = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        for name, hint in hints.items():
            if name in values and isinstance(hint, type) and issubclass(hint, PlainConfig):
                made[name] = hint.from_dict(values[name])
        return cls(**made)
