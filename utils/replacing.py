"""Files that appear whole, and folders for them: written under a temporary name, then renamed.

The standard library is all that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import disk_errors


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden neighbour of ``path`` to write; it becomes ``path`` when the block ends.

    Its suffix is that of ``path``, by which libraries choose a format. It is forced to the disk
    before the renaming, so that after a power cut ``path`` holds the old content or the new. When
    the block raises, ``path`` stays as it was and the neighbour is removed. Raises UserError that
    names ``path`` for a disk that is full or cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    with disk_errors(path, "written"):
        try:
            yield temporary
            if not temporary.exists():
                raise RuntimeError(f"nothing was written for {path}")
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def make_folder(folder: Path) -> Path:
    """Make a folder, and those above it, unless it is there; return it; UserError if it cannot."""
    with disk_errors(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
