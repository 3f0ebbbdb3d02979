"""The 2D training script end to end, on few images: flags, refusals, records, the test set."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_basic_2dunet
from models import ModelConfig, build_model
from tests.conftest import run_and_time
from tests.test_train_basic_3dunet import OUR_DEFAULTS, REFERENCE_DEFAULTS
from train_basic_2dunet import main, parse_flags
from utils.checkpoints.loading import load_checkpoint
from utils.data import KeypointDetectionFake2DDataset, SegmentationFake2DDataset
from utils.provenance import DATA_VERSION

SCRIPT = Path(train_basic_2dunet.__file__)
OF_3D_ONLY = (
    *("data_dir", "train_files", "val_files", "patch_size"),
    *("patches_per_epoch", "background_threshold", "on_the_fly", "patches_per_volume"),
    *("preset", "presets", "config", "mix"),
)
DEFAULTS_2D = {
    "L_train": 128,
    "L_validate": 32,
    "L_test": 32,
    "train_file": "./train_dataset.h5",
    "validation_file": "./validation_dataset.h5",
    "test_file": "./test_dataset.h5",
    "objective": "segmentation",
    "num_workers": 0,
    "overwrite": False,
}


@pytest.fixture
def drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a training that takes seconds, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return [
        *("--L_train", "4", "--L_validate", "2", "--L_test", "3", "--experiment_title", "tiny"),
        *("--depth", "2", "--start_channels", "2", "--batch_size", "2", "--epochs", "1"),
        *("--device", "cpu", "--precision", "32"),
    ]


@pytest.fixture
def tiny(drawing: list[str], unrendered: None) -> list[str]:
    """The same, and no picture is rendered."""
    return drawing


def read_log(folder: Path) -> dict:
    return json.loads((folder / "logs" / "tiny" / "logs.json").read_text())


def test_defaults_are_those_of_the_reference() -> None:
    shared = {name: value for name, value in OUR_DEFAULTS.items() if name not in OF_3D_ONLY}
    assert vars(parse_flags([])) == {**REFERENCE_DEFAULTS, **shared, **DEFAULTS_2D}


def test_augmented_images_train(tiny: list[str], tmp_path: Path) -> None:
    losses = []
    for level in ("none", "full"):
        assert main([*tiny, "--augment", level, "--log_path", level]) == 0
        log = json.loads((tmp_path / level / "tiny" / "logs.json").read_text())
        losses.append(log["epochs"][0]["train_loss"])
    assert losses[0] != losses[1]


def test_help_comes_at_once_and_names_every_flag() -> None:
    answer, seconds = run_and_time([sys.executable, str(SCRIPT), "--help"])
    assert seconds < 1 and answer.returncode == 0
    assert all(f"--{name}" in answer.stdout for name in vars(parse_flags([])))


def test_segmentation_end_to_end(
    drawing: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(drawing) == 0
    assert "test, network of epoch 1: iou 0." in capsys.readouterr().out
    log = read_log(tmp_path)
    assert log["exit"]["status"] == 0 and len(log["epochs"]) == 1
    for name in ("iou", "dice", "total_error"):
        assert 0 <= log["test"][name] <= 1
    for name, seed, count in (("train", 111, 4), ("validation", 999, 2), ("test", 2222, 3)):
        made = SegmentationFake2DDataset(L=count, h5path=tmp_path / f"{name}_dataset.h5")
        assert made.seed == seed and len(made) == count
    config = json.loads((tmp_path / "logs" / "tiny" / "config.json").read_text())
    expected = {"file": "test_dataset.h5", "seed": 2222, "samples": 3, "version": DATA_VERSION}
    assert config["data"]["test"] == expected
    assert config["model"]["spatial_dims"] == 2
    assert {path.name for path in (tmp_path / "logs" / "tiny").iterdir()} == {
        *("config.json", "logs.json", "checkpoints", "train_basic_2dunet.py"),
        *("learning_curves.png", "predictions.png", "tensorboard"),
    }


def test_the_test_scores_are_those_of_the_checkpoint(tiny: list[str], tmp_path: Path) -> None:
    assert main([*tiny, "--epochs", "2"]) == 0
    best = load_checkpoint(tmp_path / "logs" / "tiny")
    model = build_model(ModelConfig.from_dict(best["model_config"]))
    model.load_state_dict(best["model_state"])
    tp = fp = fn = 0
    with torch.inference_mode():
        for image, mask in SegmentationFake2DDataset(L=3, seed=2222):
            found = model.eval()(image[None])[0].numpy() >= 0
            labelled = mask.numpy() > 0
            tp += np.sum(found & labelled)
            fp += np.sum(found & ~labelled)
            fn += np.sum(~found & labelled)
    record = read_log(tmp_path)["test"]
    assert record["epoch"] == best["epoch"]
    assert record["iou"] == pytest.approx(tp / (tp + fp + fn), abs=1e-3)
    low, high = 10 * 1.28 * 0.9, 10 * 1.28 * 1.5
    assert len(best["spacing_voxels"]) == 2 and low < best["spacing_voxels"][0] < high
    plain = {"low_percent": 1.0, "high_percent": 99.0, "rule": "percentiles"}
    assert best["normalizer"] == plain


def test_keypoints_end_to_end_in_memory(tiny: list[str], tmp_path: Path) -> None:
    files = [part for name in ("train", "validation", "test") for part in (f"--{name}_file", "")]
    stacked = ["--objective", "keypoints", "--arch", "stacked_unet", "--num_stacks", "2"]
    assert main([*tiny, *files, *stacked, "--loss_type", "weighted_bce"]) == 0
    record = read_log(tmp_path)["test"]
    assert {"precision", "recall", "mean_distance", "iou"} <= set(record)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


class PerfectKeypoints(torch.nn.Module):
    """Answers each image of a data set with the logits of its true heat map, moved by ``shift``."""

    def __init__(self, data: KeypointDetectionFake2DDataset, shift: int) -> None:
        super().__init__()
        self.data = data
        self.shift = shift
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        match = [i for i in range(len(self.data)) if torch.equal(self.data[i][0], images[0])]
        heat = self.data[match[0]][1][None].clamp(1e-4, 1 - 1e-4)
        return torch.logit(torch.roll(heat, self.shift, dims=2))


@pytest.mark.parametrize(("shift", "low", "high"), [(0, 0.2, 0.5), (2, 1.8, 2.3)])
def test_keypoint_scores_of_a_known_network(shift: int, low: float, high: float) -> None:
    data = KeypointDetectionFake2DDataset(L=3, seed=5, with_centres=False)
    scores = train_basic_2dunet.score_keypoints(PerfectKeypoints(data, shift), data)
    assert scores["precision"] > 0.9 and scores["recall"] > 0.9
    assert low < scores["mean_distance"] < high


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--L_train", "0"], "--L_train 0: must be at least 1"),
        (["--L_test", "-2"], "--L_test -2: must be at least 1"),
        (["--train_file", "nowhere/a.h5"], "nowhere/a.h5: the folder"),
        (["--test_file", "."], "--test_file .: is a folder"),
        (["--test_file", "validation_dataset.h5"], "--test_file: each set needs a file of its own"),
        (["--depth", "0"], "--depth 0"),
        (["--conv_kernel_size", "4"], "--conv_kernel_size 4"),
        (["--depth", "8", "--L_train", "1"], "a single patch a step: with images with an edge of"),
        (["--depth", "9"], "images with an edge of 128: must be at least 256"),
        (["--MAX_PARAMS", "10"], "outside the bounds"),
        (["--objective", "masks"], "--objective"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_log(
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    try:
        status = main([*tiny, *flags])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_data_file_of_another_seed_is_refused(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SegmentationFake2DDataset(L=4, seed=7, h5path=tmp_path / "train_dataset.h5")
    assert main(tiny) == 2
    error = capsys.readouterr().err
    assert "train_dataset.h5: other parameters: seed is 7, asked for 111; --overwrite" in error
    assert not (tmp_path / "logs").exists()


def test_more_images_than_a_file_has_need_overwrite(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"{name}_dataset.h5" for name in ("train", "validation", "test")}
    assert main([*tiny, "--experiment_title", "before"]) == 0
    kept = files["validation"].stat().st_mtime_ns
    more = [*tiny, "--L_train", "6"]
    assert main(more) == 2
    error = capsys.readouterr().err
    assert "L (number of samples) is 4, asked for 6; --overwrite makes it anew" in error
    assert len(SegmentationFake2DDataset(L=4, h5path=files["train"])) == 4
    assert main([*more, "--overwrite"]) == 0
    assert len(SegmentationFake2DDataset(L=6, seed=111, h5path=files["train"])) == 6
    assert files["validation"].stat().st_mtime_ns == kept
    resumed = parse_flags(["--experiment_title", "tiny", "--resume"])
    assert resumed.L_train == 6 and not resumed.overwrite


def test_overwrite_leaves_a_file_that_is_no_data_set(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "train_dataset.h5").write_text("my notes")
    assert main([*tiny, "--overwrite"]) == 2
    assert (tmp_path / "train_dataset.h5").read_text() == "my notes"
