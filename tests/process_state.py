"""What each test must leave as it found it: all tests of a run share one process.

A test that leaves, say, fewer threads or another environment behind makes later ones pass or fail
by their order. Reads Linux's /proc where there is one.
"""

from __future__ import annotations

import gc
import locale
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch

SECONDS = 150.0
"""For threads and processes that have been told to end, on a machine that may be busy."""
HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
"""Processes that Python's multiprocessing keeps until its end."""
LASTING_THREADS = ("tqdm_monitor", "Dask", "Profile", "IO loop", "AsyncProcess", "asyncio_", "zarr")
"""Beginnings of the names of threads that libraries start once and keep."""
SET_BY_TRAINING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_WAIT_POLICY")
"""Variables that lightning, and the training scripts for it, set in a process and leave there."""
AT_FIRST = frozenset(os.environ)
"""Variables that stood when the tests began; libraries add some when they are first imported."""
WATCHED = (
    *("OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "SLURM_", "TORCHELASTIC_", "MASTER_"),
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"),
)
"""Beginnings of the names of variables that must not come either: threads, ranks, devices."""
SEVERAL_USERS = {signal.SIGALRM, signal.SIGCHLD}
"""Signals of pytest-timeout, and of torch from the first loader process on."""
SIGNALS = signal.valid_signals() - SEVERAL_USERS


def process_state() -> dict[str, object]:
    """Return by name what is compared before and after each test."""
    return {**_torch_state(), **_system_state(), **_library_state()}


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return a line for each entry that has come, gone or changed."""
    if before == after:  # at once, as nearly always
        return []
    names = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    return [f"{name}: was {before.get(name)}, is {after.get(name)}" for name in names]


def running() -> dict[object, str]:
    """Return the threads and child processes of this process, with a name for each."""
    threads = {t: f"thread {t.name}" for t in threading.enumerate() if not _lasts(t)}
    return {**threads, **_children()}


def left_running(before: dict[object, str]) -> list[str]:
    """Return what runs that did not run ``before``, after some time to end."""
    deadline = time.monotonic() + SECONDS
    if running().keys() - before.keys():
        gc.collect()  # loaders end their processes when they are forgotten
    while left := {key: name for key, name in running().items() if key not in before}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return sorted(left.values())


def _torch_state() -> dict[str, object]:
    mkldnn, cudnn = torch.backends.mkldnn, torch.backends.cudnn
    return {
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "float32 products": torch.get_float32_matmul_precision(),
        "mkldnn": (mkldnn.enabled, mkldnn.deterministic),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "denormal numbers": bool(torch.tensor([1e-41]) * 1 == 0),
        "process group": torch.distributed.is_initialized(),
        "sharing strategy": torch.multiprocessing.get_sharing_strategy(),
    }


def _system_state() -> dict[str, object]:
    mask = os.umask(0o077)
    os.umask(mask)
    limits = ("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_AS")
    ignored = {"PYTEST_CURRENT_TEST", *SET_BY_TRAINING}
    environment = {
        name: value
        for name, value in os.environ.items()
        if (name in AT_FIRST or name.startswith(WATCHED)) and name not in ignored
    }
    return {
        "working folder": os.getcwd(),
        "umask": oct(mask),
        "locale": locale.setlocale(locale.LC_ALL),
        **{name: resource.getrlimit(getattr(resource, name)) for name in limits},
        **{f"handler of signal {number}": signal.getsignal(number) for number in SIGNALS},
        **{f"environment variable {name}": value for name, value in environment.items()},
    }


def _library_state() -> dict[str, object]:
    root = logging.getLogger()
    matplotlib.get_backend()  # chooses one, which would seem to be the first test's doing
    parameters = dict.items(matplotlib.rcParams)  # at once; its own way asks for one by one
    return {
        "sys.path": tuple(sys.path),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "recursion limit": sys.getrecursionlimit(),
        "numpy": (np.geterr(), np.get_printoptions()),
        "logging": (root.level, root.manager.disable),
        **{f"matplotlib's {name}": value for name, value in parameters},
    }


def _lasts(thread: threading.Thread) -> bool:
    return thread.daemon or thread.name.startswith(LASTING_THREADS) or "-Dask-" in thread.name


def _children() -> dict[object, str]:
    found: dict[object, str] = {}
    for listed in Path("/proc/self/task").glob("*/children"):
        try:
            for child in listed.read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                # Without a command it has ended; orphans, which others see to, among them.
                if command and not any(helper in command for helper in HELPERS):
                    words = command.replace(b"\0", b" ").decode(errors="replace")
                    found[int(child)] = f"process {child} {words[:200]}"
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return found
