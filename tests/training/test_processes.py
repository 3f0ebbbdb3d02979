"""Who starts how many processes, from flags and the environments of torchrun and srun."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.training import processes
from utils.training.processes import (
    Ending,
    Processes,
    devices_number,
    find_launcher,
    is_started,
    plan_processes,
    settle,
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
        (0, 1, {}, "--devices 0: must lie in 1"),
        (1, 0, {}, "--num_nodes 0: must lie in 1"),
        (1, 2, {}, "--num_nodes 2: start the script on every machine with torchrun or srun"),
        (2, 1, TORCHRUN, "--devices 2: torchrun has started 4 processes"),
        (None, 3, TORCHRUN, "--num_nodes 3: torchrun has started processes on 2 machines"),
        (2, 1, SRUN, "--devices 2: srun has started 3 processes"),
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


def test_other_ranks_get_the_command_line_and_their_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os, pathlib, sys\n"
        "rank = os.environ['LOCAL_RANK']\n"
        "words = [*sys.argv[2:], rank, os.environ['WORLD_SIZE']]\n"
        "pathlib.Path(sys.argv[1], rank).write_text(' '.join(words))\n"
    )
    others = processes.start_others(["-c", code, str(tmp_path), "--epochs", "2"], Processes(3))
    try:
        assert is_started() and os.environ["LOCAL_RANK"] == "0"
        assert [other.wait() for other in others] == [0, 0]
        written = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert written == {"1": "--epochs 2 1 3", "2": "--epochs 2 2 3"}
    finally:
        processes.forget_ranks()
    assert not is_started() and "MASTER_PORT" not in os.environ


def test_a_single_process_ends_for_itself() -> None:
    assert settle("completed", 0) == Ending("completed", 0, own=True, speaks=True)
    assert settle("no", 2).speaks


def test_before_they_meet_the_first_process_of_a_machine_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not settle("no", 2).speaks
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert settle("no", 2).speaks


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
