"""Labelled stacks: layouts, formats, what is refused, the network's voxels, and patches of them."""

from __future__ import annotations

import gc
import os
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader

from tests.stacks.stacks import NAMES, save
from utils.data import labelled
from utils.data.labelled import (
    UNKNOWN,
    LabelledDataset,
    LabelledPair,
    LabelledStack,
    find_pairs,
    open_pair,
)
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.flags import is_labelled
from utils.resampling import Resampling

SHAPE = (14, 12, 10)


def drawn(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return noise and labels 0..3: bars along the last axis, brighter than the rest."""
    labels = np.zeros(shape, np.uint8)
    for k in range(3):
        labels[1 + 4 * k : 4 + 4 * k, 2:9] = k + 1
    image = np.random.default_rng(seed).integers(0, 80, shape) + 100 * (labels > 0)
    return image.astype(np.uint8), labels


def write_pair(folder: Path, image: np.ndarray, labels: np.ndarray, end: str = ".npy") -> str:
    folder.mkdir(exist_ok=True)
    for name, array in {"image": image, "labels": labels}.items():
        save(folder / f"{name}{end}", array, axes="ZYX"[-array.ndim :])
    return f"{folder}/image{end}={folder}/labels{end}"


def opened(given: str, **options: object) -> LabelledStack:
    (pair,) = find_pairs(given)
    return open_pair(pair, **options)


@pytest.mark.parametrize(
    ("files", "given", "options", "found"),
    [
        ("images/b.tif images/a.nrrd labels/a.tif labels/b.npy", ".", {},
         "a:a.nrrd:a.tif b:b.tif:b.npy"),
        ("images/a.ome.tif labels/a.zarr images/.a.tif images/notes.txt", ".", {},
         "a:a.ome.tif:a.zarr"),
        ("images/a.nhdr images/a.raw labels/a.npy", "images", {}, "a:a.nhdr:a.npy"),
        ("images/a.h5 images/a.xml labels/a.npy", ".", {}, "a:a.xml:a.npy"),
        ("images/a.hdr images/a.img labels/a.npy", ".", {}, "a:a.hdr:a.npy"),
        ("imagesTr/v_1_0000.tif labelsTr/v_1.tif dataset.json", ".", {},
         "v_1:v_1_0000.tif:v_1.tif"),
        ("imagesTr/a_0000.tif imagesTr/a_0001.tif labelsTr/a.tif", ".", {"channel": 1},
         "a:a_0001.tif:a.tif"),
        ("imagesTr/a_0000.tif labelsTr/a.tif imagesTs/b_0000.tif labelsTs/b.tif", ".", {},
         "a:a_0000.tif:a.tif"),
        ("imagesTr/a_0000.tif labelsTr/a.tif imagesTs/b_0000.tif labelsTs/b.tif", "imagesTs", {},
         "b:b_0000.tif:b.tif"),
        ("imagesTr/a_0000.tif labelsTr/a.tif imagesTs/b_0000.tif labelsTs/b.tif", ".",
         {"parts": ("Ts", "Tr")}, "b:b_0000.tif:b.tif"),
        ("imagesTr/a_0000.tif labelsTr/a.tif imagesTs/b_0000.tif", ".", {"parts": ("Ts", "Tr")},
         "a:a_0000.tif:a.tif"),
    ],
)  # fmt: skip
def test_folders_are_paired_by_name(
    tmp_path: Path, files: str, given: str, options: dict[str, int], found: str
) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert is_labelled(tmp_path / given)
    pairs = find_pairs(tmp_path / given, **options)
    assert " ".join(f"{p.name}:{p.image.name}:{p.labels.name}" for p in pairs) == found


def test_the_channel_of_a_file_is_kept_and_that_of_a_name_is_not(tmp_path: Path) -> None:
    for name in ("images/a.tif", "labels/a.tif", "imagesTr/a_0000.tif", "imagesTr/a_0001.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "labels").rename(tmp_path / "labelsTr")
    assert find_pairs(tmp_path, channel=1)[0].channel is None
    (tmp_path / "labelsTr").rename(tmp_path / "labels")
    assert find_pairs(tmp_path, channel=1)[0].channel == 1
    assert find_pairs("a.tif=b.tif=c.tif", channel=1) == [
        LabelledPair(Path("a.tif"), Path("b.tif"), Path("c.tif"), 1, "a")
    ]


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ("stacks/a.tif", ".", "no labelled stacks: it must hold images/ and labels/"),
        ("images/a.tif", ".", "no labelled stacks"),
        ("images/a.txt labels/a.tif", ".", "images: holds no stack"),
        ("images/a.tif labels/a.txt", ".", "labels: holds no stack"),
        (
            "images/a.tif images/b.tif labels/a.tif",
            ".",
            "images/b.tif: stands alone: .*labels holds",
        ),
        ("images/a.tif labels/b.tif labels/a.tif", ".", "labels/b.tif: stands alone"),
        ("images/a.tif images/a.npy labels/a.tif", ".", "a.tif: a.npy has the same name"),
        ("imagesTr/a_0000.tif imagesTr/a_0001.tif labelsTr/a.tif", ".", "channels 0, 1; name one"),
        ("", "a.tif", "give a folder, IMAGE=LABELS"),
        ("", "a.tif=", "give a folder, IMAGE=LABELS"),
        ("", "a=b=c=d", "give a folder, IMAGE=LABELS"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path: Path, files: str, given: str, message: str) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message) as caught:
        find_pairs(tmp_path / given if files else given)
    assert "\n" not in str(caught.value)


def test_files_of_simulated_volumes_are_no_labelled_stacks(tmp_path: Path) -> None:
    (tmp_path / "run=3.h5").touch()
    assert not is_labelled(tmp_path / "run=3.h5") and not is_labelled("train.h5")
    assert not is_labelled("")  # a set that is kept in memory
    assert is_labelled("a.tif=b.tif") and is_labelled(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_stack(tmp_path: Path, name: str) -> None:
    image, labels = drawn()
    stack = opened(write_pair(tmp_path, image, labels, name[1:]))
    normalizer = PercentileNormalizer()
    expected = normalizer.apply(image, *normalizer.fit(image))
    np.testing.assert_array_equal(stack.image, expected)
    np.testing.assert_array_equal(stack.target, labels > 0)
    assert (stack.image.dtype, stack.target.dtype, stack.columns) == (np.float32, np.int8, 3)
    assert "14 x 12 x 10 voxels, 1,680 annotated (100 %), 630 of these in 3 columns" in stack.line()


def write_as_others_do(path: Path, image: np.ndarray) -> None:
    """Write (X, Y, Z) uint16 in a format that is only read."""
    if path.suffix == ".czi":
        pytest.importorskip("pylibCZIrw")
        from tests.stacks.formats.test_czi import write

        write(path, [image.T[None, None]])
    elif path.suffix == ".nhdr":
        nrrd.write(str(path), image, detached_header=True)
    elif path.suffix == ".hdr":
        analyze = nibabel.Spm2AnalyzeImage(image.astype(np.int16), np.eye(4))
        nibabel.save(analyze, path.with_suffix(".img"))
    else:
        path.mkdir()
        for z in range(image.shape[2]):
            tifffile.imwrite(path / f"plane_{z:02d}.tif", image[..., z].T)


@pytest.mark.parametrize("name", ["a.czi", "a.nhdr", "a.hdr", "a"])
def test_formats_of_other_programs(tmp_path: Path, name: str) -> None:
    image, labels = drawn()
    for part, array in {"images": image, "labels": labels}.items():
        (tmp_path / part).mkdir()
        write_as_others_do(tmp_path / part / name, array.astype(np.uint16))
    stack = opened(str(tmp_path))
    normalizer = PercentileNormalizer()
    expected = normalizer.apply(image, *normalizer.fit(image))
    np.testing.assert_allclose(stack.image, expected, atol=1e-6)
    np.testing.assert_array_equal(stack.target, labels > 0)


@pytest.mark.parametrize("name", ["a.ims", "a.h5", "a.xml"])
def test_stacks_whose_channels_are_arrays(tmp_path: Path, name: str) -> None:
    """Imaris's, and BigDataViewer's by both of its files, beside labels in another format."""
    from tests.stacks.formats.test_hdf5 import describe, imaris, views

    if name == "a.ims":
        image = imaris(tmp_path / name, times=1)[0, 1].T
    else:
        image = views(tmp_path / "a.h5", times=1)[0, 1].T
        describe(tmp_path / "a.xml", ["1 1 1"] * 2)
    np.save(tmp_path / "l.npy", (image > np.median(image)).T.astype(np.uint8))
    (pair,) = find_pairs(f"{tmp_path}/{name}={tmp_path}/l.npy", channel=1)
    stack = open_pair(pair)
    np.testing.assert_array_equal(stack.target, image > np.median(image))
    assert stack.image[stack.target == 1].min() >= stack.image[stack.target == 0].max()


def test_arrays_in_one_file_are_named_by_their_path(tmp_path: Path) -> None:
    image, labels = drawn()
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file["raw"], file["drawn/columns"] = image.T, labels.T
    path = tmp_path / "both.h5"
    stack = opened(f"{path}/raw={path}/drawn/columns")
    np.testing.assert_array_equal(stack.target, labels > 0)
    assert stack.pair.name == "both"


def test_three_long_names_are_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = drawn()
    names = [f"{name:x<97}.npy" for name in ("image", "labels", "mask")]
    for name, array in zip(names, (image, labels, labels < 9), strict=True):
        np.save(tmp_path / name, array.T.astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    assert is_labelled("=".join(names))
    np.testing.assert_array_equal(opened("=".join(names)).target, labels > 0)


def test_axes_and_channels_are_those_of_the_image(tmp_path: Path) -> None:
    image, labels = drawn()
    both = np.stack([np.zeros_like(image), image]).transpose(0, 3, 2, 1)  # czyx
    np.save(tmp_path / "i.npy", both)
    np.save(tmp_path / "l.npy", labels.T)
    (pair,) = find_pairs(f"{tmp_path}/i.npy={tmp_path}/l.npy", channel=1)
    stack = open_pair(pair, axes="czyx")
    np.testing.assert_array_equal(stack.target, labels > 0)
    assert stack.image[labels > 0].mean() > 2 * stack.image[labels == 0].mean()


def test_what_nobody_annotated_is_ignored(tmp_path: Path) -> None:
    image, labels = drawn()
    unknown = np.random.default_rng(1).random(SHAPE) < 0.5
    expected = np.where(unknown, UNKNOWN, labels > 0)
    stack = opened(write_pair(tmp_path, image, np.where(unknown, 7, labels)), ignore_label=7)
    np.testing.assert_array_equal(stack.target, expected)
    given = write_pair(tmp_path, image, np.where(unknown, 2, labels).astype(np.uint8))
    save(tmp_path / "mask.nrrd", (~unknown).astype(np.uint8))
    stack = opened(f"{given}={tmp_path}/mask.nrrd")
    np.testing.assert_array_equal(stack.target, expected)
    assert stack.annotated.sum() == (~unknown).sum() and len(stack.annotated) == SHAPE[2]
    assert stack.labelled.sum() == ((labels > 0) & ~unknown).sum()
    minus = np.where(unknown, -1, labels.astype(np.int16)).astype(np.int16)
    stack = opened(write_pair(tmp_path, image, minus), ignore_label=-1)
    np.testing.assert_array_equal(stack.target, expected)


def test_where_0_is_what_nobody_painted_1_is_background(tmp_path: Path) -> None:
    image, labels = drawn()
    painted = np.where(labels == 3, 0, labels + 1).astype(np.uint8)
    stack = opened(write_pair(tmp_path, image, painted), ignore_label=0)
    np.testing.assert_array_equal(stack.target, np.where(labels == 3, UNKNOWN, labels > 0))
    assert stack.columns == 2 and stack.line().endswith("in 2 columns")
    mask = np.where(labels == 3, 0, 1 + (labels > 0)).astype(np.uint8)
    stack = opened(write_pair(tmp_path, image, mask), ignore_label=0)
    assert stack.line().endswith("in 2 connected parts of a mask")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.uint64, np.float32])
def test_masks_and_labels_of_any_kind(tmp_path: Path, dtype: type) -> None:
    image, labels = drawn()
    stack = opened(write_pair(tmp_path, image, labels.astype(dtype)))
    np.testing.assert_array_equal(stack.target, labels > 0)
    assert stack.columns == 3  # the parts of a mask, or labels


def test_large_numbers_stay_apart(tmp_path: Path) -> None:
    image, labels = drawn()
    large = np.where(labels, 2**30 + labels.astype(np.int64), 0).astype(np.uint32)
    assert opened(write_pair(tmp_path, image, large)).columns == 3


NOTHING = np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x: x[:-1], {}, r"labels.npy: has shape \(13, 12, 10\) \(x, y, z\), and .*image"),
        (lambda x: x[0], {}, "labels.npy: has shape"),
        (lambda x: 0 * x, {}, "labels.npy: no voxel is labelled"),
        (lambda x: x * 0.5, {}, "labels.npy: holds fractions"),
        (lambda x: np.where(x, np.nan, 1.0), {}, "labels.npy: holds fractions"),
        (lambda x: x - 1.0, {}, "labels.npy: holds the label -1; .*--ignore_label"),
        (lambda x: 0 * x + 9, {"ignore_label": 9}, "labels.npy: no voxel is annotated"),
        (lambda x: np.where(x, 9, 0), {"ignore_label": 9}, "labels.npy: no voxel is labelled"),
        (lambda x: x > 0, {"ignore_label": 0}, "labels.npy: .*all that is annotated is 1, backgr"),
        (lambda x: x, {"axes": "QQQ"}, "--axes 'QQQ'"),
        (lambda x: x, {"voxel_size": (1.0, 1.0)}, "--voxel_size has 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_one_line(
    tmp_path: Path, change: object, options: dict[str, object], message: str
) -> None:
    image, labels = drawn()
    given = write_pair(tmp_path, image, change(labels))
    with pytest.raises(UserError, match=message) as caught:
        opened(given, **options)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    image, labels = drawn()
    given = write_pair(tmp_path, image, labels, ".tif")
    with pytest.raises(UserError, match=r"labels.npy: no such file"):
        opened(given.replace("labels.tif", "labels.npy"))
    save(tmp_path / "mask.tif", NOTHING)
    with pytest.raises(
        UserError, match=r"no voxel is annotated but for what .*mask.tif leaves out"
    ):
        opened(f"{given}={tmp_path}/mask.tif")
    with pytest.raises(UserError, match=r"mask.npy: no such file"):
        opened(f"{given}={tmp_path}/mask.npy")
    np.save(tmp_path / "mask.npy", np.full(SHAPE[::-1], 0.5, np.float32))
    with pytest.raises(UserError, match=r"mask.npy: holds fractions or NaN"):
        opened(f"{given}={tmp_path}/mask.npy")
    save(tmp_path / "image.tif", NOTHING)
    with pytest.raises(UserError, match=r"image.tif: nothing to see: nearly all voxels are 0"):
        opened(given)
    (tmp_path / "image.tif").write_bytes(b"II*\0 cut")
    with pytest.raises(UserError, match=r"image.tif: cut or damaged"):
        opened(given)


def test_flags_that_only_prediction_has_are_explained(tmp_path: Path) -> None:
    image, labels = drawn()
    given = write_pair(tmp_path, image, labels, ".tif")
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([labels.T] * 3, -1), photometric="rgb")
    with pytest.raises(UserError, match=r"name one with --channel 0..2; .* is a file of its own"):
        opened(given.replace("labels.tif", "rgb.tif"))
    with pytest.raises(UserError, match=r"name one with --channel 0..2$"):
        opened(given.replace("image.tif", "rgb.tif"))
    times = {"imagej": True, "metadata": {"axes": "TZYX"}}
    tifffile.imwrite(tmp_path / "times.tif", np.stack([image.T] * 2), **times)
    with pytest.raises(UserError, match=r"name one with --index 0..1; .* is a file of its own"):
        opened(given.replace("image.tif", "times.tif"))
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file["raw"], file["label"] = image.T, labels.T
    with pytest.raises(UserError, match=r"name one with --key: .*; here FILE/KEY names an array"):
        opened(given.replace("image.tif", "both.h5"))


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_pair(tmp_path, *drawn())
    monkeypatch.setattr(labelled.shutil, "disk_usage", lambda path: SimpleNamespace(free=7000))
    with pytest.raises(UserError, match="needs 0.0 GB in .*TMPDIR"):
        opened(given)


# The network's voxels -----------------------------------------------------------------------------


def test_larger_stacks_are_those_of_the_whole_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels = drawn()
    given, shape = write_pair(tmp_path, image, labels), (28, 24, 30)
    monkeypatch.setattr(labelled, "planes_at_once", lambda plane_bytes: 2)
    stack = opened(given, shape_for=lambda stack: (shape, ["as told"]))
    assert stack.shape == shape and stack.reasons == ("as told",)
    whole = labels.repeat(2, 0).repeat(2, 1).repeat(3, 2) > 0
    np.testing.assert_array_equal(stack.target, whole)
    normalizer = PercentileNormalizer()
    scaled = normalizer.apply(image, *normalizer.fit(image))
    expected = Resampling.between(SHAPE, shape).apply(scaled, 0, 0, 30)
    np.testing.assert_allclose(stack.image, expected, atol=1e-6)


@pytest.mark.parametrize("planes", [1, 100])
def test_lone_annotated_planes_outlive_larger_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planes: int
) -> None:
    image, labels = drawn((14, 12, 40))
    known = np.zeros(labels.shape, bool)
    known[..., [3, 17, 18, 39]] = True
    given = write_pair(tmp_path, image, np.where(known, labels, 9))
    monkeypatch.setattr(labelled, "planes_at_once", lambda plane_bytes: planes)
    stack = opened(given, ignore_label=9, shape_for=lambda stack: ((14, 12, 10), []))
    seen = (stack.target != UNKNOWN).any(axis=(0, 1))
    np.testing.assert_array_equal(np.flatnonzero(seen), [0, 4, 9])
    for z in (0, 4, 9):
        np.testing.assert_array_equal(stack.target[..., z], labels[..., 0] > 0)


def test_the_copies_go_with_the_stack_but_not_with_a_worker(tmp_path: Path) -> None:
    stack = opened(write_pair(tmp_path, *drawn()))
    folder = stack.scratch.path
    labelled._remove(folder, os.getpid() + 1)  # as a forked worker would
    parts = stack.split(0.5)
    copy = pickle.loads(pickle.dumps(stack))
    del stack, copy
    gc.collect()
    assert parts[0].image.any() and folder.is_dir()
    del parts
    gc.collect()
    assert not folder.exists()


# Patches ------------------------------------------------------------------------------------------


@pytest.fixture
def stacks(tmp_path: Path) -> list[LabelledStack]:
    """Two stacks of unequal sizes, the second smaller than the patches along z."""
    given = [
        write_pair(tmp_path / str(k), *drawn(shape, k))
        for k, shape in enumerate([(20, 18, 16), (14, 12, 5)])
    ]
    return [opened(text) for text in given]


def items(dataset: LabelledDataset, epoch: int = 0) -> list[np.ndarray]:
    dataset.set_epoch(epoch)
    return [torch.stack(dataset[k]).numpy() for k in range(len(dataset))]


def test_items_are_patches_of_all_stacks_alike(stacks: list[LabelledStack]) -> None:
    dataset = LabelledDataset(stacks, patch_size=8, patches_per_epoch=20)
    uses: Counter[int] = Counter()
    for image, target in dataset:
        assert image.shape == target.shape == (1, 8, 8, 8)
        assert image.dtype == target.dtype == torch.float32
        small = bool((target == -1).any())
        uses[small] += 1
        inside = target[0, ..., 1:6] if small else target[0]  # 3 planes too few: 1 and 2 added
        assert (target == -1).sum() == (3 * 64 if small else 0)
        assert inside.mean() >= 0.05 and 0 <= image.min() and image.max() <= 1
        source = stacks[small]
        windows = np.lib.stride_tricks.sliding_window_view(source.image, inside.shape)
        there = windows == image[0, ..., 1:6].numpy() if small else windows == image[0].numpy()
        (corner,) = np.argwhere(there.all(axis=(3, 4, 5)))
        box = tuple(slice(a, a + n) for a, n in zip(corner, inside.shape, strict=True))
        np.testing.assert_array_equal(source.target[box], inside)
        if small:
            np.testing.assert_array_equal(image[0, ..., 0], image[0, ..., 2])  # mirrored
    assert uses == {False: 10, True: 10}


def test_items_follow_from_seed_epoch_and_index(stacks: list[LabelledStack]) -> None:
    first = LabelledDataset(stacks, patch_size=8, seed=3, patches_per_epoch=6)
    again = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(items(first, 2), items(again, 2))
    loader = DataLoader(first, batch_size=None, num_workers=1, generator=torch.Generator())
    np.testing.assert_array_equal([torch.stack(pair) for pair in loader], items(first, 2))
    assert not np.array_equal(items(first, 2), items(first, 3))
    other = LabelledDataset(stacks, patch_size=8, seed=4, patches_per_epoch=6)
    assert not np.array_equal(items(first), items(other))


def test_patches_lie_about_the_few_annotated_planes(tmp_path: Path) -> None:
    image, labels = drawn((40, 40, 40))
    known = np.zeros(labels.shape, bool)
    known[..., [5, 30]] = True
    stack = opened(write_pair(tmp_path, image, np.where(known, labels, 9)), ignore_label=9)
    dataset = LabelledDataset([stack], patch_size=12, patches_per_epoch=40)
    planes = Counter()
    for _, target in dataset:
        seen = (target[0] != -1).any(dim=0).any(dim=0)
        assert seen.sum() == 1 and target[target != -1].mean() >= 0.05
        planes[int(seen.nonzero())] += 1
    assert len(planes) > 6  # at any depth of a patch
    sparse = labels.copy()
    sparse[:, :, :] = 0
    sparse[20, 20, 5] = 1
    lone = opened(write_pair(tmp_path, image, np.where(known, sparse, 9)), ignore_label=9)
    rare = LabelledDataset([lone], patch_size=8, background_threshold=0.9, patches_per_epoch=5)
    assert all((target == 1).sum() == 1 for _, target in rare)


def test_images_of_two_axes(tmp_path: Path) -> None:
    image, labels = drawn((30, 20))
    stack = opened(write_pair(tmp_path, image, labels))
    dataset = LabelledDataset([stack], patch_size=16, spatial_dims=2)
    assert len(dataset) == 4 and dataset[3][0].shape == (1, 16, 16)
    with pytest.raises(UserError, match=r"image.npy: has 2 axes, and 3 are needed; train_basic_2d"):
        LabelledDataset([stack])
    for name, wrong in (("patch_size", 0), ("background_threshold", 1.5), ("patches_per_epoch", 0)):
        with pytest.raises(UserError, match=f"a patch of {wrong} voxels|{name} must be .*{wrong}"):
            LabelledDataset([stack], spatial_dims=2, **{name: wrong})


def test_parts_held_out_share_no_voxel(tmp_path: Path) -> None:
    image, labels = drawn((30, 12, 10))
    labels[26:29, 2:9] = 4
    stack = opened(write_pair(tmp_path, image, labels))
    train, valid = stack.split(0.2)
    assert train.shape == (24, 12, 10) and valid.shape == (6, 12, 10)
    np.testing.assert_array_equal(np.concatenate([train.image, valid.image]), stack.image)
    np.testing.assert_array_equal(np.concatenate([train.target, valid.target]), stack.target)
    assert train.labelled.any() and valid.labelled.any()
    halves = valid.split(0.5)
    np.testing.assert_array_equal(np.concatenate([h.image for h in halves], 1), valid.image)
    both = LabelledDataset([train], patch_size=8), LabelledDataset([valid], patch_size=8)
    assert both[0].describe()[0]["box"][0] == [0, 24] and both[1].describe()[0]["box"][0] == [
        24,
        30,
    ]
    assert len(both[1]) == 1 * 2 * 2


def test_planes_are_held_out_where_only_they_are_annotated(tmp_path: Path) -> None:
    image, labels = drawn((14, 12, 60))
    known = np.zeros(labels.shape, bool)
    known[..., ::12] = True
    stack = opened(write_pair(tmp_path, image, np.where(known, labels, 9)), ignore_label=9)
    train, valid = stack.split(0.2)
    assert (np.count_nonzero(train.annotated), np.count_nonzero(valid.annotated)) == (4, 1)
    lone = np.zeros_like(labels)
    lone[7, 6, 30] = 1
    with pytest.raises(
        UserError, match=r"labels.npy: too little is labelled to hold a share of 0.2"
    ):
        opened(write_pair(tmp_path, image, lone)).split(0.2)
