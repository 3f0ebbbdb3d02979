import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.simulation import sample_rng, simulate_volume
from utils.storage import Recipe, VolumeFile, encode_row, open_writer
from utils.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD = ModelConfig(depth=1, start_channels=1, conv_kernel_size=1)
"""A network that passes its input on (positive numbers through two 1x1x1 kernels) to its head."""


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_config):
    """A file of three simulated volumes of 32 voxels an edge."""
    path = tmp_path_factory.mktemp("data") / "volumes.h5"
    with open_writer(path, Recipe(tiny_config, 5, 3)) as writer:
        for index in range(3):
            volume = simulate_volume(tiny_config, sample_rng(5, index))
            writer.write(index, encode_row(volume))
        writer.finish()
    return path


def make_log(directory, config, *, weights=None, training_seed=0, **changes):
    torch.manual_seed(0)
    experiment = Experiment.create(
        directory, {"data": {"train": [{"file": "train.h5", "seed": training_seed}]}}, __file__
    )
    state = {
        "model_config": config.to_dict(),
        "model_state": weights or build_model(config).state_dict(),
        "normalizer": PercentileNormalizer().to_dict(),
        "spacing_voxels": [9.0, 9.0, 9.0],
        "patch_size": 24,
        "epoch": 3,
        "metrics": {},
    }
    experiment.save_checkpoint("best.pth", {**state, **changes})
    return directory


def thresholding_weights():
    """Weights of THRESHOLD with logit = 20 x - 10, x the normalised intensity."""
    model = build_model(THRESHOLD)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        model.head.weight.fill_(20.0)
        model.head.bias.fill_(-10.0)
    return model.state_dict()


@pytest.fixture
def log(tmp_path):
    return make_log(tmp_path / "experiment", THRESHOLD, weights=thresholding_weights())


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def iou(found, truth):
    return (found & truth).sum() / (found | truth).sum()


def test_scores_are_those_of_a_known_network(data, log, capsys):
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 0
    rows = read_csv(log / "evaluation" / "metrics.csv")
    assert [row["volume"] for row in rows] == ["0", "1", "2"]
    with VolumeFile(data) as file:
        volumes = [file.read_volume(i) for i in range(3)]
    expected = []
    for row, volume in zip(rows, volumes, strict=True):
        low, high = np.percentile(volume.image, (1, 99))
        # The middle of the range, up to the epsilon in the batch normalisations.
        found = (volume.image - low) / (high - low) > 0.5 * (1 + 1e-5)
        truth, sheet = volume.mask > 0, volume.sheet > 0
        assert float(row["iou"]) == pytest.approx(iou(found, truth), abs=2e-3)
        assert float(row["baseline_iou"]) == pytest.approx(iou(sheet, truth))
        assert float(row["sheet_iou"]) == pytest.approx(iou(found & sheet, truth), abs=2e-3)
        assert float(row["sheet_baseline_iou"]) == pytest.approx(truth.sum() / sheet.sum())
        assert float(row["precision"]) == pytest.approx(truth[found].mean(), abs=2e-3)
        assert float(row["recall"]) == pytest.approx(found[truth].mean(), abs=2e-3)
        assert 0.5 < float(row["sheet_auc"]) < 1
        expected.append(iou(found, truth))
    summary = json.loads((log / "evaluation" / "summary.json").read_text())
    score = summary["scores"]["iou"]
    assert score["mean"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert min(expected) - 2e-3 <= score["low"] <= score["mean"] <= score["high"]
    gain = summary["scores"]["iou_gain"]["mean"]
    assert gain == pytest.approx(score["mean"] - summary["scores"]["baseline_iou"]["mean"])
    printed = capsys.readouterr().out
    assert f"{score['mean']:.3f}" in printed
    assert f"{summary['scores']['baseline_iou']['mean']:.3f}" in printed
    for name in ("metrics.csv", "summary.json", "predictions.png"):
        assert f"wrote {log / 'evaluation' / name}" in printed
        assert (log / "evaluation" / name).stat().st_size > 0
    assert sorted(p.name for p in (log / "evaluation").iterdir()) == [
        "metrics.csv",
        "predictions.png",
        "summary.json",
    ]


def test_summary_says_what_was_scored(data, log, tmp_path):
    output = tmp_path / "a" / "b"
    flags = ["--checkpoint", str(log / "checkpoints" / "best.pth"), "--data", str(data)]
    assert evaluate.main([*flags, "--volumes", "2", "--output", str(output), "--seed", "7"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["data"]["seed"] == 5 and summary["data"]["volumes"] == [0, 1]
    assert summary["bootstrap_seed"] == 7 and summary["epoch"] == 3 and summary["window"] == 24
    assert (
        ModelConfig.from_dict({k: v for k, v in summary["model"].items() if k != "parameters"})
        == THRESHOLD
    )
    assert summary["model"]["parameters"] == 1 + 2 + 1 + 2 + 1 + 1
    assert not (log / "evaluation").exists()


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_any_architecture_and_any_volume(data, tmp_path, arch, capsys):
    config = ModelConfig(arch=arch, depth=2, start_channels=2, num_stacks=2)
    log = make_log(tmp_path / "log", config, training_seed=5)
    flags = ["--checkpoint", str(log), "--data", str(data), "--volumes", "1"]
    assert evaluate.main([*flags, "--overlap", "0", "--window", "64"]) == 0
    summary = json.loads((log / "evaluation" / "summary.json").read_text())
    assert summary["scores"]["iou"]["low"] is None
    assert summary["data"]["training_file_of_this_seed"] == "train.h5"
    assert "trained on" in capsys.readouterr().out


def test_the_same_twice(data, log, tmp_path):
    for name in ("a", "b"):
        flags = ["--checkpoint", str(log), "--data", str(data), "--output", str(tmp_path / name)]
        assert evaluate.main(flags) == 0
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text())["scores"] for name in "ab"
    )
    assert first == second


BAD = [
    ({"--volumes": "0"}, "--volumes 0"),
    ({"--volumes": "4"}, "holds 3"),
    ({"--volumes": "many"}, "--volumes"),
    ({"--window": "0"}, "--window 0"),
    ({"--overlap": "1"}, "--overlap 1.0"),
    ({"--batch_size": "0"}, "--batch_size 0"),
    ({"--seed": "-1"}, "--seed -1"),
    ({"--device": "tpu"}, "--device"),
    ({"--checkpoint": "{tmp}/nothing"}, "nothing"),
    ({"--checkpoint": "{tmp}"}, "checkpoints"),
    ({"--checkpoint": "{tmp}/foreign.pth"}, "foreign.pth"),
    ({"--checkpoint": "{tmp}/text.pth"}, "text.pth"),
    ({"--checkpoint": "{tmp}/flat"}, "2D network"),
    ({"--checkpoint": "{tmp}/mixed"}, "do not fit"),
    ({"--data": "{tmp}/missing.h5"}, "missing.h5"),
    ({"--data": "{tmp}/text.pth"}, "text.pth"),
    ({"--output": "{tmp}/text.pth"}, "--output"),
    ({"--output": "{tmp}/text.pth/deeper"}, "--output"),
]


@pytest.fixture
def bad_inputs(tmp_path):
    torch.save({"x": 1}, tmp_path / "foreign.pth")
    (tmp_path / "text.pth").write_text("no checkpoint and no HDF5")
    make_log(tmp_path / "flat", ModelConfig(spatial_dims=2, depth=1))
    other = build_model(ModelConfig(depth=2)).state_dict()
    make_log(tmp_path / "mixed", ModelConfig(depth=1), weights=other)
    return tmp_path


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_mistakes_end_in_one_line_and_status_2(data, log, bad_inputs, capsys, changes, message):
    flags = {"--checkpoint": str(log), "--data": str(data)}
    flags |= {name: value.format(tmp=bad_inputs) for name, value in changes.items()}
    try:
        status = evaluate.main([text for pair in flags.items() for text in pair])
    except SystemExit as exit:
        status = exit.code
    shown = capsys.readouterr()
    assert status == 2
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not (log / "evaluation" / "metrics.csv").exists()


def test_a_scored_volume_that_cannot_be_read_leaves_no_results(data, log, monkeypatch, capsys):
    from utils.storage import StorageError

    def broken(self, index):
        raise StorageError(f"{self.path}: image of sample {index} cannot be read")

    monkeypatch.setattr(VolumeFile, "read_volume", broken)
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert list((log / "evaluation").iterdir()) == []


@pytest.mark.parametrize("interrupted", ["prepare", "score_volumes"])
def test_ctrl_c_is_one_line_at_any_moment(data, log, monkeypatch, capsys, interrupted):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, interrupted, stop)
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 130
    assert capsys.readouterr().err == "evaluate.py: interrupted before all results were written\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_one_line_with_a_remedy(data, log, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(evaluate, "score_one", fail)
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 1
    line = [part for part in capsys.readouterr().err.splitlines() if "evaluate.py" in part]
    assert len(line) == 1 and "out of memory: lower --batch_size or --window" in line[0]


@pytest.mark.parametrize(
    ("ious", "words"),
    [([0.5], ["only"]), ([0.2, 0.9], ["best", "worst"]), ([0.3, 0.1, 0.2, 0.5], None)],
)
def test_shown_volumes_are_the_extremes(ious, words):
    class Scored:
        def __init__(self, iou):
            self.scores = self
            self.iou = iou

    shown = evaluate.pick_shown([Scored(iou) for iou in ious])
    assert [word for word, _ in shown] == (words or ["best", "median", "worst"])
    assert shown[0][1].iou == max(ious) and shown[-1][1].iou == min(ious)


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, evaluate\n"
        "try: evaluate.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'h5py', 'monai', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout and "None" not in done.stdout
