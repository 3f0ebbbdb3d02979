"""What the readers and writers of the file raise: one line that names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any


class StorageError(ValueError):
    """A file cannot be read or written; the message names it and says what to do."""


class RecipeMismatchError(StorageError):
    """A file holds, or was begun with, other parameters; ``differences`` lists them."""

    def __init__(self, path: Path, differences: list[tuple[str, Any, Any]]) -> None:
        self.path = path
        self.differences = differences
        text = "; ".join(f"{name} is {old}, asked for {new}" for name, old, new in differences)
        super().__init__(f"{path}: other parameters: {text}")


def reason(error: Exception) -> str:
    """Return one short line of what an OSError or an error of the HDF5 library says."""
    if isinstance(error, OSError) and error.errno:  # h5py's own text has many lines
        return os.strerror(error.errno)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        if f"errno = {number}," in str(error):
            return os.strerror(number)
    return " ".join(str(error).split())
