"""Which precision a training takes, and that it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models import ModelConfig, build_model
from utils.training import precision as module
from utils.training.options import TrainingOptions
from utils.training.precision import choose_training_compute


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
