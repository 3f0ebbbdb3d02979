"""The journal of a file that is being made: records with check sums, one after the other.

A record is a frame (index of the sample, bytes of the payload, their check sum) and the payload.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from utils.storage.errors import StorageError, reason

FRAME = struct.Struct("<qQI")  # index of the sample, bytes of the payload, their check sum
HEAD = -1


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write ``data`` at ``offset`` of a file, in as many calls as the system wants."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def read_all(fd: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes, or fewer at the end of the file."""
    parts = []
    while size and (part := os.pread(fd, size, offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def append_frame(fd: int, index: int, payload: bytes | memoryview, offset: int) -> int:
    """Write one record at ``offset``; return where the next one goes."""
    frame = FRAME.pack(index, len(payload), zlib.crc32(payload)) + payload
    write_all(fd, frame, offset)
    return offset + len(frame)


def scan_frames(fd: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (index, offset of the payload, payload) of all records up to the first torn one."""
    offset, end = 0, os.fstat(fd).st_size
    while len(head := read_all(fd, FRAME.size, offset)) == FRAME.size:
        index, size, crc = FRAME.unpack(head)
        offset += FRAME.size
        if offset + size > end:
            return
        payload = read_all(fd, size, offset)
        if zlib.crc32(payload) != crc:
            return
        yield index, offset, payload
        offset += size


def lock_journal(path: Path) -> int:
    """Open or make the journal of ``path`` for this process alone; return its descriptor."""
    try:
        fd = os.open(journal_path(path), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {reason(error)}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return fd  # a file system without locks
        os.close(fd)
        raise StorageError(f"{path}: another process is writing this file") from error
    if not _has_name(fd, journal_path(path)):
        os.close(fd)
        raise StorageError(f"{path}: another process was writing this file just now; try again")
    return fd


def _has_name(fd: int, path: Path) -> bool:
    """Return whether ``path`` names the open file, which another process may have removed."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def partial_path(path: Path) -> Path:
    """Return the name that the file bears while it is made."""
    return path.with_name(path.name + ".partial")


def journal_path(path: Path) -> Path:
    """Return the name of a file's journal."""
    return path.with_name(path.name + ".rows.partial")
