"""Measure training steps: this loop beside a plain float32 loop and the networks of its peers.

    pip install --no-deps -r requirements-bench.txt     # nnU-Net's network; not needed otherwise
    python benchmarks/bench_training.py --compile

Prints Markdown tables for benchmarks/README.md. For each size (depth, channels, batch and stem
stride) all cases take their steps in turn, round after round, on the same patches in memory, after
a first round that does not count. "this loop" is utils/training/loop.py with the precision that it
chooses for this machine and channels last; "plain float32" is the loop of a tutorial, contiguous;
loss (Dice) and optimiser (Adam) are the same everywhere. Peers run in both. Then the loop runs from
its loader, and the loader alone. What the processor can do at most is measured first, as products
of large matrices; operations are those of convolutions, counted by torch.utils.flop_counter.
Nothing else should run.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sizes import SIZE_FORMAT, Size

from utils.flags import FlagParser

if TYPE_CHECKING:
    from steps import Batch, OurLoop, PlainLoop
    from torch import nn

    from utils.devices import Compute
    from utils.training.options import TrainingOptions

BASIC_WIDTHS = (1, 2, 4, 4, 4, 1)
"""Of BasicUNet in units of the first: it always has five levels, so it gets narrower ones, with
which it has as many parameters as the others at depth 4 (1.4 % fewer)."""


@dataclass(frozen=True)
class Case:
    """A network in a loop, and the rates that it reached."""

    network: str
    loop: str
    parameters: int
    runner: OurLoop | PlainLoop
    rates: list[float]
    """Samples a second, one a round."""
    operations: float
    """Multiplications and additions in the convolutions of a sample, forward and backward."""

    @property
    def rate(self) -> float:
        """Samples a second, the median."""
        return statistics.median(self.rates)


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__.splitlines()[0])
    # fmt: off
    add = parser.add_argument
    add("--sizes", nargs="+", type=Size.read, metavar=SIZE_FORMAT,
        default=[Size(4, 32, 2), Size(4, 4, 8), Size(4, 16, 8, 2)],
        help="a table for each; peers are left out with a stem stride or stacks, which they lack")
    add("--patch_size", type=int, default=64, help="edge of the patches, in voxels")
    add("--repeats", type=int, default=3, help="rounds that count")
    add("--steps", type=int, default=2, help="steps of the loop with its loader in each round")
    add("--compile", action="store_true", help="another row: this loop, compiled")
    add("--no_peers", action="store_true", help="leave the networks of others out")
    add("--num_workers", type=int, default=1, help="loader processes")
    add("--loader_patches", type=int, default=256, help="patches of the loader alone")
    add("--matrix", type=int, default=4096, help="edge of the matrices of the ceiling")
    add("--data", type=Path, default=None, help="data file; by default one is made for the run")
    add("--volumes", type=int, default=16, help="volumes in the file that is made")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(arguments)

    import torch
    from machine import describe_machine, peak_memory_mib
    from steps import training_file

    from utils.devices import choose_compute

    compute = choose_compute("cpu", "auto")
    ceilings = " and ".join(
        f"{product_rate(kind, flags.matrix) / 1e12:.2f} in {kind}"
        for kind in ("float32", "bfloat16")
    )
    tables, loaders = [], []
    with training_file(flags.data, flags.volumes) as path:
        for size in flags.sizes:
            table, row = measure(size, path, compute, flags)
            tables += [*table, ""]
            loaders.append(row)
    print(f"{describe_machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"`python {shlex.join([*sys.argv[:1], *(arguments or sys.argv[1:])])}`: patches of ", end=""
    )
    print(f"{flags.patch_size}^3, {flags.repeats} rounds, medians; this loop takes ", end="")
    print(f"{compute.precision} ({compute.reason}); peak memory {peak_memory_mib():.0f} MiB\n")
    print(f"Products of {flags.matrix}^2 matrices reach {ceilings} TFLOP/s.\n")
    print("\n".join(tables))
    print("| samples per second | loop, patches in memory | loop with its loader | loader alone |")
    print("| --- | ---: | ---: | ---: |")
    print("\n".join(loaders))
    return 0


def product_rate(kind: str, edge: int) -> float:
    """Return the operations a second in products of large matrices, the best of 9 or of 10 s."""
    import torch

    matrix = torch.randn(edge, edge).to(getattr(torch, kind))
    seconds: list[float] = []
    while len(seconds) < 9 and sum(seconds) < 10:
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return 2 * edge**3 / min(seconds)


def measure(
    size: Size, path: Path, compute: Compute, flags: argparse.Namespace
) -> tuple[list[str], str]:
    """Return the table of one size, and its row in the table of loaders."""
    from steps import open_loader, time_loader

    from utils.training.options import TrainingOptions

    options = TrainingOptions(batch_size=size.batch, num_workers=flags.num_workers)
    cases = build_cases(size, compute, options, flags)
    ours = next(case.runner for case in cases if case.loop == "this loop")
    patches = size.batch * flags.steps
    loader = open_loader(ours.fabric, path, flags.patch_size, options, patches)
    batches = list(loader)
    fed: list[float] = []
    for count in range(flags.repeats + 1):
        take_turns(cases, batches, size.batch, count > 0)
        rate = patches / ours.train(loader)
        fed += [rate] if count else []
    alone = open_loader(ours.fabric, path, flags.patch_size, options, flags.loader_patches)
    list(alone)  # starts the processes and opens the file
    free = statistics.median(time_loader(alone, "cpu") for _ in range(flags.repeats))
    memory = next(case.rate for case in cases if case.loop == "this loop")
    row = f"| {size} | {memory:.2f} | {statistics.median(fed):.2f} | {free:.0f} |"
    return as_table(size, cases), row


def take_turns(cases: Sequence[Case], batches: Sequence[Batch], samples: int, counts: bool) -> None:
    """Let each case take one step, on a batch that differs from round to round."""
    source = cycle(batches)
    for case in cases:
        seconds = case.runner.train(list(islice(source, 1)))
        if counts:
            case.rates.append(samples / seconds)
        show(f"{case.network}, {case.loop}: {seconds:.2f} s")


def build_cases(
    size: Size, compute: Compute, options: TrainingOptions, flags: argparse.Namespace
) -> list[Case]:
    """Return all networks in all loops, ready to train."""
    import torch
    from counting import count_work
    from steps import OurLoop, PlainLoop

    from models import build_model, count_parameters

    cases = []
    config = size.model_config()
    networks: dict[str, Callable[[], nn.Module]] = {
        "this project's U-Net": lambda: build_model(config)
    }
    if size.plain and not flags.no_peers:
        networks |= peer_networks(size)
    for name, build in networks.items():
        loops: dict[str, Any] = {
            "plain float32": lambda model: PlainLoop.around(model, "cpu", options),
            "this loop": lambda model: OurLoop.around(
                model, compute, options, False, flags.patch_size
            ),
        }
        if flags.compile and not cases:
            loops["this loop, compiled"] = lambda model: OurLoop.around(
                model, compute, options, True, flags.patch_size
            )
        spare = OurLoop.around(build(), compute, options, False, flags.patch_size)
        patches = torch.rand(size.batch, 1, *(flags.patch_size,) * 3)
        work = count_work(lambda spare=spare, x=patches: spare.train([(x, x.round())]))
        for loop, around in loops.items():
            model = build()
            parameters, share = count_parameters(model), work.operations / size.batch
            cases.append(Case(name, loop, parameters, around(model), [], share))
    return cases


def peer_networks(size: Size) -> dict[str, Callable[[], nn.Module]]:
    """Return what builds the U-Nets of MONAI and nnU-Net, with as many levels and channels.

    Their own choices stay: instance normalisation, leaky ReLU, strided convolutions for poolings
    (DynUNet, PlainConvUNet), bias. Deep supervision is off.
    """
    from monai.networks.nets import BasicUNet, DynUNet
    from torch import nn

    depth, widths = size.depth, [size.channels * 2**level for level in range(size.depth)]
    strides = [1] + [2] * (depth - 1)
    networks: dict[str, Callable[[], nn.Module]] = {
        "MONAI DynUNet": lambda: DynUNet(
            3, 1, 1, [3] * depth, strides, strides[1:], filters=widths
        ),
        "MONAI BasicUNet (5 levels)": lambda: BasicUNet(
            3, 1, 1, features=[size.channels * width for width in BASIC_WIDTHS]
        ),
    }
    if find_spec("dynamic_network_architectures") is None:
        show("nnU-Net's PlainConvUNet is left out: pip install --no-deps -r requirements-bench.txt")
        return networks
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    networks["nnU-Net PlainConvUNet"] = lambda: PlainConvUNet(
        1, depth, widths, nn.Conv3d, 3, strides, 2, 1, 2, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    return networks


def as_table(size: Size, cases: Sequence[Case]) -> list[str]:
    """Return the Markdown table of one size, each rate beside the plain loop of our network."""
    plain = cases[0].rate
    lines = [
        f"{str(size).capitalize()}:",
        "",
        "| network | loop | parameters | samples per second | lowest to highest | times plain "
        "| TFLOP/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in cases:
        lines.append(
            f"| {case.network} | {case.loop} | {case.parameters:,} | {case.rate:.2f} | "
            f"{min(case.rates):.2f} to {max(case.rates):.2f} | {case.rate / plain:.2f} | "
            f"{case.rate * case.operations / 1e12:.2f} |"
        )
    return lines


def show(text: str) -> None:
    """Tell a person at the terminal how it goes."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
