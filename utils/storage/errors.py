"""What the readers and writers of the files say: one line that names the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError


class OtherParametersError(UserError):
    """A file holds samples of other parameters; ``differences`` lists (name, there, asked for)."""

    def __init__(self, path: Path, differences: list[tuple[str, Any, Any]]) -> None:
        self.path = path
        self.differences = differences
        text = "; ".join(f"{name} is {old}, asked for {new}" for name, old, new in differences)
        super().__init__(f"{path}: other parameters: {text}")


@contextmanager
def hdf5_errors(path: Path, what: str = "cannot be read") -> Iterator[None]:
    """Turn what h5py raises in the block, which holds its call alone, into a UserError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:  # KeyError: a damaged table of names
        raise UserError(f"{path}: {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return one short line of what the HDF5 library says in many."""
    number = re.search(r"\berrno (?:= )?(\d+)", str(error), re.IGNORECASE)
    return os.strerror(int(number[1])) if number else " ".join(str(error).split())
