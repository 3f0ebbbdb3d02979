"""Which device, precision and memory format to compute with, from what this machine is fast at."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from utils.errors import UserError

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU instructions without which bfloat16 is never faster than float32."""
WORTH = 1.25
"""How many times as fast as float32 a step in bfloat16 must be on a CPU to be taken.

Instructions alone do not tell: one training step of a depth 4 U-Net on 64^3 in channels-last order
took, in float32 and bfloat16, 0.47 and 0.30 s on an AMD EPYC (Zen 5, avx512_bf16; 4 channels, batch
8), and 1.1 to 1.5 times as long in bfloat16 as in float32 on an Intel Xeon with avx512_bf16.
"""


@dataclass(frozen=True)
class Compute:
    """Where and how the network is evaluated; losses and metrics are float32 in any case."""

    device: str  # ``cpu`` or ``cuda``
    precision: str  # Fabric's word: ``32-true`` or ``bf16-mixed``
    reason: str  # why this precision
    tf32: bool = False  # what stays float32 on a GPU may be multiplied in TF32 (10-bit mantissa)

    def describe(self, processes: int) -> str:
        """Return a line for the log."""
        tf32 = ", TF32 for the rest" if self.tf32 else ""
        return (
            f"{self.device}, {self.precision} ({self.reason}){tf32}, {torch.get_num_threads()} "
            f"threads, {processes} loader processes"
        )


def choose_compute(
    device: str, precision: str, step_seconds: Callable[[str], float] | None = None
) -> Compute:
    """Turn ``auto|cpu|cuda`` and ``auto|32|bf16`` into what this machine shall do.

    The device ``auto`` is CUDA where there is some. The precision ``auto`` is bfloat16 on a GPU
    that has units for it, and on a CPU where a step in it is :data:`WORTH` times as fast as in
    float32, if ``step_seconds`` tells what one takes in a precision, Fabric's word. Raises
    UserError where CUDA is asked for and absent.
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
        if torch.cuda.is_bf16_supported(False):
            return Compute(device, "bf16-mixed", "auto: this GPU has bfloat16 units", tf32)
        return Compute(device, "32-true", "auto: this GPU has no bfloat16 units", tf32)
    abilities = torch.cpu.get_capabilities()
    if not any(abilities.get(name) for name in BF16_INSTRUCTIONS):
        return Compute(device, "32-true", "auto: this CPU does not know bfloat16")
    if step_seconds is None:
        return Compute(device, "32-true", "auto: too little to do to time bfloat16")
    times = step_seconds("32-true") / step_seconds("bf16-mixed")
    reason = f"auto: here a step in bfloat16 is {times:.2f} times as fast as in float32"
    return Compute(device, "bf16-mixed" if times >= WORTH else "32-true", reason)


def time_step(model: nn.Module, shape: Sequence[int], precision: str) -> float:
    """Return the seconds that a step of ``model`` takes on this CPU with a blank batch.

    A step is the forward pass, and in training mode the backward pass too. The quickest of three
    counts, after one that is not timed. Weights and buffers stay as they are. The model returns
    logits, or a list of them, and has its channels last in memory. ``shape`` is the batch's,
    (batch, channels, *space), of at least two samples, since one alone leaves torch's fast kernels.
    """
    model = copy.deepcopy(model)
    batch = torch.zeros(tuple(shape)).contiguous(memory_format=memory_format(len(shape)))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        with (
            torch.set_grad_enabled(model.training),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
        ):
            logits = model(batch)
        if model.training:
            maps = logits if isinstance(logits, list | tuple) else [logits]
            torch.stack([one.float().square().mean() for one in maps]).sum().backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


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
