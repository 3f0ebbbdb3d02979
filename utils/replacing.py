"""Files and folders that appear whole: written under a temporary name, then renamed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError, disk_errors


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden neighbour of ``path`` to write; it becomes ``path`` when the block ends.

    It is a file or a folder, with the suffixes of ``path``, by which libraries choose a format. A
    file is forced to the disk before the renaming, so that after a power cut ``path`` holds the old
    content or the new. When the block raises, ``path`` stays as it was and the neighbour is
    removed. Raises UserError that names ``path`` for a disk that is full or cannot be written.
    """
    with disk_errors(path, "written"), renaming(path) as temporary:
        yield temporary


@contextmanager
def renaming(path: Path) -> Iterator[Path]:
    """Do as :func:`replacing`, for a block that does more than write: its errors go on as they are.

    Those of the renaming are UserErrors here too.
    """
    temporary = _temporary_name(path)
    try:
        yield temporary
        if not temporary.exists():
            raise RuntimeError(f"nothing was written for {path}")
        with disk_errors(path, "written"):
            _sync(temporary)
            if path.is_dir() and temporary.is_dir():  # it steps aside until then
                aside = path.with_name(f".replaced.{path.name}")
                _remove(aside)
                os.replace(path, aside)
                os.replace(temporary, path)
                _remove(aside)
            else:
                os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    with disk_errors(path, "written"):
        _sync(path.parent)


def write_json(path: Path, content: Any) -> Path:
    """Write plain JSON, NaN none of it, whole or not at all; return ``path``."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Return a record that :func:`write_json` has written; UserError if it cannot be read."""
    try:
        with disk_errors(path):
            content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged or no record of ours")
    return content


def make_folder(folder: Path) -> Path:
    """Make a folder, and those above it, unless it is there; return it.

    Raises UserError if it cannot be made, or nothing can be written there.
    """
    with disk_errors(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder, "written"):
        tempfile.TemporaryFile(dir=folder).close()
    return folder


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Keep other processes from replacing ``path`` within the block, if they ask here too.

    Raises UserError if another one is at it. The lock, on the temporary file, ends with the process
    and those that it forks within the block; what a killed one left does not matter.
    """
    temporary = _temporary_name(path)
    with disk_errors(path, "written"):
        file = temporary.open("ab")  # creates, and leaves alone what another process writes
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is writing this file") from error
        except OSError:
            pass  # a file system without locks
        if not temporary.exists():  # renamed after it was opened here, and before it was locked
            raise UserError(f"{path}: another process was writing this file just now; try again")
        yield


def _temporary_name(path: Path) -> Path:
    suffixes = "".join(path.suffixes)
    return path.with_name(f".{path.name.removesuffix(suffixes)}.partial{suffixes}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
