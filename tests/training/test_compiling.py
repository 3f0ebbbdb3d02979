"""Whether the network is compiled, and that training survives when that fails."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from utils.devices import Compute
from utils.errors import UserError
from utils.training import compiling as module
from utils.training.compiling import Compiling, choose_compiling, compile_network
from utils.training.fabric import make_fabric
from utils.training.losses import build_loss
from utils.training.options import TrainingOptions


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_compiler", lambda device: "/usr/bin/g++")


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
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    assert not choose_compiling(TrainingOptions(), device).on
    with pytest.raises(UserError, match="^--compile on: no C.. compiler is found"):
        choose_compiling(TrainingOptions(compile="on"), device)
    if device == "cuda":
        assert "no C++ compiler" in choose_compiling(TrainingOptions(), device).reason


class Network(nn.Module):
    """Small; torch's own Sequential would not be compiled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)
        self.last = nn.Conv3d(2, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def compile_with(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[int]:
    """Let Module.compile trace, but leave out the minute in the C++ compiler, or fail there.

    Returns the batch sizes of what is compiled.
    """
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        if error:
            raise error
        sizes.extend(value.shape[0] for value in inputs if value.shape[1:] == (1, 4, 4, 4))
        return graph.forward

    def compile_module(self: nn.Module, **options: object) -> None:
        compiled = torch.compile(self._call_impl, backend=backend, **options)
        self._compiled_call_impl = compiled

    monkeypatch.setattr(nn.Module, "compile", compile_module)
    return sizes


def set_up() -> tuple:
    torch.manual_seed(0)
    fabric = make_fabric(Compute("cpu", "32-true", "test"), 0)
    model = Network()
    loss = build_loss(TrainingOptions(loss_type="bce"))
    optimizer = torch.optim.Adam(model.parameters())
    return (fabric, *fabric.setup(model, optimizer), loss)


def test_compiling_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = compile_with(monkeypatch)
    fabric, model, _, loss = set_up()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.rand(2, 1, 4, 4, 4)
    eager = model(image).detach()
    model.load_state_dict(before)
    with compile_network(fabric, model, loss, (2, 1, 4, 4, 4), Compiling(True, False, "")):
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not [name for name in after if "_orig_mod" in name]
        assert all(p.grad is None for p in model.parameters())
        torch.testing.assert_close(model(image).detach(), eager)
        # Neither a smaller batch nor validation is worth another minute of compiling.
        assert model(torch.rand(1, 1, 4, 4, 4)).shape == (1, 1, 4, 4, 4)
        model.eval()
        assert model(image).shape == image.shape
    assert sizes == [2]


def test_a_failure_is_logged_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_with(monkeypatch, RuntimeError("g++ fell over\nin two lines"))
    fabric, model, _, loss = set_up()
    monkeypatch.setattr(module.logger, "propagate", True)
    caplog.set_level(logging.INFO, "utils.training")
    with compile_network(fabric, model, loss, (2, 1, 4, 4, 4), Compiling(True, False, "auto")):
        model.train()
        assert model(torch.rand(2, 1, 4, 4, 4)).shape == (2, 1, 4, 4, 4)
    (line,) = [r.getMessage() for r in caplog.records if "compiling failed" in r.getMessage()]
    assert "g++ fell over" in line and "\n" not in line


def test_a_failure_is_an_error_where_compiling_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_with(monkeypatch, RuntimeError("g++ fell over"))
    fabric, model, _, loss = set_up()
    with pytest.raises(UserError, match="^--compile on: .*g.. fell over"):
        compile_network(fabric, model, loss, (2, 1, 4, 4, 4), Compiling(True, True, "on"))


def test_no_memory_is_no_failure_of_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric, model, _, loss = set_up()
    compile_with(monkeypatch)

    def blank(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_blank_step", blank)
    with pytest.raises(torch.OutOfMemoryError):
        compile_network(fabric, model, loss, (2, 1, 4, 4, 4), Compiling(True, False, "auto"))
