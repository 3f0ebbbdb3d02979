"""What is gathered over an epoch, how long the others are said to take, and event files."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    PLUGIN_NAME,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from utils.errors import UserError
from utils.evaluation.confusion import Confusion
from utils.figures.learning import compared_slice
from utils.training import records
from utils.training.experiment import Example
from utils.training.options import TrainingOptions
from utils.training.records import (
    BEST_IOU,
    EVENT_FOLDER,
    Tally,
    estimate,
    event_files,
    scalars,
    write_epoch,
)

FLAGS = {"depth": 4, "arch": "unet", "start_lr": 1e-3, "resblocks": True, "train_files": ["a.h5"]}


def test_a_tally_gives_the_mean_over_samples_and_all_counts() -> None:
    tally = Tally("validation")
    tally.add(torch.tensor(0.5), torch.tensor([[0.9], [0.1], [0.8]]), torch.ones(3, 1))
    tally.add(torch.tensor(0.9), torch.tensor([[0.7]]), torch.zeros(1, 1))
    assert (tally.batches, tally.samples) == (0, 4)
    result = tally.result()
    assert result.loss == pytest.approx((3 * 0.5 + 0.9) / 4)
    assert (result.confusion, result.samples) == (Confusion(tp=2, fp=1, fn=1, tn=0), 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tally_names_the_first_batch_without_a_finite_loss(value: float) -> None:
    tally = Tally("epoch 3, training")
    patch = torch.zeros(2, 1)
    tally.add(torch.tensor(0.5), patch, patch)
    tally.read()
    for loss in (0.5, value, float("nan")):
        tally.add(torch.tensor(loss), patch, patch)
    with pytest.raises(UserError, match=f"loss is {value} in epoch 3, training, batch 3"):
        tally.result()


@pytest.mark.parametrize(
    ("options", "to_go"),
    [
        ({"epochs": 11}, "20:00"),
        ({"epochs": 1}, "00:00"),
        ({"epochs": 11, "max_minutes": 5.0}, "03:00"),
        ({"epochs": 11, "max_minutes": 500.0}, "20:00"),
        ({"epochs": 11, "max_minutes": 1.0}, "00:00"),
    ],
)
def test_the_estimate_goes_by_epochs_or_by_minutes(options: dict, to_go: str) -> None:
    record = {"epoch": 1, "seconds": 120.0, "minutes": 2.0}
    line = estimate(record, TrainingOptions(**options))
    assert line.startswith(f"about 02:00 an epoch, {to_go} to go at most: until ")


def record(epoch: int, iou: float = 0.5) -> dict[str, object]:
    return {
        "epoch": epoch,
        "train_loss": 1.0 / epoch,
        "valid_loss": 2.0 / epoch,
        "train_iou": iou,
        "valid_iou": iou - 0.1,
        "lr": 1e-3,
        "seconds": 7.5,
        "samples_per_second": 3.25,
    }


@pytest.fixture
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    masks = [np.zeros((8, 8, 8), np.float32) for _ in range(2)]
    masks[0][2:5, 1:3, 6], masks[1][4:, 4:, 2] = 1, 1
    return [(rng.random((8, 8, 8), np.float32), mask, 0.9 * mask) for mask in masks]


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def hparams(events: EventAccumulator, tag: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(events.PluginTagToContent(PLUGIN_NAME)[tag])


def test_every_number_of_every_epoch(tmp_path: Path, examples: list[Example]) -> None:
    history = []
    with event_files(tmp_path, FLAGS) as board:
        for epoch, iou in enumerate((0.3, 0.6, 0.5), 1):
            history.append(record(epoch, iou))
            write_epoch(board, history, examples)
    events = read(tmp_path / EVENT_FOLDER)
    for tag, name in (
        ("loss/train", "train_loss"),
        ("loss/valid", "valid_loss"),
        ("iou/valid", "valid_iou"),
        ("learning_rate", "lr"),
        ("speed/seconds_per_epoch", "seconds"),
        ("speed/samples_per_second", "samples_per_second"),
    ):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([r[name] for r in history])
    best = [point.value for point in events.Scalars(BEST_IOU)]
    assert best == pytest.approx([0.2, 0.5, 0.5])


def test_an_epoch_is_on_the_disk_before_the_run_ends(
    tmp_path: Path, examples: list[Example]
) -> None:
    with event_files(tmp_path, FLAGS) as board:
        for epoch in (1, 2):
            write_epoch(board, [record(epoch)], examples)
            points = read(tmp_path / EVENT_FOLDER).Scalars("loss/train")
            assert points[-1].step == epoch


def test_slices_of_every_epoch(tmp_path: Path, examples: list[Example]) -> None:
    with event_files(tmp_path, FLAGS) as board:
        for epoch in (1, 2):
            write_epoch(board, [record(epoch)], examples)
    events = read(tmp_path / EVENT_FOLDER)
    assert events.Tags()["images"] == ["examples/patch_1", "examples/patch_2"]
    shown = events.Images("examples/patch_1")
    assert [image.step for image in shown] == [1, 2]
    with Image.open(io.BytesIO(shown[0].encoded_image_string)) as picture:
        pixels = np.asarray(picture)
    np.testing.assert_allclose(pixels, 255 * compared_slice(*examples[0]), atol=1)


def test_hyperparameters_stand_beside_the_final_metrics(
    tmp_path: Path, examples: list[Example]
) -> None:
    with event_files(tmp_path, FLAGS) as board:
        write_epoch(board, [record(1, 0.6)], examples)
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # no folder of a second run
    events = read(tmp_path / EVENT_FOLDER)
    start = hparams(events, SESSION_START_INFO_TAG).session_start_info.hparams
    assert {name: value.number_value for name, value in start.items() if name != "arch"} == {
        "depth": 4,
        "start_lr": 1e-3,
        "resblocks": 1,
    }
    assert start["arch"].string_value == "unet"
    metrics = hparams(events, EXPERIMENT_TAG).experiment.metric_infos
    assert BEST_IOU in [metric.name.tag for metric in metrics]
    for metric in metrics:  # each names a curve that is there; its last value is shown
        assert events.Scalars(metric.name.tag)
    assert hparams(events, SESSION_END_INFO_TAG).session_end_info.status == 1  # success


def test_a_failed_run_is_not_marked_a_success(tmp_path: Path, examples: list[Example]) -> None:
    failing = pytest.raises(RuntimeError, match="diverged")
    with failing, event_files(tmp_path, FLAGS) as board:
        write_epoch(board, [record(1)], examples)
        raise RuntimeError("diverged")
    events = read(tmp_path / EVENT_FOLDER)
    assert SESSION_END_INFO_TAG not in events.PluginTagToContent(PLUGIN_NAME)
    assert len(events.Scalars("loss/train")) == 1


def test_a_resumed_run_shows_no_epoch_twice(tmp_path: Path, examples: list[Example]) -> None:
    first = [record(epoch, 0.2) for epoch in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt), event_files(tmp_path, FLAGS) as board:
        for epoch in (1, 2, 3):  # epoch 3 is written, but the run dies before its checkpoint
            write_epoch(board, first[:epoch], examples)
        raise KeyboardInterrupt
    second = first[:2] + [record(epoch, 0.8) for epoch in (3, 4)]
    with event_files(tmp_path, FLAGS, first_epoch=3) as board:
        for epoch in (3, 4):
            write_epoch(board, second[:epoch], examples)
    events = read(tmp_path / EVENT_FOLDER)
    points = events.Scalars("iou/train")
    assert [point.step for point in points] == [1, 2, 3, 4]
    assert [point.value for point in points] == pytest.approx([0.2, 0.2, 0.8, 0.8])
    assert [image.step for image in events.Images("examples/patch_1")] == [1, 2, 3, 4]


def test_what_is_no_finite_number_is_left_out() -> None:
    odd = {**record(1), "note": "text", "nothing": None, "train_auc": float("nan"), "extra": 2}
    values = scalars([odd])
    assert values["other/extra"] == 2.0
    assert not {"other/note", "other/nothing", "auc/train", "other/epoch"} & set(values)


def test_without_the_package_a_line_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(logging.getLogger("utils.training"), "propagate", True)
    with event_files(tmp_path, FLAGS) as board:
        assert board is None
    (line,) = caplog.messages
    assert "pip install tensorboard" in line and "--no-tensorboard" in line
    assert not list(tmp_path.iterdir())


def test_the_package_is_imported_when_training_starts() -> None:
    code = (
        f"import sys, {records.__name__};"
        "sys.exit('tensorboard' in sys.modules or 'torch.utils.tensorboard' in sys.modules)"
    )
    root = Path(records.__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=240)
