"""Measure the simulation: ms per stage, volumes per second on one core and on all, peak memory.

    python benchmarks/bench_simulation.py --volumes 40
    python benchmarks/bench_simulation.py --volumes 60 --presets
    python benchmarks/bench_simulation.py --volumes 100 --beside ../another-checkout

Prints Markdown tables for benchmarks/README.md. Stages are timed by wrapping the functions that
``simulate_volume`` calls; the total is timed without wrappers. Nothing else should be running.

With ``--beside`` it prints the CPU time of a volume in this checkout and in another one instead:
each has a process of its own, and they take turns, so that a busy machine disturbs both alike.
With ``--presets`` it prints that of a volume of either preset, by turns in one process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from machine import describe_machine, peak_memory_mib

from utils.simulation import (
    VolumeConfig,
    fluorescence,
    geometry,
    imaging,
    preset,
    sample_rng,
    simulate_volume,
    volume,
)
from utils.simulation.volume import PRESETS, compile_kernels

STAGES = (
    (geometry, "draw_optic_lobe", "geometry, all tries"),
    (geometry, "draw_control_points", "neurite control points"),
    (volume, "paint_cones", "cone labels"),
    (fluorescence, "draw_clouds", "clouds drawn"),
    (fluorescence, "paint_clouds", "clouds painted"),
    (fluorescence, "paint_neurites", "neurites painted"),
    (imaging, "box_sum", "point spread"),
    (imaging, "background", "background blur"),
    (imaging, "compose", "percentile, composition"),
    (imaging, "shot_noise", "shot noise"),
    (imaging, "read_noise_sd", "read noise sd"),
    (imaging, "read_noise_and_contrast", "read noise, contrast"),
)


@contextmanager
def timed_stages():
    """Wrap the stages' functions and yield the seconds spent in each."""
    seconds = defaultdict(float)
    originals = [(module, name, getattr(module, name)) for module, name, _ in STAGES]

    def wrapped(function, name):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    try:
        for module, name, function in originals:
            setattr(module, name, wrapped(function, name))
        yield seconds
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def simulate(index: int) -> int:
    simulate_volume(VolumeConfig(), sample_rng(1, index))
    return index


TURNS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from utils.simulation import VolumeConfig, sample_rng, simulate_volume
for index in map(int, sys.stdin):
    start = time.process_time()
    simulate_volume(VolumeConfig(), sample_rng(1, index))
    print(time.process_time() - start, flush=True)
"""
"""A checkout's process: reads a volume's number per line, answers with its seconds of CPU time."""


def compare(other: Path, volumes: int) -> None:
    """Print the CPU time of a volume here and in the checkout ``other``, and their ratio."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    workers = [
        subprocess.Popen([sys.executable, "-c", TURNS, str(checkout)], **pipes)
        for checkout in (CHECKOUT, other.resolve(strict=True))
    ]
    seconds = []
    for turn in range(-1, volumes):  # the first turn compiles
        answers = {}
        for who in (0, 1) if turn % 2 else (1, 0):
            print(max(turn, 0), file=workers[who].stdin)
            answers[who] = float(workers[who].stdout.readline())
        seconds.append((answers[0], answers[1]))
    for worker in workers:
        worker.communicate()
    here, there = zip(*seconds[1:], strict=True)
    ratio = statistics.median(a / b for a, b in seconds[1:])
    print(describe_machine())
    print(f"\n{volumes} volumes of 128^3 in each checkout by turns; medians\n")
    print("| checkout | CPU ms a volume |\n| --- | --- |")
    print(f"| this one | {1e3 * statistics.median(here):.1f} |")
    print(f"| the other | {1e3 * statistics.median(there):.1f} |")
    print(f"| this one / the other, pair by pair | {ratio:.2f} |")


def compare_presets(volumes: int) -> None:
    """Print the CPU time of a volume of either preset, and their ratio."""
    compile_kernels(*map(preset, PRESETS))
    seconds = defaultdict(list)
    redraws = 0
    for index in range(volumes):
        for name in PRESETS:
            start = time.process_time()
            made = simulate_volume(preset(name), sample_rng(1, index))
            seconds[name].append(time.process_time() - start)
        redraws += made.parameters.redraws
    means = {name: statistics.mean(values) for name, values in seconds.items()}
    print(describe_machine())
    print(f"\n{volumes} volumes of 128^3 of either preset by turns; means; of wide "
          f"{redraws / volumes:.2f} were drawn and dropped for each kept\n")  # fmt: skip
    print("| preset | CPU ms a volume |\n| --- | --- |")
    for name, mean in means.items():
        print(f"| {name} | {1e3 * mean:.1f} |")
    print(f"| wide / reference | {means['wide'] / means['reference']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=40, help="volumes per measurement")
    parser.add_argument("--beside", type=Path, help="another checkout to compare with")
    parser.add_argument("--presets", action="store_true", help="compare both presets")
    args = parser.parse_args()
    if args.presets:
        compare_presets(args.volumes)
        return
    if args.beside is not None:
        compare(args.beside, args.volumes)
        return
    start = time.perf_counter()
    simulate(0)
    first = time.perf_counter() - start
    with timed_stages() as seconds:
        for index in range(args.volumes):
            simulate(index)
    start = time.perf_counter()
    for index in range(args.volumes):
        simulate(index)
    one = (time.perf_counter() - start) / args.volumes
    peak = peak_memory_mib()
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(simulate, range(2 * cores)))
        start = time.perf_counter()
        list(pool.map(simulate, range(args.volumes), chunksize=2))
        rate = args.volumes / (time.perf_counter() - start)
    print(describe_machine())
    print(f"\n{args.volumes} volumes of 128^3, default parameters; first call {first:.2f} s\n")
    print("| stage | ms |\n| --- | --- |")
    for _, name, label in STAGES:
        print(f"| {label} | {1e3 * seconds[name] / args.volumes:.1f} |")
    print(f"| the rest | {1e3 * (one - sum(seconds.values()) / args.volumes):.1f} |")
    print(f"| whole volume | {1e3 * one:.1f} |")
    print("\n| measure | value |\n| --- | --- |")
    print(f"| volumes per second, one core | {1 / one:.1f} |")
    print(f"| volumes per second, {cores} cores | {rate:.1f} |")
    print(f"| peak memory, one process | {peak:.0f} MiB |")


if __name__ == "__main__":
    main()
