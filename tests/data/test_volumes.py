"""Choosing patches, and the 3D data set: items, seeds, epochs, worker processes and its errors."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.conftest import fake_volume, write_fake_file
from utils.data import PercentileNormalizer, SegmentationFake3DDataset, volumes
from utils.data.volumes import Slices, box_counts, choose_patch, patch_slices
from utils.errors import UserError
from utils.provenance import DATA_VERSION
from utils.simulation.volume import SimulatedVolume, VolumeConfig, WideConfig, sample_rng
from utils.storage import VolumeFile, VolumeSet, write_simulated_file


def counts_one_by_one(mask: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    corners = [range(s - p + 1) for s, p in zip(mask.shape, patch, strict=True)]
    flat = [mask[patch_slices(c, patch)].sum() for c in itertools.product(*corners)]
    return np.reshape(flat, [len(c) for c in corners])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dims=st.integers(1, 3))
def test_box_counts_equal_those_counted_one_by_one(data: st.DataObject, dims: int) -> None:
    shape = tuple(data.draw(st.integers(1, 8)) for _ in range(dims))
    patch = tuple(data.draw(st.integers(1, s)) for s in shape)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, shape, np.uint8)
    np.testing.assert_array_equal(box_counts(mask, patch), counts_one_by_one(mask, patch))


def corner_of(slices: Slices) -> tuple[int, ...]:
    return tuple(part.start for part in slices)


@pytest.mark.parametrize("tries", [4, 6, 1000])
def test_patches_are_uniform_over_valid_corners(
    tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "_TRIES", tries)
    mask = np.zeros((9, 8), np.uint8)
    mask[6:, 5:] = 1
    mask[0, 0] = 1
    patch = (3, 3)
    valid = set(zip(*np.nonzero(counts_one_by_one(mask, patch) >= 3), strict=True))
    rng = np.random.default_rng(0)
    drawn = Counter(
        corner_of(choose_patch(mask.__getitem__, mask.shape, patch, 6 / 9, rng)[0])
        for _ in range(400 * len(valid))
    )
    assert set(drawn) == valid
    # A count has a standard deviation of 20 about 400: five of them.
    assert all(abs(count - 400) < 100 for count in drawn.values())


def test_the_patch_has_enough_foreground_and_its_own_mask() -> None:
    rng = np.random.default_rng(1)
    mask = (rng.random((20, 20, 20)) < 0.05).astype(np.uint8)
    for _ in range(50):
        slices, part = choose_patch(mask.__getitem__, mask.shape, (8, 8, 8), 0.95, rng)
        np.testing.assert_array_equal(part, mask[slices])
        assert part.mean() >= 0.05


def test_where_none_has_enough_the_densest_is_taken() -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[7, 8, 9] = mask[7, 8, 10] = 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, part = choose_patch(mask.__getitem__, mask.shape, (4, 4, 4), 0.5, rng)
        assert part.sum() == 2


def test_an_empty_mask_gives_a_patch_all_the_same() -> None:
    mask = np.zeros((6, 6), np.uint8)
    _, part = choose_patch(mask.__getitem__, (6, 6), (4, 4), 0.95, np.random.default_rng(0))
    assert part.shape == (4, 4)


def test_only_the_patch_is_read_when_the_first_try_hits() -> None:
    read: list[Slices] = []

    def read_mask(slices: Slices) -> np.ndarray:
        read.append(slices)
        return np.ones([part.stop - part.start for part in slices], np.uint8)

    slices, _ = choose_patch(read_mask, (50, 50, 50), (8, 8, 8), 0.0, np.random.default_rng(0))
    assert read == [slices]


def test_a_patch_may_be_the_whole_volume() -> None:
    mask = np.eye(5, dtype=np.uint8)
    slices, _ = choose_patch(mask.__getitem__, (5, 5), (5, 5), 0.95, np.random.default_rng(0))
    assert corner_of(slices) == (0, 0)


def test_the_threshold_itself_is_enough() -> None:
    mask = np.zeros((20,), np.uint8)
    mask[4] = 1  # 95 % background exactly
    reads: list[Slices] = []

    def read_mask(slices: Slices) -> np.ndarray:
        reads.append(slices)
        return mask[slices]

    choose_patch(read_mask, (20,), (20,), 0.95, np.random.default_rng(0))
    assert len(reads) == 1


FAKE_SAMPLES = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
"""Seed and row of each sample of ``fake_files``."""


def stored(dataset: SegmentationFake3DDataset, index: int) -> SimulatedVolume:
    """Return a whole sample."""
    file, row = dataset._rows[index]
    return file.read_volume(row)


def items(dataset: SegmentationFake3DDataset) -> list[np.ndarray]:
    return [torch.cat(dataset[k]).numpy() for k in range(len(dataset))]


def assert_equal(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(np.stack(first), np.stack(second))


def is_equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_item_is_a_patch_of_the_normalised_volume(fake_files: list[Path]) -> None:
    dataset = SegmentationFake3DDataset(fake_files, patch_size=16)
    assert (len(dataset), dataset.num_samples) == (5, 5)
    normalizer = PercentileNormalizer()
    for k in range(len(dataset)):
        image, mask = dataset[k]
        assert image.shape == mask.shape == (1, 16, 16, 16)
        assert image.dtype == mask.dtype == torch.float32
        assert 0 <= image.min() and image.max() <= 1
        assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask.mean() >= 0.05
        volume = stored(dataset, k)
        whole = normalizer.apply(volume.image, *normalizer.fit(volume.image))
        windows = np.lib.stride_tricks.sliding_window_view(whole, (16,) * 3).reshape(-1, 16, 16, 16)
        near = np.abs(windows[:, 0, 0, 0] - image[0, 0, 0, 0].item()) < 1e-5
        errors = np.abs(windows[near] - image[0].numpy()).max(axis=(1, 2, 3))
        assert errors.min() < 1e-5


def test_one_path_is_enough(fake_file: Path) -> None:
    assert len(SegmentationFake3DDataset(fake_file, patch_size=16)) == 4
    assert len(SegmentationFake3DDataset(str(fake_file), patch_size=16)) == 4


def test_samples_are_found_in_their_files(fake_files: list[Path]) -> None:
    dataset = SegmentationFake3DDataset(fake_files, patch_size=32)
    masks = [fake_volume(sample_rng(seed, row)).mask for seed, row in FAKE_SAMPLES]
    for mask, (_, found) in zip(masks, dataset, strict=True):
        np.testing.assert_array_equal(found[0], mask)
    assert torch.equal(dataset[-1][1], dataset[4][1])
    for index in (-6, 5):
        with pytest.raises(IndexError, match="outside -5..4"):
            dataset[index]


def test_files_are_described_with_their_version(fake_files: list[Path]) -> None:
    dataset = SegmentationFake3DDataset(fake_files, patch_size=16)
    first = {"file": str(fake_files[0]), "seed": 1, "samples": 3, "version": DATA_VERSION}
    assert dataset.describe()[0] == first


def test_a_file_of_another_version_is_read_with_a_note(fake_file: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.h5"
    old.write_bytes(fake_file.read_bytes())
    with h5py.File(old, "r+") as content:
        content.attrs["program_version"] = "0.1"
    with pytest.warns(UserWarning, match="old.h5 was made by version 0.1 .* is read as it is"):
        dataset = SegmentationFake3DDataset([fake_file, old], patch_size=16)
    both = SegmentationFake3DDataset([fake_file, fake_file], patch_size=16)
    assert len(dataset) == 8
    for ours, theirs in zip(dataset[5], both[5], strict=True):
        assert torch.equal(ours, theirs)


def test_patches_follow_from_seed_and_epoch(fake_file: Path) -> None:
    def patches(seed: int, epoch: int) -> list[np.ndarray]:
        dataset = SegmentationFake3DDataset(fake_file, patch_size=12, seed=seed)
        dataset.set_epoch(epoch)
        return items(dataset)

    assert_equal(patches(0, 3), patches(0, 3))
    assert not is_equal(patches(0, 3), patches(0, 4))
    assert not is_equal(patches(0, 3), patches(1, 3))


@pytest.mark.parametrize("number", [1, 3, 7, 12])
def test_every_sample_is_used_evenly(fake_file: Path, number: int) -> None:
    dataset = SegmentationFake3DDataset(fake_file, patch_size=12, patches_per_epoch=number)
    assert len(dataset) == number and len(items(dataset)) == number
    shown = [dataset._sample(epoch, k) for epoch in range(40) for k in range(number)]
    counts = Counter(shown)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert shown[:4] != shown[4:8] or shown[:4] != shown[8:12]  # each round in its own order


def test_two_patches_of_a_sample_in_an_epoch_differ(fake_file: Path) -> None:
    dataset = SegmentationFake3DDataset(fake_file, patch_size=8, patches_per_epoch=8)
    samples = [dataset._sample(0, k) for k in range(8)]
    found = items(dataset)
    pairs = [[k for k in range(8) if samples[k] == sample] for sample in range(4)]
    assert any(not np.array_equal(found[a], found[b]) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_workers_see_the_same_patches(fake_files: list[Path], workers: int, method: str) -> None:
    dataset = SegmentationFake3DDataset(fake_files, patch_size=12)
    expected = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        expected.append(items(dataset))
    loader = DataLoader(
        dataset, num_workers=workers, multiprocessing_context=method, persistent_workers=True
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        loaded = [torch.cat([image[0], mask[0]]).numpy() for image, mask in loader]
        assert_equal(loaded, expected[epoch])


def test_it_pickles_without_open_files(fake_file: Path) -> None:
    dataset = SegmentationFake3DDataset(fake_file, patch_size=12, seed=5)
    dataset.set_epoch(2)
    before = items(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(file._file is None for file in copy.files)
    assert_equal(items(copy), before)


def test_no_file_is_open_until_the_first_item(fake_file: Path) -> None:
    dataset = SegmentationFake3DDataset(fake_file, patch_size=12)
    assert dataset.files[0]._file is None
    dataset[0]
    assert dataset.files[0]._file is not None


def test_a_sparse_volume_gives_its_densest_patch(fake_file: Path) -> None:
    dataset = SegmentationFake3DDataset(fake_file, patch_size=8, background_threshold=0.0)
    mask = stored(dataset, 0).mask
    windows = np.lib.stride_tricks.sliding_window_view(mask, (8, 8, 8))
    assert dataset[0][1].sum() == windows.sum(axis=(3, 4, 5)).max()


def test_real_volumes_make_patches(tmp_path: Path, tiny_config: VolumeConfig) -> None:
    path = tmp_path / "real.h5"
    write_simulated_file(path, VolumeSet(tiny_config, 0, 2))
    dataset = SegmentationFake3DDataset(path, patch_size=16)
    for k in range(2):
        image, mask = dataset[k]
        assert mask.mean() >= 0.05
        assert image[mask > 0].mean() > image[mask == 0].mean()


# --- Errors ---------------------------------------------------------------------------------------


def test_a_missing_file_is_named_at_once(tmp_path: Path, fake_file: Path) -> None:
    with pytest.raises(UserError, match="none.h5: no such file"):
        SegmentationFake3DDataset([fake_file, tmp_path / "none.h5"], patch_size=16)


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no data file"):
        SegmentationFake3DDataset([])


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["vol_data"] = np.zeros((2, 8, 8, 8))
    few = r"other.h5: .*lacks vol_labels, \S+, \S+ and \d+ more$"
    with pytest.raises(UserError, match=few):
        SegmentationFake3DDataset(tmp_path / "other.h5", patch_size=4)


def test_a_truncated_file_is_named(tmp_path: Path, fake_file: Path) -> None:
    (tmp_path / "short.h5").write_bytes(fake_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="short.h5: truncated"):
        SegmentationFake3DDataset(tmp_path / "short.h5", patch_size=16)


def test_other_voxel_numbers_are_named(tmp_path: Path, fake_file: Path) -> None:
    other = write_fake_file(tmp_path / "flat.h5", shape=(32, 32, 16), num_samples=1)
    with pytest.raises(UserError, match=r"flat.h5: volumes of \(32, 32, 16\) voxels, but .*fake"):
        SegmentationFake3DDataset([fake_file, other], patch_size=16)


def test_a_patch_larger_than_the_volume_is_named(fake_file: Path) -> None:
    with pytest.raises(ValueError, match="a patch of 64 voxels"):
        SegmentationFake3DDataset(fake_file)


@pytest.mark.parametrize(
    "options",
    [{"background_threshold": 1.5}, {"patches_per_epoch": 0}, {"patch_size": 0}],
)
def test_numbers_outside_their_range_are_refused(
    fake_file: Path, options: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="patch|background_threshold"):
        SegmentationFake3DDataset(fake_file, **{"patch_size": 16, **options})


def test_the_stored_percentiles_are_the_normalisers(fake_file: Path) -> None:
    with VolumeFile(fake_file) as file:
        fitted = PercentileNormalizer().fit(file.read_image(2))
        assert file.percentiles(2) == pytest.approx(fitted, rel=1e-6)


def test_spacing_is_in_voxels_of_either_preset(tmp_path: Path, tiny_wide: WideConfig) -> None:
    """Voxels fill the unit cube in the reference, and are cubes in preset wide."""
    shape = (32, 32, 24)
    for name, config in (
        ("wide", replace(tiny_wide, shape=shape)),
        ("reference", VolumeConfig(shape=shape, lattice_intervals=(4, 5), min_columns=5)),
    ):
        write_simulated_file(tmp_path / f"{name}.h5", VolumeSet(config, 0, 1))
        dataset = SegmentationFake3DDataset(tmp_path / f"{name}.h5", patch_size=16)
        volume = stored(dataset, 0)
        if name == "wide":
            expected = [volume.path_spacing.mean()] * 3
        else:
            expected = np.multiply(volume.parameters.spacing, shape)
        assert dataset.column_spacing() == pytest.approx(expected, rel=1e-5)
