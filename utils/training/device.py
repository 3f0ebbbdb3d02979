"""Which device, precision and memory format to train with, from what this machine is fast at."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

FAST_BF16 = ("avx512_bf16", "amx_bf16")
"""CPU instructions with which bfloat16 beats float32.

Measured on two cores of an AMD EPYC (Zen 5, avx512_bf16, no AMX), one training step of a depth 4
U-Net on 64^3 in channels-last order: 4 channels, batch 8: 1.17 s in float32 and 0.73 s in bfloat16;
8 channels, batch 4: 0.90 and 0.48 s; 16 channels, batch 4: 2.11 and 0.98 s. In contiguous order
float32 takes 2.71, 1.58 and 3.71 s, so channels come last in either precision.
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

    def describe(self, processes: int) -> str:
        """Return a line for the log."""
        return (
            f"{self.device}, {self.precision} ({self.reason}), {torch.get_num_threads()} threads, "
            f"{processes} loader processes"
        )


def choose_compute(device: str, precision: str) -> Compute:
    """Turn ``auto|cpu|cuda`` and ``auto|32|bf16`` into what this machine shall do.

    Raises ValueError where CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision != "auto":
        chosen = {"32": "32-true", "bf16": "bf16-mixed"}[precision]
        return Compute(device, chosen, f"--precision {precision}")
    if device == "cuda":
        fast = ["bfloat16 units"] if torch.cuda.is_bf16_supported(False) else []
    else:
        abilities = torch.cpu.get_capabilities()
        fast = [name for name in FAST_BF16 if abilities.get(name)]
    if fast:
        return Compute(device, "bf16-mixed", f"auto: the {device} has {', '.join(fast)}")
    return Compute(device, "32-true", f"auto: the {device} has no fast bfloat16")


def make_fabric(compute: Compute, seed: int) -> Fabric:
    """Return a launched single-device Fabric and seed torch, numpy, Python and loader workers."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the script's log says it all
    fabric = Fabric(accelerator=compute.device, devices=1, precision=compute.precision)
    fabric.launch()
    fabric.seed_everything(seed, workers=True, verbose=False)
    return fabric


def loader_processes(asked: int) -> int:
    """Return ``asked``, at most the number of cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(asked, len(usable))


def memory_format(ndim: int) -> torch.memory_format:
    """Return the channels-last order of a batch with ``ndim`` axes, contiguous if there is none."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(ndim, torch.contiguous_format)
