"""The choice of device, precision and memory format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models import ModelConfig, build_model
from utils.devices import (
    Compute,
    choose_compute,
    is_out_of_memory,
    memory_advice,
    time_step,
    tune_gpu,
)
from utils.errors import UserError


def set_abilities(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, cuda_bf16: bool = False, cpu: tuple = ()
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: cuda_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True))


SLOW, FAST = {"32-true": 1.0, "bf16-mixed": 0.9}, {"32-true": 1.0, "bf16-mixed": 0.79}


@pytest.mark.parametrize(
    ("abilities", "asked", "seconds", "expected"),
    [
        ((False,), ("auto", "auto"), None, ("cpu", "32-true")),
        ((False, False, ("avx512_bf16",)), ("auto", "auto"), None, ("cpu", "32-true")),
        ((False, False, ("avx512_bf16",)), ("auto", "auto"), FAST, ("cpu", "bf16-mixed")),
        ((False, False, ("amx_bf16",)), ("cpu", "auto"), SLOW, ("cpu", "32-true")),
        ((False, False, ("avx512_f",)), ("cpu", "auto"), {}, ("cpu", "32-true")),
        ((False, False, ("avx512_bf16",)), ("cpu", "32"), {}, ("cpu", "32-true")),
        ((False,), ("cpu", "bf16"), {}, ("cpu", "bf16-mixed")),
        ((True, True), ("auto", "auto"), {}, ("cuda", "bf16-mixed")),
        ((True, False, ("avx512_bf16",)), ("auto", "auto"), {}, ("cuda", "32-true")),
        ((True, True), ("cuda", "32"), {}, ("cuda", "32-true")),
        ((True, True), ("cpu", "auto"), {}, ("cpu", "32-true")),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    abilities: tuple,
    asked: tuple,
    seconds: dict[str, float] | None,
    expected: tuple,
) -> None:
    """Where ``seconds`` is empty nothing may be timed."""
    set_abilities(monkeypatch, *abilities)
    compute = choose_compute(*asked, None if seconds is None else seconds.__getitem__)
    assert (compute.device, compute.precision) == expected
    assert compute.reason.startswith("auto:" if asked[1] == "auto" else "--precision")
    for part in (*expected, compute.reason, "3 loader"):
        assert part in compute.describe(3)


def test_the_choice_tells_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    set_abilities(monkeypatch, False, cpu=("avx512_bf16",))
    reason = choose_compute("cpu", "auto", FAST.__getitem__).reason
    assert reason == "auto: here a step in bfloat16 is 1.27 times as fast as in float32"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_timing_a_step_leaves_the_network_as_it_was(
    training: bool, arch: str, precision: str
) -> None:
    seen = []
    config = ModelConfig(arch=arch, spatial_dims=2, depth=2, num_stacks=2)
    model = build_model(config).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda m, a, out: seen.append((out.dtype, out.requires_grad)))
    assert time_step(model, (2, 1, 8, 8), precision) > 0
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    assert seen == [(dtype, training)] * 4
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_want_of_memory_is_told_with_advice() -> None:
    with pytest.raises(UserError, match="out of memory: lower --window"):
        with memory_advice("lower --window"):
            raise MemoryError
    with pytest.raises(RuntimeError, match="another"), memory_advice("lower --window"):
        raise RuntimeError("another")
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_absent_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_abilities(monkeypatch, cuda=False)
    with pytest.raises(UserError, match="--device cuda.*--device cpu"):
        choose_compute("cuda", "auto")


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
