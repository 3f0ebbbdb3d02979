"""Which devices, precision and memory format to train with, from what this machine is fast at.

Batches reach a GPU from pinned memory without waiting: the loader pins, and Fabric's wrapper of it
copies with ``non_blocking`` to anything but a CPU.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy

from utils.flags import FlagError
from utils.freed_memory import keep_all_freed
from utils.training.options import TrainingOptions
from utils.training.processes import Processes, is_started, plan_processes, start_others
from utils.training.watch import watch, watched_start

ALONE = Processes()
"""One process, one device."""

FAST_BF16 = ("avx512_bf16", "amx_bf16")
"""CPU instructions with which bfloat16 beats float32.

Measured on two cores of an AMD EPYC (Zen 5, avx512_bf16, no AMX), one training step of a depth 4
U-Net on 64^3 in channels-last order: 4 channels, batch 8: 0.47 s in float32 and 0.30 s in bfloat16;
8 channels, batch 4: 0.42 and 0.26 s; 16 channels, batch 4: 0.98 and 0.60 s. In contiguous order
float32 takes 1.01, 0.72 and 1.29 s, so channels come last in either precision.
"""


@dataclass(frozen=True)
class Compute:
    """Where and how the network is evaluated; losses and metrics are float32 in any case."""

    device: str
    """``cpu`` or ``cuda``."""
    precision: str
    """Fabric's word: ``32-true`` or ``bf16-mixed``."""
    reason: str
    """Why this precision."""
    tf32: bool = False
    """Whether what stays float32 on a GPU may be multiplied in TF32 (10 bits of mantissa)."""

    def describe(self, processes: int) -> str:
        """Return a line for the log."""
        tf32 = ", TF32 for the rest" if self.tf32 else ""
        return (
            f"{self.device}, {self.precision} ({self.reason}){tf32}, {torch.get_num_threads()} "
            f"threads, {processes} loader processes"
        )


def choose_compute(device: str, precision: str) -> Compute:
    """Turn ``auto|cpu|cuda`` and ``auto|32|bf16`` into what this machine shall do.

    Raises ValueError where CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tf32 = device == "cuda" and precision != "32"
    if precision != "auto":
        chosen = {"32": "32-true", "bf16": "bf16-mixed"}[precision]
        return Compute(device, chosen, f"--precision {precision}", tf32)
    if device == "cuda":
        fast = ["bfloat16 units"] if torch.cuda.is_bf16_supported(False) else []
    else:
        abilities = torch.cpu.get_capabilities()
        fast = [name for name in FAST_BF16 if abilities.get(name)]
    if fast:
        return Compute(device, "bf16-mixed", f"auto: the {device} has {', '.join(fast)}", tf32)
    return Compute(device, "32-true", f"auto: the {device} has no fast bfloat16", tf32)


def choose_processes(options: TrainingOptions, device: str) -> Processes:
    """Return the processes of a training, a device each; see :func:`plan_processes`.

    ``auto`` takes every GPU of this machine, and one process on a CPU. Raises FlagError for more
    GPUs than there are, and for more devices than a batch has patches.
    """
    found = torch.cuda.device_count() if device == "cuda" else 1
    planned = plan_processes(options.devices, options.num_nodes, found)
    if device == "cuda" and planned.devices > found:
        raise FlagError(f"--devices {planned.devices}: torch finds {found} CUDA devices here")
    if options.batch_size < planned.total:
        raise FlagError(
            f"--batch_size {options.batch_size}: fewer patches than the {planned.total} devices "
            "that share a batch; raise it, or lower --devices"
        )
    return planned


def make_fabric(
    compute: Compute,
    seed: int,
    planned: Processes = ALONE,
    command: Sequence[str] = (),
    *,
    deterministic: bool = False,
) -> Fabric:
    """Return a launched Fabric; seed torch, numpy, Python and loader workers.

    With several processes (DDP) all of them have met when this returns, started by torchrun, srun
    or here, with ``command``: the path and the arguments of the running script.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the script's log says it all
    tune_gpu(compute, deterministic)
    if compute.device == "cpu":
        keep_all_freed()
    several = planned.total > 1
    children = start_others(command, planned) if several and not is_started() else []
    fabric = Fabric(
        accelerator=compute.device,
        devices=planned.devices,
        num_nodes=planned.nodes,
        precision=compute.precision,
        strategy=_sharing_strategy() if several else "auto",
        plugins=None if planned.launcher else LightningEnvironment(),
    )
    with watched_start(children):
        fabric.launch()
        watch(fabric, children)
    fabric.seed_everything(seed, workers=True, verbose=False)
    return fabric


def _sharing_strategy() -> DDPStrategy:
    """Return DDP that leaves buffers to each rank; ranks.average_buffers averages them an epoch."""
    # Kernels of one voxel have several orders of axes in memory that are the same one.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DDPStrategy(forward_sync_buffers=False)


def tune_gpu(compute: Compute, deterministic: bool = False) -> None:
    """Set how CUDA multiplies float32, and that cuDNN tries out its kernels; nothing on a CPU.

    ``--precision 32`` means all 23 bits of mantissa, which cuDNN's own default would cut to 10
    (TF32) on a GPU that has it. The settings of one kind: torch 2.13 refuses to read the older
    ones (``get_float32_matmul_precision``, as torch.compile does) once a newer one
    (``backends.cuda.matmul.fp32_precision``) has been set. Tested for what it sets, not on a GPU.
    """
    if compute.device != "cuda":
        return
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = compute.tf32
    torch.backends.cudnn.benchmark = not deterministic


def loader_processes(asked: int, neighbours: int = 1) -> int:
    """Return ``asked``, at most one a core of those that this process may use.

    ``neighbours`` training processes share the cores; each keeps one loader process at least.
    """
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(asked, max(1, len(usable) // neighbours))


def memory_format(ndim: int) -> torch.memory_format:
    """Return the channels-last order of a batch with ``ndim`` axes, contiguous if there is none."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(ndim, torch.contiguous_format)
