"""What keeping freed memory does to a process, measured in its page faults."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource, sys
import numpy as np
from utils import freed_memory
getattr(freed_memory, sys.argv[1], int)()
def use():
    return np.ones(int(sys.argv[2]) << 20, np.uint8).sum()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, mebibytes: int) -> int:
    """Return the page faults of ten arrays, one after the other."""
    command = [sys.executable, "-c", FAULTS, how, str(mebibytes)]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is not told")
@pytest.mark.parametrize(("how", "mebibytes"), [("keep_freed_volumes", 16), ("keep_all_freed", 96)])
def test_arrays_take_the_pages_of_those_before(how: str, mebibytes: int) -> None:
    assert faults(how, mebibytes) < 100 < faults("nothing", 96)
