"""Which precision a training takes, and that it stays; whether the network is compiled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models import ModelConfig, build_model
from utils.devices import Compute
from utils.errors import UserError
from utils.training import computing as module
from utils.training.computing import (
    Compiling,
    choose_compiling,
    choose_training_compute,
    compile_network,
)
from utils.training.ending import explain
from utils.training.loop import evaluate
from utils.training.losses import build_loss
from utils.training.options import TrainingOptions
from utils.training.ranks import make_fabric


def network() -> nn.Module:
    return build_model(ModelConfig(depth=2))


def network_2d() -> nn.Module:
    return build_model(ModelConfig(depth=2, spatial_dims=2))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A CPU that is twice as fast in bfloat16; what was timed is listed."""
    calls: list[tuple] = []

    def time_step(model: nn.Module, shape: tuple[int, ...], precision: str) -> float:
        calls.append((shape, precision, model.training))
        return 1.0 if precision == "32-true" else 0.5

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(module, "time_step", time_step)
    return calls


def test_a_step_of_each_precision_is_timed(timed: list[tuple]) -> None:
    compute = choose_training_compute(TrainingOptions(batch_size=32), network, (8, 8, 8))
    assert (compute.precision, compute.reason[:33]) == (
        "bf16-mixed",
        "auto: here a step in bfloat16 is ",
    )
    assert timed == [((4, 1, 8, 8, 8), p, True) for p in ("32-true", "bf16-mixed")]
    choose_training_compute(TrainingOptions(batch_size=1), network_2d, (8, 8))
    assert timed[-1][0] == (2, 1, 8, 8)  # a lone patch leaves torch's fast kernels


@pytest.mark.parametrize(
    ("options", "processes", "reason"),
    [
        ({"deterministic": True}, 1, "auto: --deterministic"),
        ({}, 2, "auto: several processes"),
        ({"precision": "32"}, 1, "--precision 32"),
    ],
)
def test_where_nothing_is_timed(
    timed: list[tuple], options: dict, processes: int, reason: str
) -> None:
    compute = choose_training_compute(TrainingOptions(**options), network, (8, 8, 8), processes)
    assert (compute.precision, compute.reason, timed) == ("32-true", reason, [])


def test_a_run_that_goes_on_keeps_its_precision(timed: list[tuple], tmp_path: Path) -> None:
    before = {"device": "cpu", "precision": "32-true", "reason": "timed", "tf32": False}
    (tmp_path / "config.json").write_text(json.dumps({"compute": before}))
    compute = choose_training_compute(TrainingOptions(), network, (8, 8, 8), resumed=tmp_path)
    assert (compute.precision, compute.reason, timed) == ("32-true", "auto: as before", [])
    asked = TrainingOptions(precision="bf16")
    assert choose_training_compute(asked, network, (8,), resumed=tmp_path).precision == "bf16-mixed"
    before["device"] = "cuda"
    (tmp_path / "config.json").write_text(json.dumps({"compute": before}))
    compute = choose_training_compute(TrainingOptions(), network, (8, 8, 8), resumed=tmp_path)
    assert compute.precision == "bf16-mixed" and len(timed) == 2


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize(
    ("options", "device", "on", "reason"),
    [
        ({"compile": "off"}, "cuda", False, "--compile off"),
        ({"compile": "on"}, "cpu", True, "--compile on"),
        ({}, "cuda", True, "pays"),
        ({"deterministic": True}, "cuda", False, "--deterministic"),
        ({"compile": "on", "deterministic": True}, "cpu", True, "--compile on"),
        ({}, "cpu", False, "on a CPU it does not pay"),
    ],
)
def test_the_choice(compiler: None, options: dict, device: str, on: bool, reason: str) -> None:
    chosen = choose_compiling(TrainingOptions(**options), device)
    assert chosen.on == on
    assert reason in chosen.reason
    assert chosen.required == (options.get("compile") == "on")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("PATH", "")
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    assert not choose_compiling(TrainingOptions(), device).on
    with pytest.raises(UserError, match="^--compile on: found none of the compilers C"):
        choose_compiling(TrainingOptions(compile="on"), device)
    if device == "cuda":
        assert "no compiler" in choose_compiling(TrainingOptions(), device).reason


class Network(nn.Module):
    """Small; torch's own Sequential would not be compiled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)
        self.last = nn.Conv3d(2, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let Module.compile trace, but leave out the minute in the C++ compiler.

    Gives the batch sizes of what is compiled; a batch of three makes the compiler fail.
    """
    sizes: list[int] = []

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        sizes.extend(value.shape[0] for value in inputs if value.shape[1:] == (1, 4, 4, 4))
        if sizes[-1] == 3:
            raise RuntimeError("g++ fell over")
        return graph.forward

    def compile_module(self: nn.Module, **options: object) -> None:
        compiled = torch.compile(self._call_impl, backend=compile_graph, **options)
        self._compiled_call_impl = compiled

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    yield sizes
    torch._dynamo.config.suppress_errors = False
    torch.compiler.reset()


def test_the_compiled_network_is_the_same_and_only_training_is_compiled(
    backend: list[int],
) -> None:
    torch.manual_seed(0)
    fabric = make_fabric(Compute("cpu", "32-true", "test"), 0)
    model = fabric.setup_module(Network())
    names = list(model.state_dict())
    images = torch.rand(2, 1, 4, 4, 4)
    eager = model(images)
    compile_network(model.module, Compiling(True, True, "on"))
    assert list(model.state_dict()) == names
    for _ in range(2):
        torch.testing.assert_close(model(images), eager)
        evaluate(model, build_loss(TrainingOptions()), [(images, images)], "validation")
        model.train()
    assert backend == [2]


def test_training_goes_on_where_compiling_fails(
    backend: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    model = Network()
    compile_network(model, Compiling(True, False, "auto"))
    assert model(torch.rand(3, 1, 4, 4, 4)).shape == (3, 1, 4, 4, 4)
    assert backend == [3] and "g++ fell over" in caplog.text


def test_a_failure_is_a_line_where_compiling_is_required(backend: list[int]) -> None:
    model = Network()
    compile_network(model, Compiling(True, True, "on"))
    with pytest.raises(RuntimeError) as caught:
        model(torch.rand(3, 1, 4, 4, 4))
    line = explain(caught.value)
    assert line.startswith("--compile on: compiling the network failed; use --compile off")
    assert "g++ fell over" in line and "\n" not in line


def test_a_network_that_is_not_compiled(backend: list[int]) -> None:
    model = Network()
    compile_network(model, Compiling(False, False, "off"))
    assert model(torch.rand(3, 1, 4, 4, 4)).shape == (3, 1, 4, 4, 4) and not backend
