"""The choice of device, precision and memory format."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
import torch
from lightning_fabric.utilities import move_data_to_device

from utils import devices as device
from utils.devices import Compute, choose_compute, memory_format, tune_gpu
from utils.errors import UserError
from utils.training import fabric
from utils.training.fabric import choose_processes, loader_processes, make_fabric
from utils.training.options import TrainingOptions


def set_abilities(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, cuda_bf16: bool = False, cpu: tuple = ()
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: cuda_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True))


@pytest.mark.parametrize(
    ("abilities", "asked", "expected"),
    [
        ((False,), ("auto", "auto"), ("cpu", "32-true")),
        ((False, False, ("avx512_bf16",)), ("auto", "auto"), ("cpu", "bf16-mixed")),
        ((False, False, ("amx_bf16",)), ("cpu", "auto"), ("cpu", "bf16-mixed")),
        ((False, False, ("avx512_f",)), ("cpu", "auto"), ("cpu", "32-true")),
        ((False, False, ("avx512_bf16",)), ("cpu", "32"), ("cpu", "32-true")),
        ((False,), ("cpu", "bf16"), ("cpu", "bf16-mixed")),
        ((True, True), ("auto", "auto"), ("cuda", "bf16-mixed")),
        ((True, False, ("avx512_bf16",)), ("auto", "auto"), ("cuda", "32-true")),
        ((True, True), ("cuda", "32"), ("cuda", "32-true")),
        ((True, True), ("cpu", "auto"), ("cpu", "32-true")),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch, abilities: tuple, asked: tuple, expected: tuple
) -> None:
    set_abilities(monkeypatch, *abilities)
    compute = choose_compute(*asked)
    assert (compute.device, compute.precision) == expected
    assert compute.reason.startswith("auto:" if asked[1] == "auto" else "--precision")
    for part in (*expected, compute.reason, "3 loader"):
        assert part in compute.describe(3)


def test_absent_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_abilities(monkeypatch, cuda=False)
    with pytest.raises(ValueError, match="--device cuda.*--device cpu"):
        choose_compute("cuda", "auto")


def test_fabric_seeds_torch() -> None:
    compute = device.Compute("cpu", "32-true", "test")
    assert make_fabric(compute, 3).device.type == "cpu"
    first = torch.rand(4)
    make_fabric(compute, 3)
    assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize(
    ("asked", "tf32"), [(("auto", "auto"), True), (("cuda", "bf16"), True), (("cuda", "32"), False)]
)
def test_float32_is_cut_to_tf32_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: tuple, tf32: bool
) -> None:
    set_abilities(monkeypatch, cuda=True, cuda_bf16=True)
    compute = choose_compute(*asked)
    assert compute.tf32 is tf32
    assert ("TF32" in compute.describe(0)) is tf32


@pytest.fixture
def _precision_restored() -> Iterator[None]:
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = cudnn, benchmark


@pytest.mark.usefixtures("_precision_restored")
@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_cuda_is_told_how_to_multiply(tf32: bool, deterministic: bool) -> None:
    tune_gpu(Compute("cuda", "bf16-mixed", "test", tf32), deterministic)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cudnn.benchmark is not deterministic
    # torch.compile asks in all three ways; torch refuses to answer where they are mixed up.
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")


@pytest.mark.usefixtures("_precision_restored")
def test_a_cpu_is_left_as_it_is() -> None:
    torch.backends.cudnn.benchmark = False
    tune_gpu(Compute("cpu", "32-true", "test"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark


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
    monkeypatch.setattr(fabric, "GRACE_SECONDS", 0.2)
    other = subprocess.Popen(["sleep", "1000"])
    fabric.end([other])
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
