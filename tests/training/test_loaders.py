"""Batches of an epoch: their order, who gets them, and that none is lonely where it need not be."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric

from tests.training.test_loop import Blobs
from utils.devices import Compute
from utils.simulation.streams import Purpose, make_rng
from utils.training.loaders import (
    BatchShares,
    build_loader,
    even_batches,
    loss_weight,
)
from utils.training.options import TrainingOptions
from utils.training.ranks import make_fabric


@pytest.fixture
def fabric() -> Fabric:
    return make_fabric(Compute("cpu", "32-true", "test"), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_and_change_with_the_epoch(
    fabric: Fabric, workers: int
) -> None:
    data = Blobs(5)
    options = TrainingOptions(batch_size=2, num_workers=workers, seed=3)
    loader = build_loader(fabric, data, options, training=True)
    orders = []
    for epoch in (1, 2):
        data.set_epoch(epoch)
        order = make_rng(Purpose.BATCH_ORDER, 3, epoch).permutation(5)
        # A last batch of one is left out.
        expected = torch.stack([data[int(k)][0] for k in order[:4]])
        assert torch.equal(torch.cat([images for images, _ in loader]), expected)
        orders.append(order.tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("length", "batch_size", "sizes"),
    [(5, 2, [2, 2]), (6, 4, [4, 2]), (1, 2, [1]), (3, 1, [1, 1, 1]), (4, 2, [2, 2]), (3, 8, [3])],
)
def test_only_a_lonely_last_sample_is_left_out_of_training(
    fabric: Fabric, length: int, batch_size: int, sizes: list[int]
) -> None:
    options = TrainingOptions(batch_size=batch_size)
    loader = build_loader(fabric, Blobs(length), options, training=True)
    assert [len(images) for images, _ in loader] == sizes
    whole = build_loader(fabric, Blobs(length), options)
    assert sum(len(images) for images, _ in whole) == length


@pytest.mark.parametrize(
    ("length", "batch_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (9, 4, [3, 3, 3]),
        (10, 4, [3, 3, 4]),
        (65, 32, [21, 22, 22]),
        (5, 2, [2, 3]),
        (3, 2, [3]),
        (3, 1, [1, 1, 1]),
        (1, 4, [1]),
        (0, 4, []),
    ],
)
def test_validation_sees_each_patch_and_none_alone(
    length: int, batch_size: int, sizes: list[int]
) -> None:
    batches = even_batches(range(100, 100 + length), batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert [index for batch in batches for index in batch] == list(range(100, 100 + length))


def test_no_shuffle_keeps_the_order() -> None:
    data = Blobs(5)
    for epoch in (1, 2):
        data.set_epoch(epoch)
        assert list(BatchShares(data, 2, 3, shuffle=False)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("length", "batch_size", "number", "sizes"),
    [
        (6, 2, 1, [2, 2, 2]),
        (5, 2, 1, [2, 2]),
        (5, 1, 1, [1] * 5),
        (1, 2, 1, [1]),
        (11, 4, 1, [4, 4, 3]),
        (10, 5, 2, [5, 5]),
        (12, 8, 2, [8, 4]),
        (11, 8, 2, [8]),
        (11, 4, 4, [4, 4]),
        (3, 8, 2, [3]),
        (16, 8, 8, [8, 8]),
    ],
)
def test_shares_are_parts_of_the_same_batches(
    length: int, batch_size: int, number: int, sizes: list[int]
) -> None:
    order = list(range(length))
    shares = [
        BatchShares(Blobs(length), batch_size, shuffle=False, rank=rank, ranks=number)
        for rank in range(number)
    ]
    batches = list(zip(*shares, strict=True))
    assert [sum(map(len, parts)) for parts in batches] == sizes
    assert all(len(share) == len(sizes) for share in shares)
    flat = [index for parts in batches for index in sorted(sum(parts, []))]
    assert flat == order[: sum(sizes)]
    for batch, parts in enumerate(batches, 1):
        for share, part in zip(shares, parts, strict=True):
            assert part
            assert share.weight(batch) == pytest.approx(number * len(part) / sizes[batch - 1])
        assert sum(share.weight(batch) for share in shares) == pytest.approx(number)


def test_loaders_without_shares_weigh_one() -> None:
    assert loss_weight([1, 2], 1) == 1.0
