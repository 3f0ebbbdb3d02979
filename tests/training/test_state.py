"""The moving average of weights: its formula and its buffers."""

from __future__ import annotations

import torch
from torch import nn

from utils.training.state import make_average


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))


def test_no_average_without_decay() -> None:
    assert make_average(network(), 0.0) is None


def test_the_average_follows_the_formula() -> None:
    model = network()
    average = make_average(model, 0.5)
    expected = None
    for n in range(8):
        with torch.no_grad():
            model[0].weight += n
            model[1].running_mean += n
            model[1].num_batches_tracked += 1
        current = torch.cat([model[0].weight.flatten(), model[1].running_mean]).detach().clone()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = current if n == 0 else decay * expected + (1 - decay) * current
        average.update_parameters(model)
    found = torch.cat([average.module[0].weight.flatten(), average.module[1].running_mean])
    torch.testing.assert_close(found.detach(), expected)
    assert not torch.allclose(found, current)
    assert average.module[1].num_batches_tracked == model[1].num_batches_tracked == 8


def test_the_count_is_not_read_from_the_device() -> None:
    average = make_average(nn.Linear(2, 2), 0.9)
    average.n_averaged.fill_(8)  # (1 + 8) / (10 + 8) is kept
    averaged, unreadable = [torch.zeros(3)], torch.zeros((), device="meta")
    average.multi_avg_fn(averaged, [torch.ones(3)], unreadable)
    assert torch.equal(averaged[0], torch.full((3,), 0.5))
