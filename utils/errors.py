"""The one way for errors: mistakes of the user are UserErrors, everything else is a bug of ours.

A mistake is raised where it is found, with what is wrong, where, and what would be right. Scripts
turn it, and nothing else, into one line and status 2 (:func:`exit_status`); a bug keeps its
traceback and status 1.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130  # exit status after Ctrl-C or a request to terminate


class UserError(ValueError):
    """Something that the user can mend: a flag, a file, a disk that is full; one line says how.

    A ValueError, so that whoever calls the functions in Python catches what Python's own raise.
    """


@contextmanager
def disk_errors(path: str | Path, doing: str = "read") -> Iterator[None]:
    """Turn an OSError of the block into a UserError that names ``path``.

    For the call that opens, reads or writes (``doing``: the participle) and nothing around it.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be {doing} ({reason})") from error


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


def exit_status(
    script: str, work: Callable[[], int | None], interrupted: str = "interrupted"
) -> int:
    """Do the ``work`` of a script (its file name); return its exit status, 0 where it has none.

    A UserError becomes one line on standard error and status 2, Ctrl-C one line and status 130;
    any other exception goes on, so that Python prints its traceback and ends with status 1.
    """
    try:
        return work() or 0
    except UserError as error:
        print(f"{script}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{script}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
