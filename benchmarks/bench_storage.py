"""Measure the data file: random patches a second, whole volumes a second, encoding and writing.

    python benchmarks/bench_storage.py --volumes 64

Prints Markdown tables for benchmarks/README.md. Simulates the volumes into a temporary directory,
reads all of it once (a warm file), then times one process. The second table holds copies of the
same voxels in other chunk shapes and compressions, read by plain h5py. Nothing else should run.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py
import numpy as np
import torch
from machine import describe_machine, peak_memory_mib

from utils.data import SegmentationFake3DDataset
from utils.simulation import VolumeConfig, sample_rng, simulate_volume
from utils.storage import EncodedRow, VolumeFile, VolumeSet, encode_row, write_simulated_file

PATCH = 64
COPIES = (
    # edge of an image's chunk, its gzip level, edge of a mask's chunk, its gzip level
    (32, None, 32, 1),
    (32, None, 32, 3),
    (32, None, 32, 6),
    (16, None, 16, 3),
    (64, None, 64, 3),
    (32, 3, 32, 3),
    (64, 3, 64, 3),
)


def rate(action: Callable[[], object], count: int, rounds: int = 3) -> float:
    """Return calls a second, the best of some rounds."""
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            action()
        best = max(best, count / (time.perf_counter() - start))
    return best


def random_part(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, tuple[slice, ...]]:
    corner = [int(rng.integers(edge - PATCH + 1)) for edge in shape[1:]]
    return int(rng.integers(shape[0])), tuple(slice(a, a + PATCH) for a in corner)


def write_file(path: Path, volume_set: VolumeSet) -> list[tuple[str, str]]:
    """Simulate and write; return rows of the table."""
    marks: list[list[float]] = []

    def rows() -> Iterator[EncodedRow]:
        for index in range(volume_set.num_samples):
            marks.append([time.perf_counter()])
            volume = simulate_volume(volume_set.config, sample_rng(volume_set.seed, index))
            marks[-1].append(time.perf_counter())
            row = encode_row(volume)
            marks[-1].append(time.perf_counter())
            yield row
            marks[-1].append(time.perf_counter())

    write_simulated_file(path, volume_set, rows())
    finishing = time.perf_counter() - marks[-1][-1]
    simulating, encoding, writing = np.diff(marks[1:]).sum(axis=0)  # the first one compiles
    count = volume_set.num_samples - 1
    size = path.stat().st_size
    per_volume = size / volume_set.num_samples / 2**20
    return [
        ("file", f"{size / 1e9:.3f} GB, {per_volume:.2f} MiB a volume"),
        ("simulating, in a worker", f"{1e3 * simulating / count:.1f} ms a volume"),
        ("encoding, in a worker", f"{1e3 * encoding / count:.1f} ms a volume"),
        ("writing a row", f"{count / writing:.0f} rows/s, {1e3 * writing / count:.1f} ms a row"),
        ("closing, to the disk", f"{1e3 * finishing / volume_set.num_samples:.1f} ms a volume"),
    ]


def read_file(path: Path, count: int) -> list[tuple[str, str]]:
    """Read in all the ways that the project does; return rows of the table."""
    rng = np.random.default_rng(0)
    with VolumeFile(path) as file:
        shape = (len(file), *file.shape)

        def read_patch() -> None:
            index, part = random_part(rng, shape)
            file.read_image(index, part)
            file.read_mask(index, part)

        path.read_bytes()
        patches = rate(read_patch, count)
        volumes = rate(lambda: file.read_volume(int(rng.integers(len(file)))), max(4, count // 20))
    dataset = SegmentationFake3DDataset(path, patch_size=PATCH, patches_per_epoch=count)
    torch.set_num_threads(1)
    items = iter(range(10**9))
    chosen = rate(lambda: dataset[next(items) % len(dataset)], count)
    return [
        (f"random {PATCH}^3 patches, image and mask", f"{patches:.0f}/s"),
        ("items of the data set (chosen for foreground, normalised)", f"{chosen:.0f}/s"),
        ("whole volumes with all that is known", f"{volumes:.0f}/s"),
    ]


def copy_file(
    source: Path, target: Path, image: tuple[int, int | None], mask: tuple[int, int | None]
) -> None:
    """Copy image and mask into other chunks."""
    with h5py.File(source) as old, h5py.File(target, "w", libver=("v110", "v110")) as new:
        for name, (edge, level) in (("vol_data", image), ("vol_labels", mask)):
            data = old[name]
            options = {} if level is None else {"compression": "gzip", "compression_opts": level}
            copy = new.create_dataset(
                name, data.shape, data.dtype, chunks=(1, edge, edge, edge), **options
            )
            for index in range(len(data)):
                copy[index] = data[index]


def compare_chunks(path: Path, count: int) -> list[str]:
    lines = ["| image | mask | file | patches of both | of images | of masks |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    target = path.with_name("copy.h5")
    for image_edge, image_level, mask_edge, mask_level in COPIES:
        copy_file(path, target, (image_edge, image_level), (mask_edge, mask_level))
        target.read_bytes()
        with h5py.File(target) as file:
            rates = [patch_rate(file, names, count) for names in (("vol_data", "vol_labels"),)]
            rates += [patch_rate(file, (name,), count) for name in ("vol_data", "vol_labels")]
        image = f"{image_edge}^3" + (f" gzip {image_level}" if image_level else "")
        size = f"{target.stat().st_size / 1e9:.3f} GB"
        numbers = " | ".join(f"{value:.0f}/s" for value in rates)
        lines.append(f"| {image} | {mask_edge}^3 gzip {mask_level} | {size} | {numbers} |")
    target.unlink()
    return lines


def patch_rate(file: h5py.File, names: tuple[str, ...], count: int) -> float:
    rng = np.random.default_rng(0)
    shape = file["vol_data"].shape

    def read() -> None:
        index, part = random_part(rng, shape)
        for name in names:
            file[name][(index, *part)]

    return rate(read, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=64, help="volumes of 128^3 in the file")
    parser.add_argument("--patches", type=int, default=400, help="patches read in each round")
    args = parser.parse_args()
    volume_set = VolumeSet(VolumeConfig(), seed=1, num_samples=args.volumes)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.h5"
        rows = [*write_file(path, volume_set), *read_file(path, args.patches)]
        print(describe_machine())
        print(f"`python {shlex.join(sys.argv)}`, peak memory {peak_memory_mib():.0f} MiB\n")
        print("| what | one process |\n| --- | ---: |")
        print("\n".join(f"| {name} | {value} |" for name, value in rows), end="\n\n")
        print("\n".join(compare_chunks(path, args.patches)))


if __name__ == "__main__":
    main()
