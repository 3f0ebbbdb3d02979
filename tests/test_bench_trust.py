"""The benchmark of trust: its fit in closed form, and one run with tiny volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.prediction.trained_network import read_network
from utils.simulation import VolumeConfig
from utils.storage import VolumeSet, write_simulated_file

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench_trust(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("bench_trust")


def test_a_line_between_logits_is_found(bench_trust):
    agreements = np.linspace(0.2, 0.9, 41)
    noise = np.tile([-0.4, 0.0, 0.4], 14)[:41]
    ious = 1 / (1 + np.exp(-(-2.0 + 1.5 * bench_trust.logit(agreements) + noise)))
    found = bench_trust.fit(np.append(agreements, np.nan), np.append(ious, 0.0))
    assert (found.offset, found.slope) == pytest.approx((-2.0, 1.5), abs=0.05)
    assert (found.low, found.high) == pytest.approx((-0.4, 0.4), abs=0.1)
    cells = bench_trust.judge(found, agreements, ious)
    assert cells[0] == "41 of 41" and float(cells[2].split()[0]) > 0.9
    assert float(cells[3]) < 0.1 and abs(float(cells[4])) < 0.05


def test_a_calibration_is_measured_told_drawn_and_stored(
    bench_trust, tmp_path, monkeypatch, capsys, tiny_config: VolumeConfig
):
    write_simulated_file(tmp_path / "tiny.h5", VolumeSet(tiny_config, 3, 4))
    monkeypatch.setattr(
        bench_trust,
        "wide_volumes",
        lambda seed, count, edge: bench_trust.stored_volumes(tmp_path / "tiny.h5", count),
    )
    torch.manual_seed(0)
    config = ModelConfig(depth=2, start_channels=2)
    state = {
        **{"format": 1, "epoch": 3, "patch_size": 16, "spacing_voxels": [9.0] * 3},
        "model_config": config.to_dict(),
        "model_state": build_model(config).state_dict(),
        "normalizer": PercentileNormalizer().to_dict(),
    }
    torch.save(state, tmp_path / "a.pth")
    flags = ["--checkpoint", str(tmp_path / "a.pth"), "--volumes", "4", "3", "--write"]
    flags += ["--data", f"other={tmp_path / 'tiny.h5'}", "--plot", str(tmp_path / "plot.png")]
    assert bench_trust.main(flags) == 0
    said = capsys.readouterr().out
    assert [line.split(" |")[0] for line in said.splitlines() if line.startswith("| ")] == [
        *("| group", "| ---", "| wide, calibrated on", "| wide, left out", "| other"),
        "| all but the first",
    ]
    network = read_network(tmp_path / "a.pth")
    assert network.trust is not None and str(network.trust) in said
    assert network.fingerprint() == bench_trust.read_network(tmp_path / "a.pth").fingerprint()
    assert (tmp_path / "plot.png").stat().st_size > 5000
