"""Measure training on a GPU: samples a second, memory, and the share of what the card can do.

    python benchmarks/bench_gpu.py

One call prints a Markdown table for benchmarks/README.md. First the ceilings are measured: copying
within the device's memory, and multiplying large matrices in each precision. Then each network
trains in this project's loop in float32, TF32, bf16 and compiled bf16, on patches that lie on the
device and once more from the loader. Operations are counted by torch.utils.flop_counter, traffic as
if each operation of the eager step read and wrote its tensors once: compiled steps move less, so
their share of the copying rate can exceed what really flowed. --device cpu tries the script out.
Nothing else should run.
"""

from __future__ import annotations

import argparse
import copy
import gc
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sizes import SIZE_FORMAT, Size

from utils.flags import FlagParser

if TYPE_CHECKING:
    from counting import Work
    from steps import Batch, OurLoop
    from torch import nn

    from utils.devices import Compute
    from utils.training.options import TrainingOptions

MODES = {
    # name: Fabric's precision, TF32, compiled, which matrix product is its ceiling
    "float32": ("32-true", False, False, "float32"),
    "TF32": ("32-true", True, False, "TF32"),
    "bf16": ("bf16-mixed", True, False, "bf16"),
    "bf16, compiled": ("bf16-mixed", True, True, "bf16"),
}


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, measured."""

    copy: float
    """Bytes read and written a second."""
    products: dict[str, float]
    """Operations a second in products of large matrices, by precision."""


@dataclass(frozen=True)
class Speed:
    """What a network reached in one mode."""

    samples: float
    """A second, from patches on the device."""
    fed: float
    """A second, from the loader."""
    memory: float | None
    """Most bytes that tensors took on a GPU."""


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__.splitlines()[0])
    # fmt: off
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script out")
    add("--sizes", nargs="+", type=Size.read, metavar=SIZE_FORMAT,
        default=[Size(4, 4, 32), Size(4, 8, 32), Size(4, 32, 8), Size(4, 32, 32),
                 Size(4, 16, 32, 2), Size(4, 32, 64, 2), Size(4, 8, 16, 1, 2)],
        help="networks and batches")
    add("--modes", nargs="+", choices=tuple(MODES), default=list(MODES), help="precisions")
    add("--patch_size", type=int, default=64, help="edge of the patches, in voxels")
    add("--seconds", type=float, default=3.0, help="of each measurement, three times")
    add("--copy_mib", type=int, default=1024, help="MiB that are copied")
    add("--matrix", type=int, default=8192, help="edge of the matrices")
    add("--num_workers", type=int, default=16, help="loader processes, at most one a core")
    add("--data", type=Path, default=None, help="data file; by default one is made for the run")
    add("--volumes", type=int, default=64, help="volumes in the file that is made")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(arguments)

    import torch

    if flags.device == "cuda" and not torch.cuda.is_available():
        print("bench_gpu.py: torch finds no CUDA device here; nothing measured", file=sys.stderr)
        return 2

    from machine import describe_machine
    from steps import training_file

    ceilings = measure_ceilings(flags)
    with training_file(flags.data, flags.volumes) as path:
        rows = [row for size in flags.sizes for row in measure(size, path, ceilings, flags)]
    given = sys.argv[1:] if arguments is None else list(arguments)
    print(f"{describe_machine()}; {describe_device(flags.device)}")
    print(
        f"`python benchmarks/bench_gpu.py {shlex.join(given)}`: patches of {flags.patch_size}^3\n"
    )
    print("| ceiling | measured |\n| --- | ---: |")
    print(f"| copying, read and written | {ceilings.copy / 1e9:.0f} GB/s |")
    for name, rate in ceilings.products.items():
        print(f"| products of {flags.matrix}^2 matrices, {name} | {rate / 1e12:.2f} TFLOP/s |")
    columns = "network, parameters, mode, samples/s, from the loader, memory, TFLOP/s, share, GB/s"
    names = [*columns.split(", "), "share"]
    print("\n| " + " | ".join(names) + " |\n| --- | ---: | --- |" + " ---: |" * (len(names) - 3))
    print("\n".join(rows))
    return 0


def describe_device(device: str) -> str:
    """Return the device's name and the versions of what drives it."""
    import torch

    versions = f"torch {torch.__version__}"
    if device == "cpu":
        return f"{versions}, on the CPU: the script was tried out"
    name = torch.cuda.get_device_name()
    return f"{name}, {versions}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def measure_ceilings(flags: argparse.Namespace) -> Ceilings:
    """Measure copying and the products of square matrices."""
    import torch

    from utils.devices import tune_gpu

    copying = measure_copying(flags)
    products = {}
    for name in flags.modes:
        compute, ceiling = compute_of(name, flags.device), MODES[name][3]
        if ceiling in products:
            continue
        tune_gpu(compute)
        kind = torch.bfloat16 if ceiling == "bf16" else torch.float32
        a = torch.randn(flags.matrix, flags.matrix, device=flags.device, dtype=kind)
        seconds = time_call(lambda a=a: a @ a, flags)
        products[ceiling] = 2 * flags.matrix**3 / seconds
        show(f"{ceiling} products: {products[ceiling] / 1e12:.2f} TFLOP/s")
    return Ceilings(2 * flags.copy_mib * 2**20 / copying, products)


def measure_copying(flags: argparse.Namespace) -> float:
    """Return the seconds in which the device copies ``--copy_mib`` of its memory."""
    import torch

    source = torch.ones(flags.copy_mib * 2**20, dtype=torch.uint8, device=flags.device)
    target = torch.empty_like(source)
    return time_call(lambda: target.copy_(source), flags)


def time_call(action: Callable[[], object], flags: argparse.Namespace) -> float:
    """Return the seconds of one call, the median of three runs of about ``--seconds``."""
    from steps import wait_for

    def run(count: int) -> float:
        wait_for(flags.device)
        started = time.perf_counter()
        for _ in range(count):
            action()
        wait_for(flags.device)
        return (time.perf_counter() - started) / count

    run(2)
    count = repetitions(run(2), flags)
    return statistics.median(run(count) for _ in range(3))


def repetitions(seconds: float, flags: argparse.Namespace) -> int:
    """Return how often something that takes ``seconds`` fits into a measurement."""
    return max(1, min(10_000, int(flags.seconds / max(seconds, 1e-9))))


def compute_of(mode: str, device: str) -> Compute:
    """Return device and precision of a mode."""
    from utils.devices import Compute

    precision, tf32, _, _ = MODES[mode]
    return Compute(device, precision, "as the benchmark is told", tf32)


def measure(size: Size, path: Path, ceilings: Ceilings, flags: argparse.Namespace) -> list[str]:
    """Return the rows of one network, a row a mode; one that fails says why."""
    import torch
    from steps import OurLoop

    from models import build_model, count_parameters
    from utils.errors import UserError
    from utils.training.options import TrainingOptions

    options = TrainingOptions(batch_size=size.batch, num_workers=flags.num_workers)
    model_config = size.model_config()
    rows, works = [], {}
    for mode in flags.modes:
        show(f"{size}, {mode}")
        _, _, compiled, ceiling = MODES[mode]
        compute = compute_of(mode, flags.device)
        model = build_model(model_config)
        start = f"| {size} | {count_parameters(model):,} | {mode} | "
        try:
            if ceiling not in works:
                works[ceiling] = measure_work(model, compute, options, flags)
                free_memory()
            loop = OurLoop.around(model, compute, options, compiled, flags.patch_size)
            speed = measure_speed(loop, path, options, flags)
            rows.append(start + as_cells(speed, works[ceiling], size.batch, ceilings, ceiling))
        except (torch.OutOfMemoryError, UserError) as error:
            rows.append(start + f"{' '.join(str(error).split())[:100]} |" + " |" * 6)
        loop = model = None
        free_memory(compiled)
    return rows


def free_memory(compiled: bool = False) -> None:
    """Give back what earlier networks took, so that the next one's memory is its own."""
    import torch

    if compiled:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_batch(batch: int, flags: argparse.Namespace) -> Batch:
    """Return noise and a mask of a tenth of the voxels on the device."""
    import torch

    shape = (batch, 1, *(flags.patch_size,) * 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator)
    masks = (torch.rand(shape, generator=generator) > 0.9).float()
    return images.to(flags.device), masks.to(flags.device)


def measure_work(
    model: nn.Module, compute: Compute, options: TrainingOptions, flags: argparse.Namespace
) -> Work:
    """Return what one eager step on a batch takes."""
    from counting import count_work
    from steps import OurLoop

    loop = OurLoop.around(copy.deepcopy(model), compute, options, False, flags.patch_size)
    batch = random_batch(options.batch_size, flags)
    return count_work(lambda: loop.train([batch]))


def measure_speed(
    loop: OurLoop, path: Path, options: TrainingOptions, flags: argparse.Namespace
) -> Speed:
    """Return how fast ``loop`` trains from the device's memory and from its loader."""
    import torch
    from steps import open_loader, wait_for

    batch = random_batch(options.batch_size, flags)
    loop.train([batch] * 3)  # cuDNN tries its kernels out
    if flags.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = repetitions(loop.train([batch] * 2) / 2, flags)
    seconds = statistics.median(timed(loop, [batch] * steps, flags) for _ in range(3))
    memory = torch.cuda.max_memory_allocated() if flags.device == "cuda" else None
    patches = options.batch_size * steps
    loader = open_loader(loop.fabric, path, flags.patch_size, options, patches)
    for _ in loader:  # starts the processes
        break
    wait_for(flags.device)
    fed = statistics.median(timed(loop, loader, flags) for _ in range(3))
    return Speed(patches / seconds, patches / fed, memory)


def timed(loop: OurLoop, batches: Iterable[Batch], flags: argparse.Namespace) -> float:
    """Return the seconds in which the device is done with a step on each batch."""
    from steps import wait_for

    started = time.perf_counter()
    loop.train(batches)
    wait_for(flags.device)
    return time.perf_counter() - started


def as_cells(speed: Speed, work: Work, batch: int, ceilings: Ceilings, ceiling: str) -> str:
    """Return the numbers of a row: rates, memory, and shares of both ceilings."""
    steps = speed.samples / batch
    operations, traffic = work.operations * steps, work.traffic * steps
    memory = "" if speed.memory is None else f"{speed.memory / 2**30:.1f} GiB"
    return (
        f"{speed.samples:.1f} | {speed.fed:.1f} | {memory} | {operations / 1e12:.2f} | "
        f"{operations / ceilings.products[ceiling]:.1%} | {traffic / 1e9:.0f} | "
        f"{traffic / ceilings.copy:.0%} |"
    )


def show(text: str) -> None:
    """Tell a person at the terminal how it goes."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
