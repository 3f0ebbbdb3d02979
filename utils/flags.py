"""What all scripts share in reading flags: one-line errors and a help that shows defaults."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NoReturn


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default that there is; a switch, off by default, has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default is not None and action.default is not False
        return super()._get_help_string(action) if shown else action.help


class FlagParser(argparse.ArgumentParser):
    """An argument parser whose help shows defaults and whose errors are one line, status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print ``message`` in one line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def whole_number(text: str) -> int:
    """Return the integer that ``text`` writes, as ``30000000`` or ``30e6``; ValueError if none."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer():
            raise ValueError(f"{text} is not a whole number") from None
        return int(value)


def voxel_size(text: str) -> tuple[float, ...]:
    """Return the lengths that ``text`` lists between commas; ArgumentTypeError if some are none."""
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give micrometres along z,y,x, such as 1,0.5,0.5"
        )
    return sizes


def scale(text: str) -> float | str:
    """Return the factor, or ``auto``; ArgumentTypeError for anything else."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        message = f"{text!r}: give a factor such as 2.5, or auto"
        raise argparse.ArgumentTypeError(message) from None


def is_labelled(name: str | Path) -> bool:
    """Return whether ``name`` means labelled stacks: a folder, or ``IMAGE=LABELS``, but no file."""
    if not str(name):
        return False  # Path("") is the folder where it is called
    return Path(name).is_dir() or ("=" in str(name) and not Path(name).exists())


def voxel_ranges(text: str) -> tuple[tuple[int | None, int | None], ...]:
    """Return the ranges that ``text`` lists, as ``20:40,:128,64:``; None is an end left out.

    Raises ArgumentTypeError for anything else.
    """
    ranges = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        try:
            ends = (int(first) if first else None, int(last) if last else None)
        except ValueError:
            colon = ""
        if not colon:
            message = f"{text!r}: give ranges of voxels along z,y,x, such as 20:40,:128,64:"
            raise argparse.ArgumentTypeError(message)
        ranges.append(ends)
    return tuple(ranges)
