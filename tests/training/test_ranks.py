"""How many processes, their Fabric, how they share samples and sums; alone they do nothing."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import nn

from utils import devices as device
from utils.devices import memory_format
from utils.errors import UserError
from utils.training import ranks
from utils.training.options import TrainingOptions
from utils.training.ranks import Processes, choose_processes, loader_processes, make_fabric

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_NNODES": "2"}


def test_fabric_seeds_torch() -> None:
    compute = device.Compute("cpu", "32-true", "test")
    assert make_fabric(compute, 3).device.type == "cpu"
    first = torch.rand(4)
    make_fabric(compute, 3)
    assert torch.equal(torch.rand(4), first)


def test_fabric_copies_to_a_gpu_without_waiting() -> None:
    class Batch(torch.Tensor):
        def to(self, *where: object, **how: object) -> object:
            return where, how

    batch = torch.zeros(1).as_subclass(Batch)
    target = torch.device("cuda", 0)
    assert move_data_to_device(batch, target) == ((target,), {"non_blocking": True})


def test_all_gpus_and_one_process_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_processes(TrainingOptions(), "cuda").devices == 4
    assert choose_processes(TrainingOptions(), "cpu").devices == 1
    assert choose_processes(TrainingOptions(devices=3), "cpu").devices == 3
    with pytest.raises(UserError, match="--devices 5: torch finds 4 CUDA devices"):
        choose_processes(TrainingOptions(devices=5), "cuda")
    with pytest.raises(UserError, match="--batch_size 2: fewer patches than the 3 devices"):
        choose_processes(TrainingOptions(devices=3, batch_size=2), "cpu")


def test_no_process_outlives_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.2)
    other = subprocess.Popen(["sleep", "1000"])
    ranks.end([other])
    assert other.wait() == -signal.SIGKILL


def test_memory_format_follows_the_number_of_axes() -> None:
    assert memory_format(5) is torch.channels_last_3d
    assert memory_format(4) is torch.channels_last
    assert memory_format(3) is torch.contiguous_format


def test_no_more_loader_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3})
    assert [loader_processes(asked) for asked in (0, 1, 2, 9)] == [0, 1, 2, 2]
    assert [loader_processes(asked, 2) for asked in (0, 1, 2)] == [0, 1, 1]
    assert loader_processes(2, 4) == 1


@pytest.mark.parametrize(
    ("devices", "nodes", "available", "environment", "expected"),
    [
        (None, 1, 1, {}, Processes(1)),
        (None, 1, 8, {}, Processes(8)),
        (2, 1, 8, {}, Processes(2)),
        (None, 1, 4, TORCHRUN, Processes(4, 2, "torchrun")),
        (4, 2, 4, TORCHRUN, Processes(4, 2, "torchrun")),
        (None, 1, 8, SRUN, Processes(3, 2, "srun")),
        (3, 2, 8, SRUN, Processes(3, 2, "srun")),
        (2, 1, 8, {"SLURM_NTASKS": "1"}, Processes(2)),
        (2, 1, 8, {**SRUN, "SLURM_JOB_NAME": "interactive"}, Processes(2)),
        (2, 1, 2, {**TORCHRUN, **SRUN, "LOCAL_WORLD_SIZE": "2"}, Processes(2, 4, "torchrun")),
    ],
)
def test_plan(
    monkeypatch: pytest.MonkeyPatch,
    devices: int | None,
    nodes: int,
    available: int,
    environment: dict,
    expected: Processes,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: available)
    options = TrainingOptions(devices=devices, num_nodes=nodes)
    assert choose_processes(options, "cuda", environment) == expected
    assert expected.total == expected.devices * expected.nodes


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "message"),
    [
        (1, 2, {}, "--num_nodes 2: the script alone has started .* torchrun or srun"),
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
    with pytest.raises(UserError, match=message):
        choose_processes(TrainingOptions(devices=devices, num_nodes=nodes), "cpu", environment)


@pytest.mark.parametrize(("length", "number"), [(7, 3), (2, 3), (9, 1)])
def test_blocks_hold_each_item_once(
    monkeypatch: pytest.MonkeyPatch, length: int, number: int
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: number)
    found = []
    for rank in range(number):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        found += ranks.own_block(length)
    assert found == list(range(length))


def test_a_single_process_shares_with_nobody() -> None:
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    counts = torch.tensor([1, 2, 3, 4])
    assert ranks.pooled(0.5, 3, counts) == (0.5, 3, counts)
    norm = nn.BatchNorm3d(1)
    norm.running_mean.fill_(3.0)
    ranks.average_buffers(norm, None)
    assert norm.running_mean.item() == 3.0
    assert ranks.own_block(4) == range(4)


def test_a_torch_without_distributed_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    assert (ranks.rank(), ranks.world_size(), ranks.word_of_the_first(True)) == (0, 1, True)
