"""How many processes train one network, and who starts them; imports nothing heavy.

Each process, a rank, drives one device. torchrun and Slurm's srun start all of them; otherwise
Fabric starts the others on this machine, with the script's own command line. Ranks are counted from
0, over all machines; rank 0 alone writes files.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The ranks of one training."""

    devices: int = 1
    """On each machine, a process each."""
    nodes: int = 1
    """Machines."""
    launcher: str | None = None
    """``torchrun`` or ``srun`` where that has started all of them."""

    @property
    def total(self) -> int:
        """Ranks on all machines together."""
        return self.devices * self.nodes


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
    started = find_launcher(environment)
    if started is None and nodes > 1:
        raise UserError(
            f"--num_nodes {nodes}: start the script on every machine with torchrun or srun "
            '(README, "Several devices and machines")'
        )
    if started is None:
        return Processes(devices or available)
    if devices not in (None, started.devices) or nodes not in (1, started.nodes):
        raise UserError(
            f"--devices {devices or 'auto'} --num_nodes {nodes}: {started.launcher} has started "
            f"{started.devices} processes on each of {started.nodes} machines; give the same "
            "numbers, or leave both flags out"
        )
    return started


def find_launcher(environment: Mapping[str, str] = os.environ) -> Processes | None:
    """Return what torchrun or srun says in the environment that it has started, None without.

    srun with a single task is none: Fabric can start the other processes. Raises UserError where
    srun does not say how many tasks run on each machine.
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
