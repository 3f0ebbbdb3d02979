"""What the readers and writers of the files say: one line that names the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError


class OtherParametersError(UserError):
    """A file holds samples of other parameters."""


@contextmanager
def hdf5_errors(path: Path, what: str = "cannot be read") -> Iterator[None]:
    """Turn what h5py raises in the block, which holds its call alone, into a UserError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:  # KeyError: a damaged table of names
        # One short line of what the HDF5 library says in many.
        number = re.search(r"\berrno (?:= )?(\d+)", str(error), re.IGNORECASE)
        reason = os.strerror(int(number[1])) if number else " ".join(str(error).split())
        raise UserError(f"{path}: {what}: {reason}") from error
