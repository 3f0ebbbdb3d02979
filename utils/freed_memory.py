"""Have the C library keep freed memory for the next arrays, instead of new pages each time.

glibc hands large arrays back to the kernel when they are freed; work that needs the same again and
again then pays for pages that the kernel has to clear: a sixth of the time of a simulated volume,
7 to 15 % of a training step on a CPU. Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def keep_freed_volumes() -> None:
    """Keep arrays of up to 32 MiB, and 512 MiB of free memory: for a process that simulates."""
    _set(_MMAP_THRESHOLD, 32 << 20)
    _set(_TRIM_THRESHOLD, 512 << 20)


def keep_all_freed() -> None:
    """Keep all: for a process that trains, whose memory stays at its peak from the first step."""
    _set(_MMAP_MAX, 0)
    _set(_TRIM_THRESHOLD, 2**31 - 1)


def _set(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to tell it
        ctypes.CDLL(None).mallopt(parameter, value)
