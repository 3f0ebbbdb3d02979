"""How ranks share batches, samples and sums; what they do in a single process: nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.training import ranks
from utils.training.ranks import BatchShares


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
    order = list(range(100, 100 + length))
    shares = [BatchShares(order, batch_size, rank, number) for rank in range(number)]
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


@pytest.mark.parametrize(("length", "number"), [(7, 3), (2, 3), (9, 1)])
def test_blocks_hold_each_item_once(
    monkeypatch: pytest.MonkeyPatch, length: int, number: int
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: number)
    found = []
    for rank in range(number):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        found += ranks.own_block(length)
    assert found == list(range(length))


def test_a_single_process_shares_with_nobody() -> None:
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    counts = torch.tensor([1, 2, 3, 4])
    assert ranks.pooled(0.5, 3, counts) == (0.5, 3, counts)
    norm = nn.BatchNorm3d(1)
    norm.running_mean.fill_(3.0)
    ranks.average_buffers(norm, None)
    assert norm.running_mean.item() == 3.0
    assert ranks.own_block(4) == range(4)


def test_loaders_without_shares_weigh_one() -> None:
    assert ranks.loss_weight([1, 2], 1) == 1.0
