"""Time the whole of ./gen_data.sh and measure its memory and disk, as a table.

    python benchmarks/bench_generation.py --directory FOLDER_WITH_10_GB

Memory is the proportional set size of all processes together (pages that processes share count
once), sampled twice a second; Linux only. Nothing else should be running.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and all processes below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += descendants(int(child))
    return found


def proportional_set_size(pid: int) -> int:
    """Return the bytes of a process's pages, shared ones divided by their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0


def memory_of_all(pid: int) -> int:
    total = 0
    try:
        for process in descendants(pid):
            total += proportional_set_size(process)
    except (FileNotFoundError, ProcessLookupError):
        return 0  # a process ended meanwhile: the next sample counts
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", required=True, help="an empty folder for the five files")
    args = parser.parse_args()
    directory = Path(args.directory)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        print(f"bench_generation.py: {directory} is not empty", file=sys.stderr)
        return 2
    start = time.perf_counter()
    command = [ROOT / "gen_data.sh", "--directory", directory]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_all(process.pid))
        time.sleep(0.5)
    seconds = time.perf_counter() - start
    disk = sum(path.stat().st_size for path in directory.iterdir())
    print(describe_machine())
    print("\n| ./gen_data.sh, 2,112 volumes of 128^3 | measured |\n| --- | --- |")
    print(f"| time | {seconds / 60:.1f} min ({2112 / seconds:.1f} volumes/s) |")
    print(f"| memory, all processes together | {peak / 1e9:.2f} GB |")
    print(f"| disk | {disk / 1e9:.2f} GB |")
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main())
