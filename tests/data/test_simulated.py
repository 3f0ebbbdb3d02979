"""Volumes on the fly, alone and mixed with real patches: items, seeds, batches, workers, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.training.test_loop import Blobs
from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset
from utils.data.simulated import BUFFERED_VOLUMES, MixedDataset, PatchMixer, split_batch
from utils.errors import UserError
from utils.simulation.geometry import GeometryError
from utils.simulation.streams import Purpose, make_rng
from utils.simulation.volume import (
    Mixture,
    SimulatedVolume,
    VolumeConfig,
    WideConfig,
    WideVolume,
    sample_rng,
    simulate_volume,
)
from utils.storage import VolumeSet, encode_row, write_simulated_file
from utils.training.ending import record_exit
from utils.training.experiment import Experiment
from utils.training.losses import measure_foreground

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make(config: VolumeConfig | WideConfig | Mixture, **options: object) -> OnTheFly3DDataset:
    defaults = {"patch_size": 8, "patches_per_epoch": 12, "patches_per_volume": 3}
    return OnTheFly3DDataset(config, **{**defaults, **options})


def volume_of(data: OnTheFly3DDataset, index: int) -> SimulatedVolume:
    """Return a whole volume of the data's epoch."""
    rng = make_rng(Purpose.LIVE_VOLUME, data.seed, data.epoch, index)
    return simulate_volume(data.mixture.choose(data.seed, data.epoch, index), rng)


def batches(loader: DataLoader) -> list[tuple[Tensor, Tensor]]:
    found = list(loader)
    assert len(found) == len(loader)
    return found


def rows(found: list[tuple[Tensor, Tensor]]) -> list[bytes]:
    """Return each patch, image and mask, of all batches as bytes."""
    return [
        image.numpy().tobytes() + mask.numpy().tobytes()
        for images, masks in found
        for image, mask in zip(images, masks, strict=True)
    ]


def items(data: OnTheFly3DDataset) -> list[bytes]:
    return rows([tuple(part[None] for part in data[k]) for k in range(len(data))])


@pytest.mark.parametrize("workers", [0, 2])
def test_mixtures_give_patches_of_each_preset_by_their_shares(
    tiny_config: VolumeConfig, tiny_wide: WideConfig, workers: int
) -> None:
    mixture = Mixture(((tiny_wide, 0.5), (tiny_config, 0.5)))
    data = make(mixture, patches_per_epoch=24, patches_per_volume=2, seed=3)
    assert data.describe()["on_the_fly"] == mixture.to_dict()
    kinds = [type(volume_of(data, index)) for index in range(12)]
    assert {*kinds} == {SimulatedVolume, WideVolume}
    found = rows(batches(data.make_loader(4, num_workers=workers)))
    assert sorted(found) == sorted(items(data)) and len({*found}) > 20


def test_a_preset_by_itself_is_a_mixture_of_one(tiny_wide: WideConfig) -> None:
    data = make(tiny_wide)
    assert data.describe()["on_the_fly"] == tiny_wide.to_dict()
    assert isinstance(volume_of(data, 0), WideVolume)


def test_items_have_the_form_of_those_of_files(tiny_config: VolumeConfig) -> None:
    data = make(tiny_config)
    assert len(data) == 12
    for k in (0, 5, 11):
        image, mask = data[k]
        assert image.shape == mask.shape == (1, 8, 8, 8)
        assert image.dtype == mask.dtype == torch.float32
        assert 0 <= image.min() and image.max() <= 1
        assert set(mask.unique().tolist()) <= {0.0, 1.0} and mask.mean() >= 0.05
    assert len(set(items(data))) == 12
    assert torch.equal(data[-1][0], data[11][0])
    with pytest.raises(IndexError, match="outside -12..11"):
        data[12]


def test_a_whole_volume_is_what_a_file_would_give(
    tmp_path: Path, tiny_config: VolumeConfig
) -> None:
    """The image is rounded and scaled as if the volume had been written and read."""
    data = make(tiny_config, patch_size=32, patches_per_volume=1)
    data.set_epoch(3)
    rows = [encode_row(volume_of(data, 2))]
    write_simulated_file(tmp_path / "a.h5", VolumeSet(tiny_config, 0, 1), rows)
    stored = SegmentationFake3DDataset(tmp_path / "a.h5", patch_size=32)
    for ours, theirs in zip(data[2], stored[0], strict=True):
        assert torch.equal(ours, theirs)


def test_no_volume_comes_twice_nor_from_a_file(tiny_config: VolumeConfig) -> None:
    data = make(tiny_config, seed=1)
    seen = set()
    for epoch in range(3):
        data.set_epoch(epoch)
        for index in range(4):
            seen.add(volume_of(data, index).image.tobytes())
    assert len(seen) == 12
    for seed in (0, 1):
        for index in range(4):
            stored = simulate_volume(tiny_config, sample_rng(seed, index))
            assert stored.image.tobytes() not in seen


@pytest.mark.parametrize("augment", ["none", "full"])
def test_batches_are_the_items_of_the_epoch_mixed(tiny_config: VolumeConfig, augment: str) -> None:
    data = make(tiny_config, augment=augment, patches_per_epoch=11)
    data.set_epoch(1)
    found = batches(data.make_loader(4))
    assert [len(images) for images, _ in found] == [4, 4, 3]
    assert all(part.dtype == torch.float32 for pair in found for part in pair)
    assert sorted(rows(found)) == sorted(items(data))
    assert rows(found) != items(data)


def test_augmented_items_are_the_plain_ones_changed(tiny_config: VolumeConfig) -> None:
    plain, flipped = make(tiny_config), make(tiny_config, augment="flips")
    assert items(plain) != items(flipped)
    for k in range(len(plain)):
        for a, b in zip(plain[k], flipped[k], strict=True):
            assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bits(tiny_config: VolumeConfig, workers: int) -> None:
    data = make(tiny_config, augment="full", seed=7)
    alone, loader = data.make_loader(5), data.make_loader(5, num_workers=workers)
    epochs = []
    for epoch in (1, 2):
        data.set_epoch(epoch)
        epochs.append(rows(batches(alone)))
        assert rows(batches(loader)) == epochs[-1]
    assert not set(epochs[0]) & set(epochs[1])


def test_seeds_and_epochs_give_other_batches(tiny_config: VolumeConfig) -> None:
    def at(seed: int, epoch: int) -> list[bytes]:
        data = make(tiny_config, seed=seed)
        data.set_epoch(epoch)
        return rows(batches(data.make_loader(4)))

    assert at(0, 1) == at(0, 1)
    assert not set(at(0, 1)) & (set(at(0, 2)) | set(at(1, 1)))


def test_ranks_share_an_epoch_without_repeating(tiny_config: VolumeConfig) -> None:
    data = make(tiny_config, patches_per_epoch=13)
    data.set_epoch(1)
    found = [batches(data.make_loader(5, rank=rank, world_size=2)) for rank in range(2)]
    assert [[len(images) for images, _ in part] for part in found] == [[2, 2, 2]] * 2
    first, second = (rows(part) for part in found)
    assert len({*first, *second}) == 12
    alone = items(data)
    assert set(first) == {*alone[0:6]}
    assert set(second) == {*alone[6:12]}


def test_a_rank_may_begin_within_a_volume(tiny_config: VolumeConfig) -> None:
    data = make(tiny_config, patches_per_epoch=10)
    alone = items(data)
    for rank in range(2):
        found = batches(data.make_loader(4, rank=rank, world_size=2))
        assert set(rows(found)) < {*alone[5 * rank : 5 * rank + 5]}  # but for the lonely last one


def test_a_lonely_last_patch_is_left_out(tiny_config: VolumeConfig) -> None:
    lengths = {9: [4, 4], 10: [4, 4, 2], 1: [1], 4: [4], 3: [3]}
    for number, expected in lengths.items():
        data = make(tiny_config, patches_per_epoch=number)
        assert [len(images) for images, _ in batches(data.make_loader(4))] == expected
    single = make(tiny_config, patches_per_epoch=3)
    assert [len(images) for images, _ in batches(single.make_loader(1))] == [1, 1, 1]


def test_foreground_can_be_measured(tiny_config: VolumeConfig) -> None:
    data = make(tiny_config)
    expected = np.mean([data[k][1].mean() for k in range(12)])
    assert measure_foreground(data) == pytest.approx(expected)


def test_loading_leaves_the_random_state_of_torch(tiny_config: VolumeConfig) -> None:
    before = torch.get_rng_state()
    batches(make(tiny_config).make_loader(4))
    assert torch.equal(torch.get_rng_state(), before)


# --- Mixing and measuring -------------------------------------------------------------------------


class Counted:
    """A stand-in for the volumes' loader that counts what it has given."""

    def __init__(self, number: int, patches: int) -> None:
        self.number, self.patches, self.given = number, patches, 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self):
        for volume in range(self.number):
            self.given += self.patches
            images = torch.full((self.patches, 1, 8, 8, 8), float(volume))
            yield images, torch.ones_like(images)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_buffer_is_bounded(tiny_config: VolumeConfig, batch_size: int) -> None:
    source = make(tiny_config, patches_per_epoch=300)
    volumes = Counted(100, 3)
    mixer = PatchMixer(source, volumes, 300, batch_size)
    capacity = 3 * max(BUFFERED_VOLUMES, -(-2 * batch_size // 3))
    taken, mixed = 0, 0
    for images, _ in mixer:
        assert volumes.given - taken <= capacity
        taken += len(images)
        mixed = max(mixed, len(images.flatten(1)[:, 0].unique()))
    assert taken == volumes.given == 300
    assert mixed >= min(batch_size, 3)  # patches of several volumes meet in a batch


def test_rates_are_of_the_last_epoch(tiny_config: VolumeConfig) -> None:
    data = make(tiny_config)
    assert data.epoch_record() == {}
    batches(data.make_loader(4))
    record = data.epoch_record()
    assert 0 < record["seconds_waiting_for_data"] <= 4 / record["volumes_per_second"]


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 33}, r"33 voxels an edge does not fit into volumes of \(32, 32, 32\)"),
        ({"patch_size": 0}, "a patch of 0 voxels"),
        ({"background_threshold": 1.5}, "background_threshold must be in 0..1, got 1.5"),
        ({"patches_per_epoch": 0}, "patches_per_epoch must be at least 1, got 0"),
        ({"patches_per_volume": 0}, "patches_per_volume must be at least 1, got 0"),
        ({"augment": "all"}, "'all': must be one of none, flips, stains, full"),
    ],
)
def test_numbers_outside_their_range_are_refused(
    tiny_config: VolumeConfig, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make(tiny_config, **options)


IMPOSSIBLE = VolumeConfig(shape=(16, 16, 16), lattice_intervals=(1, 1), min_columns=99, max_tries=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_impossible_configuration_is_named(workers: int) -> None:
    loader = make(IMPOSSIBLE).make_loader(4, num_workers=workers)
    with pytest.raises(GeometryError, match="no geometry with at least 99 columns"):
        next(iter(loader))


def test_an_error_in_a_worker_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = Experiment.create(tmp_path / "run", {}, __file__)
    loader = make(IMPOSSIBLE).make_loader(4, num_workers=1)
    assert record_exit(experiment, lambda: str(next(iter(loader)))) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("training stopped: no geometry with at least 99 columns")
    assert experiment.read_log()["exit"]["reason"] in line


class Darker(Blobs):
    """Blobs whose images are negative: told from others at a glance."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = super().__getitem__(index)
        return -1 - image, mask


@pytest.mark.parametrize(
    ("batch_size", "share", "ranks", "expected"),
    [
        (4, 0.5, 1, (2, 2)),
        (4, 0.2, 1, (1, 3)),
        (32, 0.5, 2, (16, 16)),
        (10, 0.75, 1, (8, 2)),
        (3, 0.5, 1, (2, 1)),
    ],
)
def test_the_share_of_a_batch_is_rounded(
    batch_size: int, share: float, ranks: int, expected: tuple[int, int]
) -> None:
    assert split_batch(batch_size, share, ranks) == expected


@pytest.mark.parametrize(
    ("batch_size", "share", "ranks", "message"),
    [
        (4, 0.1, 1, "--mix 0.1: of a batch of 4 patches that is 0; every batch needs"),
        (4, 0.9, 1, "--mix 0.9: of a batch of 4 patches that is 4"),
        (1, 0.5, 1, "of a batch of 1 patches"),
        (6, 0.5, 2, "2 devices cannot share 3 simulated and 3 real patches evenly"),
    ],
)
def test_a_batch_needs_both(batch_size: int, share: float, ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_batch(batch_size, share, ranks)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_has_so_many_of_each(workers: int) -> None:
    data = MixedDataset(Darker(3), Blobs(9), (1, 3))
    loader = data.make_loader(4, num_workers=workers)
    for epoch in (1, 2):
        data.set_epoch(epoch)
        batches = list(loader)
        assert len(loader) == len(batches) == 3 and len(data) == 12
        for number, (images, masks) in enumerate(batches):
            assert images.shape == masks.shape == (4, 1, 4, 4, 4)
            assert [bool(image.max() < 0) for image in images] == [True, False, False, False]
            for place in range(4):
                image, mask = data[4 * number + place]
                assert torch.equal(images[place], image) and torch.equal(masks[place], mask)


def test_ranks_share_each_batch() -> None:
    data = MixedDataset(Darker(4), Blobs(8), (2, 4))
    whole = torch.cat([images for images, _ in data.make_loader(6)])
    parts = [list(data.make_loader(6, rank=rank, world_size=2)) for rank in (0, 1)]
    assert all([bool(i.max() < 0) for i in b[0]] == [True, False, False] for p in parts for b in p)
    both = torch.cat([images for part in parts for images, _ in part])
    assert sorted(i.sum().item() for i in both) == sorted(i.sum().item() for i in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_volumes_on_the_fly_are_mixed_in(tiny_config: VolumeConfig, workers: int) -> None:
    live = {"patch_size": 8, "patches_per_epoch": 8, "patches_per_volume": 4, "seed": 3}
    data = MixedDataset(OnTheFly3DDataset(tiny_config, **live), Blobs(4, (8, 8, 8)), (2, 1))
    batches = list(data.make_loader(3, num_workers=workers))
    alone = OnTheFly3DDataset(tiny_config, **live)
    for (images, masks), (live_images, live_masks) in zip(
        batches, alone.make_loader(2), strict=True
    ):
        assert torch.equal(images[:2], live_images) and torch.equal(masks[:2], live_masks)
    assert data.epoch_record()["volumes_per_second"] > 0
    said = data.describe()
    assert [entry["in_a_batch"] for entry in said] == [2, 1]
    assert said[0]["on_the_fly"] == tiny_config.to_dict()


def test_sets_must_fill_the_batches() -> None:
    with pytest.raises(ValueError, match="3 and 4 items"):
        MixedDataset(Darker(3), Blobs(4), (1, 1))
    with pytest.raises(ValueError, match="batches of 3"):
        MixedDataset(Darker(2), Blobs(2), (1, 1)).make_loader(3)
