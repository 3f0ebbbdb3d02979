import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from utils.data.normalize import PercentileNormalizer, measure_limits
from utils.prediction import trust
from utils.prediction.sliding_window import View, Windows
from utils.prediction.trust import (
    CHANGES,
    MIRRORED,
    Agreement,
    Calibration,
    allowed_passes,
    describe_trust,
    measure_agreement,
    passes_of,
)
from utils.prediction.whole_stack import StackPrediction
from utils.stacks import open_stack

NORMALIZER = PercentileNormalizer(rule="percentiles")


class Counting(nn.Module):
    """Calls what is bright foreground, and counts the windows; ``slope`` along x is added."""

    def __init__(self, slope=0.0):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.slope, self.voxels, self.largest = slope, 0, 0

    def forward(self, x):
        self.voxels += x[:, 0].numel()
        self.largest = max(self.largest, len(x))
        ramp = self.slope * torch.linspace(-1, 1, x.shape[2]).view(-1, 1, 1)
        return 20 * (x + ramp - 0.5)


@pytest.fixture
def agree(tmp_path):
    def run(image, model, most=10_000, edge=8, changes=CHANGES, shape=None, **options):
        np.save(tmp_path / "a.npy", image.T)
        shape = shape or image.shape
        with open_stack(tmp_path / "a.npy") as stack:
            limits = measure_limits(stack, NORMALIZER)
            windows = Windows((edge,) * 3, **options)
            ready = StackPrediction(model, stack, NORMALIZER, limits, shape, windows)
            return measure_agreement(ready, most, np.random.default_rng(0), changes)

    return run


def blobs(*shape):
    return np.random.default_rng(1).random(shape).astype(np.float32)


def test_a_network_that_sees_voxels_alone_agrees_with_its_mirror_image(agree):
    found = agree(blobs(16, 16, 16), Counting(), changes=MIRRORED, overlap=0.0)
    assert found == Agreement(1.0, 8, 8)


def test_a_network_that_sees_no_grey_values_but_one_side_disagrees_with_its_mirror_image(agree):
    found = agree(blobs(8, 8, 8), Counting(slope=100.0), changes=(View(flipped=(0,)),))
    assert found.value == 0


def test_agreement_is_the_mean_over_changes_of_the_iou_of_pooled_voxels(agree):
    image, model = blobs(16, 16, 24), Counting(slope=0.3)
    changes = (View(flipped=(0,)), View(power=0.5))
    found = agree(image, model, changes=changes, overlap=0.0)
    scaled = NORMALIZER.apply(image, *NORMALIZER.fit(image))
    ramp = 0.3 * np.linspace(-1, 1, 8)[:, None, None]
    counts = np.zeros((2, 2))
    for x, y, z in itertools.product((0, 8), (0, 8), (0, 8, 16)):
        window = scaled[x : x + 8, y : y + 8, z : z + 8]
        mask = window + ramp >= 0.5
        for k, other in enumerate((window - ramp >= 0.5, window**0.5 + ramp >= 0.5)):
            counts[k] += (mask & other).sum(), (mask | other).sum()
    assert (found.windows, found.looked_at) == (12, 12)
    assert found.value == pytest.approx(np.mean(counts[:, 0] / counts[:, 1]), abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("most", [1, 25, 57, 10_000])
def test_no_more_is_spent_than_allowed(agree, most, batch_size):
    model = Counting()
    found = agree(blobs(40, 40, 40), model, most, batch_size=batch_size, precision="bf16")
    spent = model.voxels / 8**3
    assert spent <= max(most, passes_of(CHANGES))
    assert found.windows == min(max(1, most // passes_of(CHANGES)), trust.MOST_WINDOWS)
    assert model.largest <= max(1, batch_size // 2)  # enlarged windows take twice the memory


def test_windows_without_foreground_cost_one_pass_and_say_nothing(agree):
    image = np.zeros((32, 32, 32), np.float32)
    image[:8, :8, :8] = blobs(8, 8, 8)
    model = Counting()
    found = agree(image, model, most=40, precision="bf16", overlap=0.0)
    assert found.windows <= 1 and model.voxels / 8**3 <= 40
    empty = agree(image[8:], Counting(), most=12, precision="bf16")
    assert math.isnan(empty.value) and (empty.windows, empty.looked_at) == (0, 3)
    (said,) = describe_trust(empty, None)
    assert said == "trust: unknown, as 3 windows looked at show no columns"


def test_windows_are_of_the_voxels_that_the_network_sees(agree):
    image = np.repeat(np.repeat(np.repeat(blobs(8, 8, 8), 2, 0), 2, 1), 2, 2)
    assert agree(image, Counting(), shape=(8, 8, 8), changes=MIRRORED).looked_at == 1


@pytest.mark.parametrize(
    ("total", "seconds", "passes"),
    [(1000, 1000, 250), (1000, 10, 1000), (27, 2.7, 100), (10, 400, 2), (4, 0.0, 10**10)],
)
def test_a_quarter_of_the_prediction_or_ten_seconds(total, seconds, passes):
    assert allowed_passes(total, seconds) == pytest.approx(passes, abs=1)


def test_calibration_in_closed_form():
    one = Calibration.from_dict({"offset": 0.0, "slope": 1.0, "low": -math.log(2), "high": 0.0})
    assert one.expected(0.5) == pytest.approx((0.5, 1 / 3, 0.5))
    assert one.expected(0.8)[0] == pytest.approx(0.8)
    values = [one.expected(value)[0] for value in (0.0, 0.3, 0.7, 1.0)]
    assert values == sorted(values) and 0 < values[0] and values[-1] < 1


@pytest.mark.parametrize("bad", [{"offset": 0}, {"other": 1}, 7, "none"])
def test_a_calibration_that_is_none_is_refused(bad):
    with pytest.raises((TypeError, ValueError)):
        Calibration.from_dict(bad)


def test_what_is_told():
    calibration = Calibration(0.0, 1.0, -0.5, 0.5)
    good, bad = (describe_trust(Agreement(a, 9, 12), calibration) for a in (0.7, 0.2))
    assert len(good) == 1 and "trust: 0.70 " in good[0]
    assert good[0].endswith("IoU expected about 0.70 (0.59 to 0.79)")
    assert bad[1].startswith("warning: not to be trusted")
    doubtful = describe_trust(Agreement(0.4, 9, 12), calibration)  # 0.4, and 0.29 at the least
    assert doubtful[1].startswith("note: look at the mask before you use it: it may be hardly ")
    (unknown,) = describe_trust(Agreement(0.7, 9, 12), None)
    assert "trust: 0.70 " in unknown and "expected" not in unknown.split(";")[0]
