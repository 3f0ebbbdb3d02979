"""Training to the same bits each time, on one machine with one number of threads.

Data are drawn from (seed, epoch, index) in any case, and the weights from the seed; what is left
are kernels that add in an order of their own, and the number of threads among which sums are cut.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch


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
