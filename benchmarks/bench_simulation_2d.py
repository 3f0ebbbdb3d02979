"""Measure the 2D data sets: images a second on one core, with a file and without.

    python benchmarks/bench_simulation_2d.py --images 2000

Prints a Markdown table for benchmarks/README.md. Nothing else should be running.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine import describe_machine, peak_memory_mib

from utils.data import SegmentationFake2DDataset


def timed(count: int, path: Path | None) -> float:
    """Return the seconds to simulate ``count`` images, or to load them where there is a file."""
    start = time.perf_counter()
    SegmentationFake2DDataset(L=count, seed=0, h5path=path)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="images of 128 x 128")
    count = parser.parse_args().images
    timed(5, None)  # compiles, or loads what was compiled
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        rows = [
            ("simulated into memory", timed(count, None)),
            ("simulated into memory and a file", timed(count, path)),
            ("loaded from the file", timed(count, path)),
        ]
        size = path.stat().st_size / 2**20
    print(f"{describe_machine()}; one process, one thread\n")
    print(f"| {count:,} images of 128 x 128 | seconds | images per second | ms per image |")
    print("| --- | --- | --- | --- |")
    for name, seconds in rows:
        print(f"| {name} | {seconds:.2f} | {count / seconds:.0f} | {1e3 * seconds / count:.2f} |")
    print(f"\nThe file has {size:.0f} MiB; peak memory {peak_memory_mib():.0f} MiB.")


if __name__ == "__main__":
    main()
