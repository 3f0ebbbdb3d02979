"""The rate by steps and by time, and the average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.training.options import TrainingOptions
from utils.training.state import (
    FIRST_RATE,
    WARM_UP,
    TrainingClock,
    build_scheduler,
    make_average,
    rate_factor,
)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr)


def test_cosine_falls_from_one_to_zero() -> None:
    factors = [rate_factor("cosine", share / 10) for share in range(11)]
    assert factors[0] == 1 and factors[5] == pytest.approx(0.5) and factors[10] == 0
    assert factors == sorted(factors, reverse=True)


def test_cosine_is_torchs() -> None:
    ours, steps = optimizer(), 20
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(ours, steps)
    for step in range(steps):
        assert ours.param_groups[0]["lr"] == pytest.approx(0.1 * rate_factor("cosine", step / 20))
        ours.step()
        scheduler.step()


def test_onecycle_climbs_and_falls() -> None:
    assert rate_factor("onecycle", 0) == FIRST_RATE
    assert rate_factor("onecycle", WARM_UP / 2) == pytest.approx((1 + FIRST_RATE) / 2)
    assert rate_factor("onecycle", WARM_UP) == pytest.approx(1)
    assert rate_factor("onecycle", WARM_UP + (1 - WARM_UP) / 2) == pytest.approx(0.5)
    assert rate_factor("onecycle", 1) == rate_factor("onecycle", 1.7) == 0


def test_the_rate_follows_the_steps() -> None:
    options = TrainingOptions(lr_schedule="cosine", start_lr=0.2)
    training, ours = TrainingClock(options, planned=4), optimizer()
    rates = []
    for _ in range(4):
        training.set_rate(ours)
        rates.append(ours.param_groups[0]["lr"])
        training.steps += 1
        assert not training.time_is_up()
    assert rates == pytest.approx([0.2 * rate_factor("cosine", share / 4) for share in range(4)])
    resumed = TrainingClock(options, planned=4, steps=2)
    resumed.set_rate(ours)
    assert ours.param_groups[0]["lr"] == rates[2]


def test_the_rate_follows_the_clock_where_that_is_further() -> None:
    options = TrainingOptions(lr_schedule="cosine", start_lr=1.0, max_minutes=1)
    clock = Clock()
    training, ours = TrainingClock(options, planned=100, clock=clock), optimizer()
    for seconds, share in ((0.0, 0.01), (30.0, 0.5), (45.0, 0.75)):
        clock.now = 1000 + seconds
        training.steps += 1
        assert not training.time_is_up()
        training.set_rate(ours)
        assert ours.param_groups[0]["lr"] == pytest.approx(rate_factor("cosine", share), abs=0.02)
    clock.now = 1060
    assert training.time_is_up()
    assert training.share() == 1
    few = TrainingClock(options, planned=4, steps=3, clock=clock)
    assert few.share() == 0.75


def test_time_spent_before_counts() -> None:
    clock = Clock()
    options = TrainingOptions(max_minutes=1)
    training = TrainingClock(options, planned=4, steps=1, seconds=50, clock=clock)
    assert not training.time_is_up()
    clock.now += 11
    assert training.seconds == 61
    assert training.time_is_up()


def test_all_processes_take_one_clock() -> None:
    training = TrainingClock(
        TrainingOptions(max_minutes=1), planned=4, clock=Clock(), agree=lambda own: 60.0
    )
    assert training.time_is_up()


def test_plateau_is_left_to_its_own_scheduler() -> None:
    options, ours = TrainingOptions(start_lr=0.5), optimizer(0.3)
    TrainingClock(options, planned=4, steps=3).set_rate(ours)
    assert ours.param_groups[0]["lr"] == 0.3
    assert build_scheduler(ours, options).patience == 3
    assert build_scheduler(ours, TrainingOptions(lr_schedule="onecycle")) is None
    assert not TrainingClock(options, planned=4).time_is_up()


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
