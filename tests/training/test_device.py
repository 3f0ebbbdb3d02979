"""The choice of device, precision and memory format."""

from __future__ import annotations

import os

import pytest
import torch

from utils.training import device
from utils.training.device import (
    choose_compute,
    loader_processes,
    make_fabric,
    memory_format,
)


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


def test_memory_format_follows_the_number_of_axes() -> None:
    assert memory_format(5) is torch.channels_last_3d
    assert memory_format(4) is torch.channels_last
    assert memory_format(3) is torch.contiguous_format


def test_no_more_loader_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3})
    assert [loader_processes(asked) for asked in (0, 1, 2, 9)] == [0, 1, 2, 2]
