"""What all scripts share in reading flags: one-line errors and a help that shows defaults."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

VIEWS = ("flips", "scales", "flips,scales")
"""Views of each window over which a prediction can be averaged; --tta alone means the first."""


def views_of(tta: str | None) -> tuple[str, ...]:
    """Return the kinds of views that one of :data:`VIEWS` lists; none where --tta is not given."""
    return tuple(tta.split(",")) if tta else ()


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


def _numbers(text: str) -> tuple[float, ...]:
    """Return the numbers that ``text`` lists between commas; none where one of them is none."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        return ()


def voxel_size(text: str) -> tuple[float, ...]:
    """Return the lengths that ``text`` lists between commas; ArgumentTypeError if some are none."""
    sizes = _numbers(text)
    if not sizes or not all(0 < size < math.inf for size in sizes):
        message = f"{text!r}: give micrometres along z,y,x, such as 1,0.5,0.5"
        raise argparse.ArgumentTypeError(message)
    return sizes


def number_or_auto(text: str) -> float | str:
    """Return the number, or ``auto``; ArgumentTypeError for anything else."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        message = f"{text!r}: give a number, or auto"
        raise argparse.ArgumentTypeError(message) from None


def is_labelled(name: str | Path) -> bool:
    """Return whether ``name`` means labelled stacks: a folder, or ``IMAGE=LABELS``, but no file."""
    if not str(name):
        return False  # Path("") is the folder where it is called
    # os.path's, for Path's raise where a pair is longer than a file's name may be
    return os.path.isdir(name) or ("=" in str(name) and not os.path.exists(name))


def voxel_ranges(text: str) -> tuple[tuple[int | None, int | None], ...]:
    """Return the ranges that ``text`` lists, as ``20:40,:128,64:``; None is an end left out.

    Raises ArgumentTypeError for anything else.
    """
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((int(a) if a else None, int(b) if b else None) for a, b in pairs)
    except ValueError:
        message = f"{text!r}: give ranges of voxels along z,y,x, such as 20:40,:128,64:"
        raise argparse.ArgumentTypeError(message) from None


def channel_numbers(text: str) -> tuple[int, ...]:
    """Return the channels that ``text`` lists; ArgumentTypeError for anything else."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: give channels from 0, such as 0,1")
    return tuple(int(part) for part in text.split(","))


def direction(text: str) -> tuple[float, ...]:
    """Return the direction that ``text`` writes; ArgumentTypeError for anything else."""
    vector = _numbers(text)
    if len(vector) != 3 or not 0 < math.hypot(*vector) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a direction x,y,z, such as 0,-1,0")
    return vector


def add_stack_flags(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """Add what may be asked of the stack in ``--input``; return what adds to their group."""
    add = parser.add_argument_group("what to read").add_argument
    # fmt: off
    add("--channel", type=int, metavar="INT", help="channel, from 0; needed if there are several")
    add("--voxel_size", type=voxel_size, metavar="Z,Y,X",
        help="edge of a voxel in micrometres, where the file does not tell or is wrong")
    add("--crop", type=voxel_ranges, metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="only this box, in voxels from 0, such as one optic lobe: nothing outside counts, not "
        "even for the scaling of grey values; outputs have its size and keep its place in the file")
    add("--key", metavar="STR", help="name of the array inside HDF5 or Zarr")
    add("--series", type=int, metavar="INT",
        help="image or position in a TIFF that holds several, from 0; default: the largest; or "
        "scene of a CZI")
    add("--index", type=int, metavar="INT",
        help="time point, or sample of a file of generate_3d_data.py, from 0")
    add("--axes", metavar="STR",
        help="what the array's axes are, slowest first, where the file does not tell or is wrong: "
        "a letter each of T (time), C (channel), Z, Y and X, such as ZCYX, or ZC2YX for pages of "
        "two channels in turn; predict.py --list FILE shows lengths")
    # fmt: on
    return add


def add_column_flags(parser: argparse.ArgumentParser, title: str) -> None:
    """Add what may be asked of single columns and their lattice, as a group with a ``title``."""
    add = parser.add_argument_group(title).add_argument
    # fmt: off
    add("--measure", type=channel_numbers, default=(), metavar="C,C",
        help="channels whose mean and peak in each column are measured")
    add("--colour", metavar="FIELD",
        help="field of NAME_columns.csv that colours the map; default: the mean of the first "
        "channel of --measure, else length")
    add("--origin", type=int, metavar="COLUMN_ID", help="the column that becomes p = q = 0")
    add("--dorsal", type=direction, metavar="X,Y,Z",
        help="direction along the file's x, y, z along which p + q runs")
    add("--hemisphere", choices=("L", "R"), help="side of the brain, which settles the hand")
    # fmt: on
