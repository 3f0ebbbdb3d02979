"""Whether to compile the network with torch.compile, and how a run survives when that fails.

Only the training step on full batches is compiled; validation and a last, smaller batch run as
they are, since compiling each of them costs another minute on a CPU.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import nn

from utils.devices import is_out_of_memory, memory_format
from utils.errors import UserError
from utils.training.options import TrainingOptions

logger = logging.getLogger("utils.training")


@dataclass(frozen=True)
class Compiling:
    """Whether the network is compiled, and why."""

    on: bool
    required: bool
    """Whether a failure ends the run instead of going on without."""
    reason: str


NOT_COMPILED = Compiling(on=False, required=False, reason="not asked for")


def choose_compiling(options: TrainingOptions, device: str) -> Compiling:
    """Turn ``--compile auto|on|off`` into what this run shall do.

    ``auto`` is on with CUDA, but where no compiler is found, and with ``deterministic``. On a CPU
    it is off: the step as it is is as fast or faster. Measured on two cores (Zen 5, bfloat16, depth
    4): 4 channels 26.3 patches a second, compiled 17.4; 8 channels 14.7 and 11.9; 32 channels 2.05
    and 2.10; 16 channels with ``stem_stride`` 2 36 and 38. Compiling takes about a minute.

    Raises UserError for ``on`` without a compiler.
    """
    if options.compile == "off":
        return Compiling(False, False, "--compile off")
    required = options.compile == "on"
    compiler = find_compiler(device)
    if compiler is None and required:
        raise UserError(
            "--compile on: no C++ compiler is found (g++, or what CXX names); install one, or use "
            "--compile auto"
        )
    if required:
        return Compiling(True, True, "--compile on")
    if options.deterministic:
        return Compiling(False, False, "auto: --deterministic")
    if device == "cpu":
        return Compiling(False, False, "auto: on a CPU it does not pay")
    if compiler is None:
        return Compiling(False, False, "auto: no C++ compiler is found")
    return Compiling(True, False, "auto: it pays here")


def find_compiler(device: str) -> str | None:
    """Return the compiler that torch.compile would call for ``device``, or None."""
    if device == "cpu":
        names = [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
    else:
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    return next((found for name in names if (found := shutil.which(name))), None)


def compile_network(
    fabric: Fabric,
    model: nn.Module,
    loss_function: nn.Module,
    shape: Sequence[int],
    compiling: Compiling,
) -> AbstractContextManager[object]:
    """Compile the step of ``model`` (set up by ``fabric``) on a blank batch of ``shape``.

    Weights, buffers and gradients are as before. The state dict keeps its names. A failure is a
    UserError where compiling is required, and otherwise a logged line. Train within the
    context that is returned: there the compiled step is used (unless it failed), and nothing else
    is compiled.
    """
    if not compiling.on:
        return nullcontext()
    started = time.perf_counter()
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.module.compile(dynamic=False)
    model.train()
    try:
        _blank_step(fabric, model, loss_function, shape)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:200]
        if compiling.required:
            raise UserError(f"--compile on: compiling the network failed ({text})") from error
        logger.info(f"compiling failed, training goes on without ({text})")
        return torch.compiler.set_stance("force_eager")
    finally:
        model.zero_grad(set_to_none=True)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    logger.info(f"compiled the training step in {time.perf_counter() - started:.0f} s")
    return torch.compiler.set_stance("eager_on_recompile")


def _blank_step(
    fabric: Fabric, model: nn.Module, loss_function: nn.Module, shape: Sequence[int]
) -> None:
    """Run a step forward and backward on a batch of zeros; of several processes each its own."""
    blank = torch.zeros(tuple(shape), device=fabric.device)
    with fabric.no_backward_sync(model):
        output = model(blank.contiguous(memory_format=memory_format(blank.ndim)))
        stacks = output if isinstance(output, list) else [output]
        fabric.backward(torch.stack([loss_function(logits, blank) for logits in stacks]).sum())
