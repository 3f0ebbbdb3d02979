"""Changes of training items: what they keep, what they depend on, and worker processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.data import augmentation
from utils.data.augmentation import (
    LEVELS,
    Augmentation,
    AugmentedDataset,
    apply_symmetry,
    draw_symmetry,
)
from utils.data.epochs import EpochDataset
from utils.simulation.streams import Purpose, make_rng
from utils.training.options import CHOICES

SHAPES = [(16, 16, 16), (12, 12, 8), (20, 20), (12, 18)]


class Same(EpochDataset):
    """Items whose image is the mask; the epoch shifts them."""

    def __init__(self, shape: tuple[int, ...] = (12, 12, 12), length: int = 6) -> None:
        super().__init__()
        self.shape = shape
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mask = blobs(self.shape, index)
        return mask, mask.clone()


def blobs(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a binary mask (1, *shape) without any symmetry."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.float32)
    for _ in range(4):
        mask[tuple(slice(a, a + 5) for a in (rng.random(len(shape)) * shape).astype(int))] = 1
    return torch.from_numpy(mask)[None]


def only(monkeypatch: pytest.MonkeyPatch, **probabilities: float) -> None:
    """Give every change outside ``probabilities`` the probability 0, those their own."""
    for name in ("ELASTIC", "BLUR", "NOISE", "INTENSITY"):
        monkeypatch.setattr(
            augmentation, f"{name}_PROBABILITY", probabilities.get(name.lower(), 0.0)
        )


@pytest.fixture(autouse=True)
def fresh_transforms() -> None:
    augmentation._image_transforms.cache_clear()
    augmentation._smooth_deform.cache_clear()
    yield
    augmentation._image_transforms.cache_clear()
    augmentation._smooth_deform.cache_clear()


def changed(level: str, *item: Tensor, index: int = 0) -> tuple[Tensor, ...]:
    return Augmentation(level)(make_rng(Purpose.AUGMENTATION, 0, 1, index), *item)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", LEVELS)
def test_items_keep_their_form_and_range(shape: tuple[int, ...], level: str) -> None:
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    mask = blobs(shape, 0)
    for index in range(30):
        results = changed(level, image, mask, index=index)
        for result in results:
            assert type(result) is Tensor and result.dtype == torch.float32
            assert result.shape == image.shape and result.is_contiguous()
        assert 0 <= results[0].min() and results[0].max() <= 1
        assert set(results[1].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_keep_image_and_mask_together(shape: tuple[int, ...]) -> None:
    mask = blobs(shape, 1)
    for index in range(20):
        image, target = changed("flips", mask, mask, index=index)
        assert torch.equal(image, target) and image.sum() == mask.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_deformation_moves_image_and_mask_alike(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    only(monkeypatch, elastic=1.0)
    mask = blobs(shape, 2)
    moved = 0
    for index in range(10):
        turned = changed("flips", mask, index=index)[0]
        image, target = changed("full", mask, mask, index=index)
        nearest = (image > 0.5).float()  # linear between voxels, cut at a half, against nearest
        assert (nearest != target).float().mean() < 0.03
        moved += int((target != turned).sum())
        near = torch.nn.functional.max_pool2d if len(shape) == 2 else torch.nn.functional.max_pool3d
        reach = near(turned[None], 2 * 2 + 1, stride=1, padding=2)[0]
        assert (target <= reach).all()  # at most two voxels along an axis
    assert moved > 0


def test_a_deformation_of_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, elastic=1.0)
    monkeypatch.setattr(augmentation, "ELASTIC_SHIFT", 1e-6)
    mask = blobs((16, 16, 16), 3)
    image, target = changed("full", mask, mask)
    assert torch.equal(target, changed("flips", mask)[0])
    assert (image - target).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["blur", "noise", "intensity"])
def test_grey_values_change_in_the_image_only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    only(monkeypatch, **{name: 1.0})
    mask = blobs((16, 16, 16), 4)
    grey = 0.2 + 0.6 * mask
    image, target = changed("full", grey, mask)
    turned = changed("flips", mask)[0]
    assert torch.equal(target, turned)
    assert not torch.allclose(image, 0.2 + 0.6 * turned, atol=1e-3)
    assert image[turned > 0].mean() > image[turned == 0].mean()


def test_nothing_drawn_changes_nothing_but_the_symmetry(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    image = torch.rand(1, 8, 8, 8)
    assert torch.equal(changed("full", image)[0], changed("flips", image)[0])


@pytest.mark.parametrize("shape", [(24, 24, 24), (24, 24)])
def test_other_stains_show_the_same_tissue_in_other_greys(shape: tuple[int, ...]) -> None:
    mask = blobs(shape, 5)
    grey = 0.2 + 0.5 * mask + 0.1 * torch.rand(mask.shape, generator=torch.manual_seed(0))
    inverted = unchanged = 0
    for index in range(400):
        image, target = changed("stains", grey, mask, index=index)
        turned = changed("flips", grey, mask, index=index)
        assert torch.equal(target, turned[1])
        unchanged += int(torch.equal(image, turned[0]))
        inverted += int(image[target > 0].mean() < image[target == 0].mean())
    # No curve, no filter and no negative: 0.5 x 0.7 x 0.7. A filter turns bright and dark as well.
    assert 0.19 < unchanged / 400 < 0.30
    assert 0.25 < inverted / 400 < 0.45


def test_a_rising_curve_keeps_the_order_and_a_negative_turns_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augmentation, "CURVE_PROBABILITY", 1.0)
    monkeypatch.setattr(augmentation, "FILTER_PROBABILITY", 0.0)
    image = torch.rand(1, 9, 9, 9, generator=torch.manual_seed(1))
    for probability, sign in ((0.0, 1), (1.0, -1)):
        monkeypatch.setattr(augmentation, "NEGATIVE_PROBABILITY", probability)
        for index in range(10):
            result = changed("stains", image, index=index)[0]
            order = changed("flips", image, index=index)[0].flatten().argsort()
            steps = sign * result.flatten()[order].diff()
            assert steps.min() > -1e-6 and steps.max() > 0


def test_a_constant_patch_has_no_grey_values_to_change() -> None:
    for index in range(40):
        image = changed("stains", torch.full((1, 8, 8, 8), 0.25), index=index)[0]
        assert torch.isfinite(image).all() and image.std() < 1e-6


def test_all_symmetries_of_a_cube_are_drawn_equally() -> None:
    numbers = torch.arange(8.0).reshape(1, 2, 2, 2)
    rng = np.random.default_rng(0)
    seen: dict[tuple[float, ...], int] = {}
    for _ in range(2400):
        result = apply_symmetry(numbers, *draw_symmetry((2, 2, 2), rng))
        key = tuple(result.flatten().tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 48
    assert min(seen.values()) > 15 and max(seen.values()) < 85  # 50 each, sd 7


def test_a_quarter_turn_is_among_them() -> None:
    image = torch.rand(1, 3, 3, 3)
    turned = torch.rot90(image, 1, (1, 2))
    found = apply_symmetry(image, np.array([1, 0, 2]), np.array([True, False, False]))
    assert torch.equal(found, turned)


def test_axes_of_other_length_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        permutation, _ = draw_symmetry((8, 8, 4), rng)
        assert permutation[2] == 2


def test_none_returns_the_very_item() -> None:
    image, mask = torch.rand(1, 4, 4), torch.ones(1, 4, 4)
    assert all(a is b for a, b in zip(changed("none", image, mask), (image, mask), strict=True))


def test_the_flags_offer_all_levels() -> None:
    assert CHOICES["augment"] == LEVELS


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="'heavy': must be one of none, flips, stains, full"):
        AugmentedDataset(Same(), "heavy")


# --- What it depends on ---------------------------------------------------------------------------


def items(data: Dataset) -> Tensor:
    return torch.stack([torch.cat(data[k]) for k in range(len(data))])


@pytest.mark.parametrize("level", ["flips", "full"])
def test_changes_follow_from_seed_epoch_and_index(level: str) -> None:
    def at(seed: int, epoch: int) -> Tensor:
        data = AugmentedDataset(Same(), level, seed)
        data.set_epoch(epoch)
        assert data.dataset.epoch == epoch
        return items(data)

    first = at(0, 1)
    assert torch.equal(first, at(0, 1))
    assert not torch.equal(first, at(0, 2))
    assert not torch.equal(first, at(1, 1))
    images = items(AugmentedDataset(OneItem(), level))
    assert any(not torch.equal(images[0], image) for image in images[1:])


class OneItem(Same):
    """The same item under every index."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return super().__getitem__(0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    only(monkeypatch, elastic=0.5, blur=0.5, noise=0.5, intensity=0.5)
    data = AugmentedDataset(Same(length=8), "full", seed=5)
    loader = DataLoader(
        data,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,
    )
    for epoch in (1, 2):
        data.set_epoch(epoch)
        loaded = torch.stack([torch.cat([image[0], mask[0]]) for image, mask in loader])
        assert torch.equal(loaded, items(data))


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, elastic=1.0, blur=1.0, noise=1.0, intensity=1.0)
    image = torch.rand(1, 24, 24, 24)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(changed("full", image)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_random_state_of_torch_stays() -> None:
    before = torch.get_rng_state()
    for index in range(10):
        changed("full", blobs((8, 8, 8), 0), index=index)
    assert torch.equal(torch.get_rng_state(), before)
