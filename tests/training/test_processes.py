"""Who starts how many processes, from flags and the environments of torchrun and srun."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.training.processes import (
    Processes,
    devices_number,
    find_launcher,
    plan_processes,
)

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    ("devices", "nodes", "available", "environment", "expected"),
    [
        (None, 1, 1, {}, Processes(1)),
        (None, 1, 8, {}, Processes(8)),
        (2, 1, 8, {}, Processes(2)),
        (None, 1, 1, TORCHRUN, Processes(4, 2, "torchrun")),
        (4, 2, 1, TORCHRUN, Processes(4, 2, "torchrun")),
        (None, 1, 8, SRUN, Processes(3, 2, "srun")),
        (3, 2, 8, SRUN, Processes(3, 2, "srun")),
        (2, 1, 8, {"SLURM_NTASKS": "1"}, Processes(2)),
        (2, 1, 8, {**SRUN, "SLURM_JOB_NAME": "interactive"}, Processes(2)),
        (2, 1, 1, {**TORCHRUN, **SRUN, "LOCAL_WORLD_SIZE": "2"}, Processes(2, 4, "torchrun")),
    ],
)
def test_plan(
    devices: int | None, nodes: int, available: int, environment: dict, expected: Processes
) -> None:
    assert plan_processes(devices, nodes, available, environment) == expected
    assert expected.total == expected.devices * expected.nodes


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "message"),
    [
        (1, 2, {}, "--num_nodes 2: start the script on every machine with torchrun or srun"),
        (
            2,
            1,
            TORCHRUN,
            "--devices 2 --num_nodes 1: torchrun has started 4 processes on each of 2",
        ),
        (None, 3, TORCHRUN, "--devices auto --num_nodes 3: torchrun has started 4 processes"),
        (2, 1, SRUN, "--devices 2 --num_nodes 1: srun has started 3 processes"),
        (None, 1, {"SLURM_NTASKS": "4"}, "--ntasks-per-node"),
        (None, 1, {**SRUN, "SLURM_NTASKS_PER_NODE": "3(x2)"}, "--ntasks-per-node"),
    ],
)
def test_contradictions_are_refused(
    devices: int | None, nodes: int, environment: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        plan_processes(devices, nodes, 1, environment)


def test_devices_flag() -> None:
    assert devices_number("auto") is None and devices_number("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="'two': must be a number or auto"):
        devices_number("two")


def test_no_launcher_in_this_process() -> None:
    assert find_launcher({}) is None


def test_openmp_is_told_before_torch_is_loaded() -> None:
    code = (
        "import train_basic_3dunet as script, os, sys; script.run = lambda *_: 0;"
        "assert script.main([]) == 0 and 'torch' not in sys.modules;"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in ((None, "passive"), ("active", "active")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": given} if given else {}
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == expected
