"""How exactly a training computes: its precision, and whether to the same bits each time.

Steps are timed on a CPU, and a run that goes on keeps its precision. Data are drawn from (seed,
epoch, index) in any case, and the weights from the seed; what is left are kernels that add in an
order of their own, and the number of threads among which sums are cut.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from utils.devices import Compute, choose_compute, memory_format, time_step
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
        before = json.loads((resumed / "config.json").read_text())["compute"]
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


def be_deterministic(threads: int) -> None:
    """From now on let torch use deterministic kernels alone, on ``threads`` threads.

    An operation that has none raises RuntimeError; 3D max pooling on CUDA is one. Call this before
    anything runs on CUDA.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)


def recorded_threads(directory: Path) -> int:
    """Return the threads of the run in ``directory``, or else what torch would take."""
    try:
        return json.loads((directory / "config.json").read_text())["machine"]["threads"]
    except (FileNotFoundError, KeyError):
        return torch.get_num_threads()
