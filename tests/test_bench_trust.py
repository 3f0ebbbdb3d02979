"""The benchmark of trust: its fit in closed form, and one run with tiny volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.prediction.sliding_window import predict_volume
from utils.prediction.trained_network import read_network
from utils.simulation import sample_rng, simulate_volume

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


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(depth=2, start_channels=2)
    state = {
        **{"format": 1, "epoch": 3, "patch_size": 16, "spacing_voxels": [9.0] * 3},
        "model_config": config.to_dict(),
        "model_state": build_model(config).state_dict(),
        "normalizer": PercentileNormalizer().to_dict(),
    }
    torch.save(state, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_a_volume_is_scored_as_it_is_predicted(bench_trust, checkpoint, tiny_config):
    volume = simulate_volume(tiny_config, sample_rng(3, 0))
    network = read_network(checkpoint)
    config = network.parse_config(ModelConfig.from_dict)
    model = network.restore(build_model(config), "cpu", 3)
    agreement, iou = bench_trust.score(network, model, volume, "32")
    found = predict_volume(model, volume.image, network.normalizer, window=16) >= 0.5
    both, either = (found & volume.mask.astype(bool)).sum(), (found | (volume.mask > 0)).sum()
    assert iou == pytest.approx(both / either, abs=1e-3)
    assert np.isnan(agreement) or 0 <= agreement <= 1


def test_a_calibration_is_told_drawn_and_stored(
    bench_trust, checkpoint, tmp_path, monkeypatch, capsys
):
    groups = {"wide": [0.4, 0.5, 0.6, 0.8], "other": [0.45, 0.7, 0.75]}
    monkeypatch.setattr(bench_trust, "wide_volumes", lambda *_: groups["wide"])
    monkeypatch.setattr(bench_trust, "stored_volumes", lambda *_: groups["other"])
    monkeypatch.setattr(bench_trust, "score", lambda network, model, x, precision: (x, 0.9 * x))
    before = read_network(checkpoint)
    flags = ["--checkpoint", str(checkpoint), "--data", "other=a.h5", "--write"]
    assert bench_trust.main([*flags, "--plot", str(tmp_path / "plot.png")]) == 0
    said = capsys.readouterr().out
    rows = [line.split(" |")[0] for line in said.splitlines() if line.startswith("| ")]
    assert rows == [
        *("| group", "| ---", "| wide, calibrated on", "| wide, left out", "| other"),
        "| all but the first",
    ]
    after = read_network(checkpoint)
    assert before.trust is None and after.trust is not None and str(after.trust) in said
    assert after.trust.expected(0.6)[0] == pytest.approx(0.54, abs=0.03)
    assert after.fingerprint() == before.fingerprint()
    assert (tmp_path / "plot.png").stat().st_size > 5000
