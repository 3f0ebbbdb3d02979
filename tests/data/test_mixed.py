"""Real and simulated patches in one batch: how many of each, in which order, and errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.training.test_loop import Blobs
from utils.data import OnTheFly3DDataset
from utils.data.mixed import MixedDataset, split_batch
from utils.errors import UserError
from utils.simulation import VolumeConfig

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


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
