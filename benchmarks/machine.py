"""What a benchmark's table says of the machine that it ran on."""

import os
import platform
import resource
from pathlib import Path


def describe_machine() -> str:
    """Return one line: processor, cores, memory, Python."""
    model, memory = platform.processor() or platform.machine(), "?"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
        kib = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f"{kib / 2**20:.0f} GiB"
    cores = len(os.sched_getaffinity(0))
    return f"Machine: {model}, {cores} cores, {memory}, Python {platform.python_version()}"


def peak_memory_mib() -> float:
    """Return this process's largest resident size so far in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
