"""How many processes train one network, and who starts them; imports nothing heavy.

Each process, a rank, drives one device. torchrun and Slurm's srun start all of them; otherwise the
script starts the others itself, on this machine, with its own command line. Ranks are counted from
0, over all machines; rank 0 alone writes files and speaks.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from utils.errors import UserError

INTERRUPTED = 130
"""Exit status after Ctrl-C or a request to terminate."""
MOST_RANKS = 4096
"""More is taken for a mistake."""
_OWN_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""What Fabric's LightningEnvironment reads in processes that it has not started itself."""


@dataclass(frozen=True)
class Processes:
    """The ranks of one training."""

    devices: int = 1
    """On each machine, a process each."""
    nodes: int = 1
    """Machines."""
    launcher: str | None = None
    """``torchrun`` or ``srun`` where that has started all of them; None: the script does it."""

    @property
    def total(self) -> int:
        """Ranks on all machines together."""
        return self.devices * self.nodes

    def describe(self) -> str:
        """Return words for the log; nothing for a single process."""
        if self.total == 1:
            return ""
        machines = f" on each of {self.nodes} machines" if self.nodes > 1 else ""
        starter = f", started by {self.launcher}" if self.launcher else ""
        return f"{self.devices} processes{machines}{starter}"


@dataclass(frozen=True)
class Ending:
    """How a run of one or several processes has ended, as all of them see it."""

    reason: str
    status: int
    """Exit status; 0 for a proper end."""
    own: bool = True
    """Whether that came about in this process, not in another one."""
    speaks: bool = True
    """Whether this process is the one that prints and records it."""


def let_waiting_threads_sleep() -> None:
    """Ask OpenMP, before torch loads it, that a thread that waits for others does not spin.

    Where anything else runs on the cores, each step of a network otherwise waits for a time slice
    of its slowest thread (measured: up to ten times as long). OMP_WAIT_POLICY wins where it is set.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def devices_number(text: str) -> int | None:
    """Return the value of --devices: a number, None for ``auto``; one-line error for all else."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number or auto") from None


def plan_processes(
    devices: int | None,
    nodes: int,
    available: int,
    environment: Mapping[str, str] = os.environ,
) -> Processes:
    """Return the ranks that --devices (None: auto) and --num_nodes ask for.

    ``auto`` is what torchrun or srun has started, else ``available`` (devices of this machine).
    Raises UserError where flags and launcher contradict each other, and for several machines
    without a launcher.
    """
    for flag, value in (("devices", devices), ("num_nodes", nodes)):
        if value is not None and not 1 <= value <= MOST_RANKS:
            raise UserError(f"--{flag} {value}: must lie in 1..{MOST_RANKS}")
    started = find_launcher(environment)
    if started is None:
        if nodes > 1:
            raise UserError(
                f"--num_nodes {nodes}: start the script on every machine with torchrun or srun "
                '(README, "Several devices and machines")'
            )
        return Processes(devices or available)
    if devices not in (None, started.devices):
        raise UserError(
            f"--devices {devices}: {started.launcher} has started {started.devices} processes on "
            "this machine; give the same number, or leave the flag out"
        )
    if nodes not in (1, started.nodes):
        raise UserError(
            f"--num_nodes {nodes}: {started.launcher} has started processes on {started.nodes} "
            "machines; give the same number, or leave the flag out"
        )
    return started


def find_launcher(environment: Mapping[str, str] = os.environ) -> Processes | None:
    """Return what torchrun or srun says in the environment that it has started, None without.

    srun with a single task is none: the script can start its other processes itself. Raises
    UserError where srun does not say how many tasks run on each machine.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        here, total = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        return Processes(here, total // here, "torchrun")
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if interactive or int(environment.get("SLURM_NTASKS", 1)) == 1:
        return None
    try:
        here = int(environment["SLURM_NTASKS_PER_NODE"])
    except (KeyError, ValueError):
        raise UserError(
            f"srun has started {environment['SLURM_NTASKS']} tasks; say --ntasks-per-node to "
            "sbatch or srun (a number) instead of --ntasks"
        ) from None
    return Processes(here, int(environment.get("SLURM_NNODES", 1)), "srun")


def is_started() -> bool:
    """Return whether this is one of several processes that exist already."""
    return "LOCAL_RANK" in os.environ or find_launcher() is not None


def start_others(command: Sequence[str], processes: Processes) -> list[subprocess.Popen]:
    """Start the ranks above 0 on this machine, with the command line of a Python script.

    This process becomes rank 0; its environment says so until :func:`forget_ranks`. The others
    leave out what torch's C++ says when rank 0 has gone: stack traces of what is no news then.
    """
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(_free_port()),
        NODE_RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE=str(processes.total),
    )
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ, "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(1, processes.devices)
    ]


def forget_ranks() -> None:
    """Take back what :func:`start_others` has put into the environment."""
    for name in _OWN_VARIABLES:
        os.environ.pop(name, None)


def settle(reason: str, status: int, *, lost: bool = False) -> Ending:
    """Return how the run ends, once this process has ended with ``reason`` and ``status``.

    With several processes this is where they agree: a success waits for the others', the first
    failure is everybody's. ``lost`` says that a connection broke, which another's failure explains.
    Before they have met, each ends for itself, and the first on each machine speaks.
    """
    return _settle(reason, status, lost) if _settle else Ending(reason, status, speaks=_is_first())


def settle_with(agree: Callable[[str, int, bool], Ending] | None) -> None:
    """Let ``agree`` decide in :func:`settle` from now on; None: each process for itself."""
    global _settle
    _settle = agree


_settle: Callable[[str, int, bool], Ending] | None = None


def _is_first() -> bool:
    """Return whether this process is the only one on its machine, or the first of them."""
    number = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return number == "0"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
