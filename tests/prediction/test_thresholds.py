import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.prediction.thresholds import HIGHEST, LEVELS, LOWEST, best_threshold, to_levels


def expected_iou(probabilities: np.ndarray, threshold: float) -> float:
    """Return the expected IoU by its definition, voxel by voxel, of probabilities from 0.05 on."""
    chances = (np.floor(probabilities * LEVELS) + 0.5) / LEVELS
    chances[chances < 0.05] = 0
    called = probabilities >= threshold
    hits = chances[called].sum()
    return hits / (called.sum() + chances.sum() - hits)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 999), a=st.floats(0.05, 3), b=st.floats(0.05, 3))
def test_no_other_threshold_has_a_higher_expected_iou(seed, a, b):
    probabilities = np.random.default_rng(seed).beta(a, b, (6, 7, 30)).astype(np.float32)
    probabilities *= 0.99
    threshold = best_threshold(to_levels(part) for part in np.array_split(probabilities, 3, axis=2))
    others = np.arange(round(LOWEST * LEVELS), round(HIGHEST * LEVELS) + 1) / LEVELS
    best = max(expected_iou(probabilities, other) for other in others)
    assert LOWEST - 1 / LEVELS <= threshold <= HIGHEST
    assert expected_iou(probabilities, threshold) == pytest.approx(best, abs=1e-6)


def test_probabilities_that_come_true_are_cut_where_the_true_iou_is_highest():
    rng = np.random.default_rng(0)
    chance = rng.beta(0.6, 1.6, 200_000).astype(np.float32)  # unsure everywhere: 0.27 on average
    truth = rng.random(chance.size) < chance

    def iou(threshold):
        mask = chance >= threshold
        return (mask & truth).sum() / (mask | truth).sum()

    threshold = best_threshold([to_levels(chance)])
    best = max(map(iou, np.arange(0.05, 0.95, 0.01)))
    assert iou(threshold) > best - 0.002 and iou(0.5) < best - 0.03
    # Half of the best Dice coefficient, as theory has it.
    assert threshold == pytest.approx(best / (1 + best), abs=0.02)


def test_more_empty_space_changes_nothing():
    rng = np.random.default_rng(1)
    levels = to_levels(rng.beta(0.7, 1.2, 5_000).astype(np.float32))
    dim = to_levels(np.full(500_000, 0.04, np.float32))
    assert best_threshold([levels, dim]) == best_threshold([levels])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.04])
def test_where_nothing_is_to_choose_it_is_a_half(value):
    assert best_threshold([to_levels(np.full((3, 4, 5), value, np.float32))]) == 0.5
    mask = np.random.default_rng(2).integers(0, 2, (5, 5, 5)).astype(np.uint8)
    assert best_threshold([to_levels(mask)]) == 0.5


def test_levels_round_down():
    assert to_levels(np.array([0, 1 / 257, 0.5, 0.4999, 1.0], np.float32)).tolist() == [
        *(0, 0, 128, 127, 255)
    ]
