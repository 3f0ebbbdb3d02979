"""Which device, precision and memory format to compute with, from what this machine is fast at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from utils.errors import UserError

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
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
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


def memory_format(ndim: int) -> torch.memory_format:
    """Return the channels-last order of a batch with ``ndim`` axes, contiguous if there is none."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(ndim, torch.contiguous_format)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether numpy or torch, on any device, found no memory."""
    signs = ("can't allocate memory", "CUDA out of memory", "STATUS_ALLOC_FAILED")
    allocation = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    return allocation or isinstance(error, (MemoryError, torch.OutOfMemoryError))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn the want of memory in the block into a UserError that says what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: {advice}") from error
