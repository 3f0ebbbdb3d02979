"""Trainings on labelled stacks, end to end on tiny ones: what is read, held out, mixed, refused."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader

import train_basic_2dunet
import train_basic_3dunet
from utils.checkpoints.loading import load_checkpoint
from utils.data import AugmentedDataset
from utils.prediction.network_voxels import SpacingEstimate
from utils.simulation import VolumeConfig, sample_rng, simulate_volume
from utils.simulation.streams import Purpose, make_rng
from utils.storage import VolumeSet, write_simulated_file
from utils.training import labelled_stacks
from utils.training.labelled_stacks import load_labelled
from utils.training.losses import LossByParts

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("unrendered"),
]
NOT_ANNOTATED = 9


def write_tif(path: Path, array: np.ndarray) -> Path:
    """Write (X, Y, Z) or (X, Y) as ImageJ has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array.T)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_config: VolumeConfig) -> Path:
    """A stack with labels of all, of two planes, and wrong ones; a file; a trained network."""
    lab = tmp_path_factory.mktemp("lab")
    volume = simulate_volume(tiny_config, sample_rng(5, 0))
    write_tif(lab / "stack.tif", volume.image.astype(np.float32))
    write_tif(lab / "labels.tif", volume.instances.astype(np.uint16))
    busy = np.argsort(volume.mask.sum((0, 1)))[-2:]
    planes = np.full(volume.mask.shape, NOT_ANNOTATED, np.uint8)
    planes[..., busy] = volume.mask[..., busy]
    write_tif(lab / "planes.tif", planes)
    write_tif(lab / "annotated.tif", (planes != NOT_ANNOTATED).astype(np.uint8))
    wrong = {
        "smaller": planes[:20],
        "empty": 0 * planes,
        "fractions": volume.mask * np.float32(0.5),
        "ignored": np.full_like(planes, NOT_ANNOTATED),
    }
    for name, array in wrong.items():
        write_tif(lab / f"{name}.tif", array)
    (lab / "damaged.tif").write_bytes(b"II*\0 and no more")
    for images, labels, ending in (("images", "labels", ""), ("imagesTr", "labelsTr", "_0000")):
        root = lab / ("ours" if images == "images" else "nnunet")
        write_tif(root / images / f"a{ending}.tif", volume.image.astype(np.float32))
        write_tif(root / labels / "a.tif", volume.instances.astype(np.uint16))
    write_simulated_file(lab / "volumes.h5", VolumeSet(tiny_config, 1, 3))
    logger = logging.getLogger("utils.training")
    before = list(logger.handlers), logger.propagate
    first = ["--train_files", f"{lab}/volumes.h5", "--val_files", f"{lab}/volumes.h5"]
    network = ["--depth", "2", "--start_channels", "2"]
    assert train_basic_3dunet.main([*flags(lab, "first"), *network, *first]) == 0
    logger.handlers[:], logger.propagate = before
    return lab


def flags(lab: Path, title: str) -> list[str]:
    return [
        *("--log_path", str(lab / "logs"), "--experiment_title", title, "--patch_size", "8"),
        *("--batch_size", "4", "--num_workers", "0", "--device", "cpu", "--precision", "32"),
        *("--epochs", "1", "--no-tensorboard"),
    ]


def pair(lab: Path, *names: str) -> str:
    return "=".join(str(lab / f"{name}.tif") for name in names)


SPARSE = ["--ignore_label", str(NOT_ANNOTATED), "--patches_per_epoch", "8"]


def test_two_planes_are_trained_on_from_a_network(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With half of each batch from a file; the second half of the run is resumed."""
    taken = []
    forward = LossByParts.forward
    monkeypatch.setattr(
        LossByParts,
        "forward",
        lambda loss, *batch: taken.append(loss.parts) or forward(loss, *batch),
    )
    given = ["--train_files", pair(lab, "stack", "planes"), f"{lab}/volumes.h5", *SPARSE]
    more = ["--init", str(lab / "logs" / "first"), "--mix", "0.5"]
    assert train_basic_3dunet.main([*flags(lab, "sparse"), *given, *more]) == 0
    output = capsys.readouterr().out
    assert "2,048 annotated (6.25 %)" in output and "columns" in output
    assert "2 simulated and 2 labelled patches in every batch" in output
    assert "augmentation full" in output and "held out" in output
    assert taken == [(2, 2)] * 2  # in training alone

    directory = lab / "logs" / "sparse"
    config = json.loads((directory / "config.json").read_text())
    *files, crop = config["data"]["train"]
    (held_out,) = config["data"]["validation"]
    assert [(entry["samples"], entry["in_a_batch"]) for entry in files] == [(3, 2)]
    assert config["ancestor"]["checkpoint"] == str(lab / "logs" / "first")
    apart = [a[1] <= b[0] for a, b in zip(crop["box"], held_out["box"], strict=True)]
    assert sum(apart) == 1, "one plane divides them"
    assert crop["annotated"] + held_out["annotated"] == 2048
    assert 0.1 < held_out["annotated"] / 2048 < 0.3
    first, second = load_checkpoint(lab / "logs" / "first"), load_checkpoint(directory)
    assert second["spacing_voxels"] == pytest.approx([np.mean(first["spacing_voxels"])] * 3)

    shutil.copytree(directory, directory.with_name("again"))
    moved = ["--train_files", pair(lab, "stack", "planes"), f"{lab}/volumes.h5"]
    assert train_basic_3dunet.main([*flags(lab, "again"), "--resume", *moved, "--epochs", "2"]) == 0
    log = json.loads((directory.with_name("again") / "logs.json").read_text())
    assert [entry["epoch"] for entry in log["epochs"]] == [1, 2]


def test_volumes_on_the_fly_are_mixed_in_of_any_preset(
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_config: VolumeConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def live(flags: argparse.Namespace, files: list) -> VolumeConfig:
        asked.append((flags.presets, files))
        return tiny_config

    monkeypatch.setattr(train_basic_3dunet, "live_volumes", live)
    given = ["--train_files", str(lab / "ours"), "--val_files", str(lab / "nnunet"), "--depth", "2"]
    mixed = ["--mix", "0.25", "--presets", "wide=0.5,reference=0.5", "--patches_per_epoch", "8"]
    assert train_basic_3dunet.main([*flags(lab, "live"), *given, *mixed]) == 0
    assert asked == [("wide=0.5,reference=0.5", [])]
    assert "volumes on the fly, 8 patches of each\n" in capsys.readouterr().out
    data = json.loads((lab / "logs" / "live" / "config.json").read_text())["data"]
    assert [entry["in_a_batch"] for entry in data["train"]] == [1, 3]
    assert data["train"][0]["on_the_fly"] == tiny_config.to_dict()


def test_presets_beside_labelled_stacks(lab: Path, tiny_config: VolumeConfig) -> None:
    def volumes(*given: str, files: tuple[Path, ...] = ()) -> object:
        parsed = train_basic_3dunet.parse_flags(["--train_files", str(lab / "ours"), *given])
        return train_basic_3dunet.live_volumes(parsed, list(files))

    both = volumes("--mix", "0.5")
    assert [share for _, share in both.parts] == [0.75, 0.25]
    assert [s for _, s in volumes("--mix", "1", "--presets", "wide=0.7, reference=0.3").parts] == [
        *(0.7, 0.3)
    ]
    assert both.configs[0].shape == (128, 128, 128)
    assert len(volumes("--mix", "0.5", "--preset", "wide").parts) == 1
    assert volumes("--mix", "0.5", files=(lab / "volumes.h5",)) == tiny_config


def test_simulated_training_is_validated_on_labelled_stacks(lab: Path) -> None:
    given = ["--train_files", f"{lab}/volumes.h5", "--val_files", pair(lab, "stack", "labels")]
    assert train_basic_3dunet.main([*flags(lab, "judged"), "--depth", "2", *given]) == 0
    data = json.loads((lab / "logs" / "judged" / "config.json").read_text())["data"]
    assert data["train"][0]["samples"] == 3 and data["validation"][0]["annotated"] == 32**3


def test_defaults_suit_little_data(lab: Path) -> None:
    parse = train_basic_3dunet.parse_flags
    labelled = ["--train_files", str(lab / "ours")]
    parsed = parse(labelled)
    assert (parsed.augment, parsed.val_files, parsed.val_share) == ("full", None, 0.2)
    assert parsed.patches_per_epoch == 256
    parsed = parse([*labelled, "--augment", "none", "--val_files", "vol_val_set.h5"])
    assert (parsed.augment, parsed.val_files, parsed.val_share) == (
        *("none", ["vol_val_set.h5"]),
        None,
    )
    assert parse([*labelled, "--recipe", "reference"]).augment == "none"
    assert parse([]).val_share is None and parse([]).augment == "none"
    images = train_basic_2dunet.parse_flags(["--train_file", str(lab / "ours")])
    assert (images.validation_file, images.test_file, images.val_share) == (None, None, 0.2)
    assert train_basic_2dunet.parse_flags(["--train_file", ""]).augment == "none"
    unnamed = ["--train_file", str(lab / "ours"), "--validation_file", ""]
    assert train_basic_2dunet.parse_flags(unnamed).val_share == 0.2


Given = Callable[[Path], list[str]]
BAD: list[tuple[Given, str]] = [
    (lambda lab: [pair(lab, "stack", "smaller")], "smaller.tif: has shape (20, 32, 32)"),
    (lambda lab: [pair(lab, "stack", "empty")], "empty.tif: no voxel is labelled"),
    (lambda lab: [pair(lab, "stack", "fractions")], "fractions.tif: holds fractions"),
    (
        lambda lab: [pair(lab, "stack", "ignored"), "--ignore_label", "9"],
        "ignored.tif: no voxel is annotated",
    ),
    (lambda lab: [pair(lab, "stack", "damaged")], "damaged.tif"),
    (lambda lab: [pair(lab, "stack", "absent")], "absent.tif"),
    (lambda lab: [pair(lab, "damaged", "labels")], "damaged.tif"),
    (lambda lab: [str(lab / "logs")], "no labelled stacks: it must hold images/ and labels/"),
    (lambda lab: [str(lab / "ours"), "--mix", "0"], "--mix 0.0: must lie between 0 and 1"),
    (lambda lab: [str(lab / "ours"), "--mix", "0.05"], "--mix 0.05: of a batch of 4 patches"),
    (lambda lab: [f"{lab}/volumes.h5", "--mix", "0.5"], "--train_files names none"),
    (lambda lab: [str(lab / "ours"), f"{lab}/volumes.h5"], "say with --mix, such as 0.5"),
    (lambda lab: [str(lab / "ours"), "--on_the_fly"], "say with --mix, such as 0.5"),
    (lambda lab: [str(lab / "ours"), "--val_share", "1"], "--val_share 1.0: must lie between"),
    (lambda lab: [str(lab / "ours"), "--scale", "0"], "--scale 0.0: must be auto or lie in"),
    (
        lambda lab: [
            *(str(lab / "ours"), "--val_share", "0.2", "--val_files"),
            str(lab / "ours"),
        ],
        "--val_share: holds a part of labelled training stacks out",
    ),
    (
        lambda lab: [str(lab / "nnunet"), "--val_files", str(lab / "nnunet")],
        "labelsTr/a.tif: is named to train on and to validate on",
    ),
    (
        lambda lab: [str(lab / "ours"), "--val_files", str(lab / "ours"), f"{lab}/volumes.h5"],
        "--val_files: give labelled stacks or files of simulated volumes, not both",
    ),
    (
        lambda lab: [f"{lab}/volumes.h5", "--val_files", f"{lab}/volumes.h5", "--channel", "0"],
        "--channel: is for labelled stacks, and none are named",
    ),
    (lambda lab: [str(lab / "ours"), "--preset", "wide"], "--mix beside labelled stacks"),
    (
        lambda lab: [str(lab / "ours"), f"{lab}/volumes.h5", "--mix", "0.5", "--preset", "wide"],
        "--preset: is for volumes simulated meanwhile; give --on_the_fly too, or --mix",
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_is_one_line_before_anything_is_written(
    lab: Path, given: Given, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*flags(lab, "bad"), "--depth", "2", "--train_files", *given(lab)]
    assert train_basic_3dunet.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (lab / "logs" / "bad").exists()


def labelled(**changes: object) -> argparse.Namespace:
    """Return the flags of reading."""
    nothing = dict.fromkeys(("channel", "axes", "voxel_size", "ignore_label", "val_share"))
    return argparse.Namespace(**{**nothing, "scale": "auto", "seed": 0, **changes})


def test_a_value_and_a_mask_say_the_same_to_any_number_of_workers(lab: Path) -> None:
    """Augmented items, and batches of two processes that load, to the bit."""
    sizes = {"patch_size": 8, "spatial_dims": 3, "patches": (8, None)}
    sets = [
        AugmentedDataset(load_labelled(given, [pair(lab, *names)], [], **sizes).train, "full")
        for given, names in (
            (labelled(ignore_label=NOT_ANNOTATED), ("stack", "planes")),
            (labelled(), ("stack", "labels", "annotated")),
        )
    ]
    for one in sets:
        one.set_epoch(3)
    batches = list(DataLoader(sets[1], batch_size=4, num_workers=2))
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert set(targets.unique().tolist()) == {-1.0, 0.0, 1.0}
    for k in range(8):
        image, target = sets[0][k]
        assert torch.equal(image, images[k]) and torch.equal(target, targets[k])
        assert (target >= 0).any()


def test_volumes_on_the_fly_tell_their_spacing_not_the_stacks_to_validate_on(
    lab: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: VolumeConfig
) -> None:
    monkeypatch.setattr(train_basic_3dunet, "live_volumes", lambda flags, files: tiny_config)
    given = ["--on_the_fly", "--patches_per_epoch", "4", "--depth", "2"]
    given += ["--val_files", pair(lab, "stack", "labels")]
    assert train_basic_3dunet.main([*flags(lab, "alone"), *given]) == 0
    live = load_checkpoint(lab / "logs" / "alone")["spacing_voxels"]
    drawn = [simulate_volume(tiny_config, make_rng(Purpose.LIVE_VOLUME, 0, 0, k)) for k in range(8)]
    shape = tiny_config.shape
    expected = np.median([v.parameters.spacing_voxels(shape) for v in drawn], axis=0)
    assert live == pytest.approx(expected)


def test_stacks_to_validate_on_are_scaled_as_the_ancestor_knows_them(
    lab: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: VolumeConfig
) -> None:
    monkeypatch.setattr(train_basic_3dunet, "live_volumes", lambda flags, files: tiny_config)
    given = ["--on_the_fly", "--patches_per_epoch", "4", "--init", str(lab / "logs" / "first")]
    given += ["--val_files", pair(lab, "stack", "labels")]
    asked = []
    shape = labelled_stacks.network_shape
    monkeypatch.setattr(
        labelled_stacks, "network_shape", lambda *a, **k: asked.append(a[2]) or shape(*a, **k)
    )
    assert train_basic_3dunet.main([*flags(lab, "after"), *given]) == 0
    known = load_checkpoint(lab / "logs" / "first")["spacing_voxels"]
    assert asked == [pytest.approx(np.mean(known))]


@pytest.mark.parametrize("sure", [True, False])
def test_an_unsure_spacing_is_not_kept(
    lab: Path, monkeypatch: pytest.MonkeyPatch, sure: bool
) -> None:
    found = SpacingEstimate(6.0, 5.8, 6.2, 4.0 if sure else 2.1, 12)
    assert found.sure == sure
    monkeypatch.setattr(labelled_stacks, "estimate_spacing", lambda stack: found)
    sizes = {"patch_size": 8, "spatial_dims": 3, "patches": (4, None)}
    read = load_labelled(labelled(scale=1.0), [pair(lab, "stack", "labels")], [], **sizes)
    (stack,) = read.train.stacks
    edge = (stack.annotated.sum() / stack.columns) ** (1 / 3)  # of a column's share
    assert read.spacing_voxels == pytest.approx([6.0 if sure else edge] * 3)


def test_stacks_are_scaled_as_in_prediction(lab: Path) -> None:
    sizes = {"patch_size": 8, "spatial_dims": 3, "patches": (4, None)}
    names = [pair(lab, "stack", "labels")]
    for changes, spacing, shape in (
        ({"scale": 0.5}, 7.0, (16, 16, 16)),
        ({"voxel_size": (2.0, 1.0, 1.0)}, 7.0, (32, 32, 64)),
        ({"scale": 2.0}, None, (64, 64, 64)),
    ):
        found = load_labelled(labelled(**changes), names, [], spacing=spacing, **sizes)
        assert found.train.stacks[0].shape == shape and found.validation is None
        assert found.spacing_voxels == [spacing] * 3 if spacing else found.spacing_voxels[0] > 0
        assert (
            found.about["stack 1"]
            .partition(" voxels, ")[0]
            .endswith("stack.tif: " + " x ".join(map(str, shape)))
        )
        assert len(found.about["stack 1"].split("; ")) > 1 or not spacing
    unused = load_labelled(labelled(ignore_label=77, scale=1.0), names, [], **sizes)
    assert unused.about["labels"] == "--ignore_label 77 marks no voxel"


def test_held_out_patches_overlap_none_to_train_on(lab: Path) -> None:
    """Each voxel of the image is made its own number: no patch to validate on has one of others."""
    given = labelled(val_share=0.25)
    sizes = {"patch_size": 8, "spatial_dims": 3, "patches": (40, 40)}
    found = load_labelled(given, [pair(lab, "stack", "labels")], [], **sizes)
    numbers = np.arange(32**3, dtype=np.float32).reshape(32, 32, 32)
    scratch = found.train.stacks[0].scratch.path
    np.save(scratch / "image.npy", numbers)
    seen, judged = (
        {int(v) for k in range(len(one)) for v in one[k][0].unique()}
        for one in (found.train, found.validation)
    )
    assert seen and judged and not seen & judged


def test_labelled_images_train_a_network_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((20, 15)) < 0.3, np.ones((8, 8)))
    image = (100 * mask + 20 * rng.random(mask.shape)).astype(np.uint8)
    for part in ("images", "labels"):
        write_tif(tmp_path / part / "a.tif", image if part == "images" else mask.astype(np.uint8))
    given = ["--log_path", str(tmp_path), "--experiment_title", "flat", "--epochs", "1"]
    given += ["--depth", "2", "--L_train", "4", "--L_validate", "2", "--L_test", "2"]
    given += ["--batch_size", "2", "--no-tensorboard", "--test_file", str(tmp_path)]
    assert train_basic_2dunet.main([*given, "--train_file", str(tmp_path)]) == 0
    config = json.loads((tmp_path / "flat" / "config.json").read_text())
    assert {name: entry[0]["box"] for name, entry in config["data"].items()} == {
        "train": [[0, 128], [0, 120]],
        "validation": [[128, 160], [0, 120]],
        "test": [[0, 160], [0, 120]],
    }
    assert json.loads((tmp_path / "flat" / "logs.json").read_text())["test"]["iou"] >= 0
    both, only = [str(tmp_path), "validation.h5"], ["", str(tmp_path)]
    for train, valid in (both, only):
        sets = ["--train_file", train, "--validation_file", valid, "--test_file", ""]
        assert train_basic_2dunet.main([*given[:2], "--experiment_title", "bad", *sets]) == 2
        assert "labelled images go with labelled images" in capsys.readouterr().err
