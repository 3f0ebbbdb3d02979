"""What is gathered over an epoch, and how long the others are said to take."""

from __future__ import annotations

import pytest
import torch

from utils.errors import UserError
from utils.evaluation.confusion import Confusion
from utils.training.options import TrainingOptions
from utils.training.records import Tally, estimate


def test_a_tally_gives_the_mean_over_samples_and_all_counts() -> None:
    tally = Tally("validation")
    tally.add(torch.tensor(0.5), torch.tensor([[0.9], [0.1], [0.8]]), torch.ones(3, 1))
    tally.add(torch.tensor(0.9), torch.tensor([[0.7]]), torch.zeros(1, 1))
    assert (tally.batches, tally.samples) == (0, 4)
    result = tally.result()
    assert result.loss == pytest.approx((3 * 0.5 + 0.9) / 4)
    assert (result.confusion, result.samples) == (Confusion(tp=2, fp=1, fn=1, tn=0), 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tally_names_the_first_batch_without_a_finite_loss(value: float) -> None:
    tally = Tally("epoch 3, training")
    patch = torch.zeros(2, 1)
    tally.add(torch.tensor(0.5), patch, patch)
    tally.read()
    for loss in (0.5, value, float("nan")):
        tally.add(torch.tensor(loss), patch, patch)
    with pytest.raises(UserError, match=f"loss is {value} in epoch 3, training, batch 3"):
        tally.result()


@pytest.mark.parametrize(
    ("options", "to_go"),
    [
        ({"epochs": 11}, "20:00"),
        ({"epochs": 1}, "00:00"),
        ({"epochs": 11, "max_minutes": 5.0}, "03:00"),
        ({"epochs": 11, "max_minutes": 500.0}, "20:00"),
        ({"epochs": 11, "max_minutes": 1.0}, "00:00"),
    ],
)
def test_the_estimate_goes_by_epochs_or_by_minutes(options: dict, to_go: str) -> None:
    record = {"epoch": 1, "seconds": 120.0, "minutes": 2.0}
    line = estimate(record, TrainingOptions(**options))
    assert line.startswith(f"about 02:00 an epoch, {to_go} to go at most: until ")
