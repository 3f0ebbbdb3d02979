"""How a training computes: its precision, whether to the same bits each time, compiled or not.

Steps are timed on a CPU, and a run that goes on keeps its precision. Data are drawn from (seed,
epoch, index) in any case, and the weights from the seed; what is left are kernels that add in an
order of their own, and the number of threads among which sums are cut.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from utils.devices import Compute, choose_compute, memory_format, time_step
from utils.errors import UserError
from utils.replacing import read_json
from utils.training.options import TrainingOptions
from utils.training.speed_up_on_cpu import speed_up_on_cpu

TIMED_BATCH = 4  # most patches of a step that is timed: the ratio is that of larger batches, sooner


def choose_training_compute(
    options: TrainingOptions,
    build_network: Callable[[], nn.Module],
    patch_shape: Sequence[int],
    processes: int = 1,
    resumed: Path | None = None,
) -> Compute:
    """Return the device and precision that ``options`` ask for.

    On a CPU ``auto`` times steps of ``build_network()`` on patches of ``patch_shape``, (*space);
    it is float32 with ``deterministic``, and for several ``processes``, which could measure
    differently. A run ``resumed`` from a log directory keeps its precision on the same device.
    """
    device = choose_compute(options.device, "32").device
    if options.precision == "auto" and resumed is not None:
        before = read_json(resumed / "config.json")["compute"]
        if before["device"] == device:
            return Compute(device, before["precision"], "auto: as before", before["tf32"])
    if options.precision == "auto" and device == "cpu" and (options.deterministic or processes > 1):
        why = "--deterministic" if options.deterministic else "several processes"
        return Compute(device, "32-true", f"auto: {why}")
    shape = (max(2, min(options.batch_size, TIMED_BATCH)), 1, *patch_shape)

    def step_seconds(precision: str) -> float:
        model = build_network().to(memory_format=memory_format(len(shape))).train()
        return time_step(speed_up_on_cpu(model), shape, precision)

    return choose_compute(device, options.precision, step_seconds)


def be_deterministic(directory: Path) -> None:
    """From now on let torch use deterministic kernels alone, on the threads that it has.

    A run in ``directory`` goes on with as many threads as it had. An operation without such a
    kernel raises RuntimeError; 3D max pooling on CUDA is one. Call this before anything runs on
    CUDA.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    config = directory / "config.json"
    if config.exists():
        torch.set_num_threads(read_json(config)["machine"]["threads"])


@dataclass(frozen=True)
class Compiling:
    """Whether the network is compiled, and why."""

    on: bool
    required: bool  # whether a failure ends the run instead of going on without
    reason: str


def choose_compiling(options: TrainingOptions, device: str) -> Compiling:
    """Turn ``--compile auto|on|off`` into what this run shall do; UserError without a compiler.

    ``auto`` is on with CUDA, but where no compiler is found, and with ``deterministic``. On a CPU
    it is off: the step as it is is as fast or faster. Measured on two cores (Zen 5, bfloat16, depth
    4): 4 channels 26.3 patches a second, compiled 17.4; 8 channels 14.7 and 11.9; 32 channels 2.05
    and 2.10; 16 channels with ``stem_stride`` 2 36 and 38. Compiling takes about a minute.
    """
    compilers = ("CXX", "g++", "clang++") if device == "cpu" else ("CC", "gcc", "clang", "cc")
    found = any(shutil.which(os.environ.get(name, name)) for name in compilers)
    asked = options.compile == "on"
    if asked and not found:
        raise UserError(f"--compile on: found none of the compilers {', '.join(compilers)}")
    if options.compile != "auto":
        return Compiling(asked, asked, f"--compile {options.compile}")
    if options.deterministic:
        return Compiling(False, False, "auto: --deterministic")
    if device == "cpu":
        return Compiling(False, False, "auto: on a CPU it does not pay")
    return Compiling(found, False, f"auto: {'it pays here' if found else 'no compiler is found'}")


def compile_network(model: nn.Module, compiling: Compiling) -> None:
    """Let the first step of ``model`` in training compile it, in place: its names stay.

    A smaller last batch is compiled once more. Where compiling fails, that first step raises
    RuntimeError if it is required; else torch logs why, and runs the network as it is.
    """
    if compiling.on:
        torch._dynamo.config.suppress_errors = not compiling.required
        model.compile(dynamic=False)
