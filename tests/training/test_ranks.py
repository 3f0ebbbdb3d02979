"""How ranks share samples and sums; what they do in a single process: nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.training import ranks


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
