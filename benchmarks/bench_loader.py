"""Measure how many training patches a second come from files, augmented, and on the fly.

    python benchmarks/bench_loader.py --volumes 64 --workers 2

Prints Markdown tables for benchmarks/README.md. Simulates the volumes into a temporary directory
and lets the training script's loaders make batches for nobody: in one process, and in worker
processes of one thread each. The second table compares changes of grey values item by item with
the same on whole batches, one thread. Nothing else should run.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from lightning_fabric import Fabric
from machine import describe_machine

from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset
from utils.data.augmentation import NOISE_SD, SCALE, SHIFT, AugmentedDataset
from utils.data.epochs import EpochDataset
from utils.simulation import VolumeConfig
from utils.storage import VolumeSet, write_simulated_file
from utils.training.loaders import build_loader
from utils.training.options import TrainingOptions

PATCH = 64


def write_file(path: Path, volumes: int) -> None:
    """Simulate volumes with default parameters into a file."""
    write_simulated_file(path, VolumeSet(VolumeConfig(), seed=1, num_samples=volumes))


def sources(path: Path, patches: int) -> dict[str, EpochDataset]:
    """Return the data sets to compare, by name."""
    files = SegmentationFake3DDataset(path, patch_size=PATCH, patches_per_epoch=patches)
    flying = {
        level: OnTheFly3DDataset(
            VolumeConfig(), patch_size=PATCH, patches_per_epoch=patches, augment=level
        )
        for level in ("none", "flips", "full")
    }
    return {
        "files": files,
        "files, --augment flips": AugmentedDataset(files, "flips"),
        "files, --augment full": AugmentedDataset(files, "full"),
        "--on_the_fly": flying["none"],
        "--on_the_fly --augment flips": flying["flips"],
        "--on_the_fly --augment full": flying["full"],
    }


def loader_rate(data: EpochDataset, batch_size: int, workers: int, rounds: int) -> float:
    """Return patches a second: the best of some epochs after one that starts the workers."""
    fabric = Fabric(accelerator="cpu", devices=1)
    options = TrainingOptions(batch_size=batch_size, num_workers=workers)
    loader = build_loader(fabric, data, options, training=True)
    best = 0.0
    for epoch in range(rounds + 1):
        data.set_epoch(epoch)
        started = time.perf_counter()
        patches = sum(len(images) for images, _ in loader)
        if epoch:
            best = max(best, patches / (time.perf_counter() - started))
    return best


def seconds(action: Callable[[], object], rounds: int = 5) -> float:
    """Return the seconds of one call, the best of some."""
    action()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def batched_against_items(batch_size: int) -> list[str]:
    """Return rows: milliseconds per patch of noise, and of scale and shift, both ways."""
    torch.set_num_threads(1)
    items = [torch.rand(1, PATCH, PATCH, PATCH) for _ in range(batch_size)]
    batch = torch.stack(items)
    state = np.random.RandomState(0)
    factors = torch.rand(batch_size, 1, 1, 1, 1)

    def noise(images: torch.Tensor) -> torch.Tensor:
        return images + torch.from_numpy(state.normal(0, NOISE_SD, images.shape)).float()

    def grey_values(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return (images * (1 + SCALE * factor) + SHIFT * factor).clamp_(0, 1)

    pairs = {
        "noise": (lambda: [noise(item) for item in items], lambda: noise(batch)),
        "scale, shift and clipping": (
            lambda: [grey_values(item, factors[i, 0]) for i, item in enumerate(items)],
            lambda: grey_values(batch, factors),
        ),
    }
    lines = [f"| ms per patch | one by one | a batch of {batch_size} |", "| --- | ---: | ---: |"]
    for name, (one_by_one, at_once) in pairs.items():
        times = [1e3 * seconds(action) / batch_size for action in (one_by_one, at_once)]
        lines.append(f"| {name} | {times[0]:.2f} | {times[1]:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--volumes", type=int, default=64, help="volumes of 128^3 in the file")
    parser.add_argument("--patches", type=int, default=512, help="patches in an epoch")
    parser.add_argument("--batch_size", type=int, default=8, help="patches in a batch")
    parser.add_argument("--workers", type=int, default=cores, help="loader processes")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of which the best counts")
    args = parser.parse_args()
    print(describe_machine())
    print(f"`python {shlex.join(sys.argv)}`; patches of {PATCH}^3, image and mask\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.h5"
        write_file(path, args.volumes)
        path.read_bytes()
        print(f"| patches a second | one process | {args.workers} workers |")
        print("| --- | ---: | ---: |")
        for name, data in sources(path, args.patches).items():
            rates = [
                loader_rate(data, args.batch_size, workers, args.rounds)
                for workers in (0, args.workers)
            ]
            print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} |", flush=True)
    print("", *batched_against_items(args.batch_size), sep="\n")


if __name__ == "__main__":
    main()
