"""Networks known by name: what their file keeps, their card's numbers, and how they are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models import ModelConfig, build_model, count_parameters
from utils.checkpoints import loading
from utils.checkpoints.loading import (
    find_pretrained,
    load_checkpoint,
    log_directory,
    pretrained_names,
    save_pretrained,
)
from utils.errors import UserError
from utils.training.experiment import Experiment

CONFIG = ModelConfig(depth=2, start_channels=2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log directory as training leaves it, on a machine with absolute paths."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    flags: dict[str, Any] = {"seed": 0, "depth": 2, "train_files": ["/lab/a.h5", "b.h5"]}
    flags |= {
        "log_path": "/x",
        "resblocks": True,
        "on_the_fly": False,
        "mix": None,
        "normalizer": "",
    }
    config = {
        "flags": flags,
        "parameters": count_parameters(model),
        "ancestor": {"checkpoint": "/lab/first", "epoch": 7, "sha256": "abc"},
        "data": {"train": [{"file": "/lab/a.h5", "seed": 512, "samples": 7, "version": "2.0.0"}]},
        "compute": {"device": "cpu", "precision": "bf16-mixed"},
    }
    experiment = Experiment.create(tmp_path / "logs" / "run", config, __file__)
    epochs = [{"epoch": k, "seconds": 1800.0} for k in (1, 2, 3)]
    experiment.update_log(epochs=epochs)
    experiment.update_log(exit={"reason": "completed 3 epochs", "status": 0})
    state = {
        "model_config": CONFIG.to_dict(),
        "model_state": model.state_dict(),
        "normalizer": {"low_percent": 1.0, "high_percent": 99.0},
        "spacing_voxels": [9.0, 10.0, 11.0],
        "patch_size": 16,
        "flags": flags,
        "epoch": 2,
        "metrics": {"valid_iou": 0.5},
        "trust": {"offset": -2.0, "slope": 1.5, "low": -0.6, "high": 0.4},
        "optimizer_state": {"large": torch.zeros(1000)},
    }
    experiment.save_checkpoint("best.pth", state)
    return experiment.directory


def write_evaluation(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    summary = {
        "scores": {
            "iou": {"mean": 0.6125, "low": 0.5, "high": 0.71, "volumes": 5},
            "hd95": {"mean": None, "low": None, "high": None, "volumes": 0},
            "surface_dice": {"mean": 0.8, "low": None, "high": None, "volumes": 1},
            "unnamed": {"mean": 0.1, "low": 0.1, "high": 0.1, "volumes": 1},
        },
        "checkpoint": "columns",
        "epoch": 2,
        "model": {**CONFIG.to_dict(), "parameters": 1},
        "window": 16,
        "overlap": 0.25,
        "data": {"file": "/lab/val.h5", "seed": 9999, "shape": [8, 9, 10], "volumes": [0, 1]},
    }
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    return folder


def save(log: Path, folder: Path, evaluation: Path | None = None, **options: Any) -> Path:
    state = load_checkpoint(log)
    return save_pretrained("columns", state, log, evaluation, folder=folder, **options)[0]


def test_the_file_is_small_plain_and_predicts_nearly_the_same(log: Path, tmp_path: Path) -> None:
    file = save(log, tmp_path / "pretrained")
    stored = torch.load(file, weights_only=True)["model_state"]
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {torch.bfloat16}
    vectors = [t for t in stored.values() if t.ndim == 1]
    assert vectors and {tensor.dtype for tensor in vectors} == {torch.float32}
    before, after = load_checkpoint(log), load_checkpoint(file)
    same = (
        "model_config",
        "normalizer",
        "spacing_voxels",
        "patch_size",
        "epoch",
        "metrics",
        "trust",
    )
    assert all(before[name] == after[name] for name in same) and "optimizer_state" not in after
    answers = []
    image = torch.rand(1, 1, 16, 16, 16)
    for state in (before, after):
        model = build_model(ModelConfig.from_dict(state["model_config"]))
        model.load_state_dict(state["model_state"])
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        with torch.inference_mode():
            answers.append(torch.sigmoid(model.eval()(image)))
    difference = (answers[0] - answers[1]).abs().max()
    assert 0 < difference < 0.02
    for name, tensor in before["model_state"].items():
        assert torch.equal(
            after["model_state"][name], tensor.to(stored[name].dtype).to(tensor.dtype)
        )


def test_the_card_tells_what_the_records_hold(log: Path, tmp_path: Path) -> None:
    file = save(log, tmp_path / "p", hardware="a toaster")
    text = file.with_suffix(".md").read_text()
    assert "Not evaluated yet." in text
    evaluation = write_evaluation(tmp_path / "scores")
    save(log, tmp_path / "p", evaluation, overwrite=True, hardware="a toaster")
    text = " ".join(file.with_suffix(".md").read_text().split())
    parameters = json.loads((log / "config.json").read_text())["parameters"]
    for words in (
        f"{file.stat().st_size:,} bytes",
        f"{parameters:,} parameters",
        "start_channels 2",
        "columns 9.00 x 10.00 x 11.00 voxels apart",
        "train: file a.h5, seed 512, samples 7, version 2.0.0",
        "epoch 2 of 3 trained; 1.0 of 1.5 hours; the run ended: completed 3 epochs",
        "a toaster; cpu, bf16-mixed",
        "began with first, epoch 7, weights of SHA-256 abc",
        "--train_files a.h5 b.h5",
        "--seed 0",
        "--resblocks",
        "Of this file, on 2 whole volumes of 8 x 9 x 10 voxels (`val.h5`, seed 9999)",
        "| IoU, whole volume | 0.613 | 0.500 to 0.710 |",
        "| surface Dice | 0.800 | - to - |",
        "columns about 10.0 voxels apart",
    ):
        assert words in text, words
    assert "/lab" not in text
    assert not any(flag in text for flag in ("--log_path", "--on_the_fly", "--mix", "--normalizer"))
    assert "HD95" not in text and "unnamed" not in text
    assert b"/lab/" not in file.read_bytes()


def test_the_card_of_a_network_of_labelled_stacks(log: Path, tmp_path: Path) -> None:
    config = json.loads((log / "config.json").read_text())
    stack = {"file": "/lab/crop.tif", "box": [[0, 64], [0, 48]], "annotated": 900, "labelled": 300}
    config["data"] = {"train": [stack, {"file": "/lab/a.h5", "seed": 512, "in_a_batch": 2}]}
    config["flags"] |= {"train_files": ["/lab/crop.tif=/lab/l.tif"], "voxel_size": [1.0, 0.5, 0.5]}
    (log / "config.json").write_text(json.dumps(config))
    given = {"file": "/lab/next", "volumes": [0], "stacks": [{"name": "a", "shape": [8, 9, 10]}]}
    score = {"mean": 0.7, "low": None, "high": None, "volumes": 1}
    scores = {"iou": score, "recall_labelled": score}
    evaluation = write_evaluation(tmp_path / "scores", data=given, scores=scores)
    text = save(log, tmp_path / "p", evaluation).with_suffix(".md").read_text()
    for words in (
        "file crop.tif, box 0,64 0,48, annotated 900, labelled 300",
        "--train_files crop.tif=l.tif",
        "--voxel_size 1.0,0.5,0.5",
        "on 1 labelled stacks (`next`), windows of 16",
        "| recall in labelled columns | 0.700 | - to - |",
        "It has been trained on the labelled stacks above",
    ):
        assert words in " ".join(text.split()), words
    assert "simulated volumes only" not in text and "/lab" not in text


def test_an_evaluation_of_the_unrounded_weights_says_so(log: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "scores", checkpoint="logs/columns")
    text = save(log, tmp_path / "p", evaluation).with_suffix(".md").read_text()
    assert "before rounding to bfloat16" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "of another network .epoch 3"),
        ({"model": {**CONFIG.to_dict(), "depth": 4}}, "of another network"),
        ({"model": {}}, "of another network"),
        ({"model": None}, "of another network"),
    ],
)
def test_scores_of_another_network_are_refused(
    log: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    evaluation = write_evaluation(tmp_path / "scores", **changes)
    with pytest.raises(UserError, match=message):
        save(log, tmp_path / "p", evaluation)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("content", [b"[1, 2]", b"null", b"{", b"\xff\xfe\x00"])
def test_what_is_no_summary_is_one_line(log: Path, tmp_path: Path, content: bytes) -> None:
    evaluation = write_evaluation(tmp_path / "scores")
    (evaluation / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match="summary.json is damaged or no record of ours"):
        save(log, tmp_path / "p", evaluation)
    assert not (tmp_path / "p").exists()


def test_missing_and_damaged_records_are_named(log: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.summary.json: cannot be read .No such file"):
        save(log, tmp_path / "p", tmp_path / "none")
    (log / "logs.json").write_text("{")
    with pytest.raises(UserError, match="logs.json is damaged"):
        save(log, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_names_and_sizes_are_checked(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "p"
    state = load_checkpoint(log)
    with pytest.raises(UserError, match="'../x' is no name"):
        save_pretrained("../x", state, log, folder=folder)
    size = save(log, folder).stat().st_size
    with pytest.raises(UserError, match="exists already; --overwrite"):
        save(log, folder)
    monkeypatch.setattr(loading, "MOST_BYTES", size)
    with pytest.raises(UserError, match=f"{size:,} bytes in bfloat16, and less than"):
        save_pretrained("large", state, log, folder=folder)
    assert sorted(path.name for path in folder.iterdir()) == ["columns.md", "columns.pth"]


def test_a_name_loads_where_no_path_is(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pretrained"
    file = save(log, folder)
    assert pretrained_names(folder) == ["columns"]
    assert find_pretrained("columns", folder) == file and find_pretrained("x", folder) is None
    assert find_pretrained("folder/columns", folder) is None
    monkeypatch.setattr(loading.find_pretrained, "__defaults__", (folder,))
    monkeypatch.setattr(loading.pretrained_names, "__defaults__", (folder,))
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("columns")["epoch"] == 2
    assert log_directory("columns") == Path("logs/columns")
    with pytest.raises(UserError, match="coloms does not exist .*by name: columns"):
        load_checkpoint("coloms")
    torch.save({"format": 1, "model_state": {}, "epoch": 7}, tmp_path / "columns")
    assert load_checkpoint("columns")["epoch"] == 7  # a path that exists wins


def test_records_stand_in_the_log_directory(log: Path, tmp_path: Path) -> None:
    assert log_directory(log) == log
    assert log_directory(log / "checkpoints" / "last.pth") == log
    assert log_directory(tmp_path / "moved.pth") == tmp_path


def test_networks_in_the_program_are_small_and_fit_their_configuration() -> None:
    for name in pretrained_names():
        file = find_pretrained(name)
        assert file is not None and file.stat().st_size < loading.MOST_BYTES
        assert f"{file.stat().st_size:,} bytes" in file.with_suffix(".md").read_text()
        state = load_checkpoint(name)
        build_model(ModelConfig.from_dict(state["model_config"])).load_state_dict(
            state["model_state"]
        )


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ({"shape": [64, 64, 64], "gain_range": [10, 29]}, "preset reference on the fly, share 1,"),
        (
            {"shape": [64, 64, 64], "sheet": {"spacing": [5, 16]}},
            "preset wide on the fly, share 1,",
        ),
        (
            [{"preset": "wide", "share": 0.75, "shape": [64, 64, 64]}],
            "wide on the fly, share 0.75,",
        ),
    ],
)
def test_a_stream_is_named_by_its_presets(stream: Any, words: str) -> None:
    card = loading._describe_data({"train": {"on_the_fly": stream, "seed": 3}})
    assert words in card and "64 x 64 x 64 voxels" in card and "seed 3" in card
    assert "gain_range" not in card and "spacing" not in card
