"""Whether the network is compiled, and that training survives when that fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from utils.devices import Compute
from utils.errors import UserError
from utils.training.compiling import (
    NOT_COMPILED,
    Compiling,
    choose_compiling,
    compile_network,
)
from utils.training.ending import explain
from utils.training.fabric import make_fabric
from utils.training.loop import evaluate
from utils.training.losses import build_loss
from utils.training.options import TrainingOptions


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
    compile_network(model, NOT_COMPILED)
    assert model(torch.rand(3, 1, 4, 4, 4)).shape == (3, 1, 4, 4, 4) and not backend
