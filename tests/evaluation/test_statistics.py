import itertools
import math

import numpy as np
import pandas as pd
import pytest

from utils.evaluation import statistics
from utils.evaluation.statistics import (
    bootstrap_mean,
    means_over_volumes,
    paired_differences,
)


def test_bootstrap_interval_covers_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "LEVEL", 0.8)
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        interval = bootstrap_mean(rng.normal(0.5, 0.1, 40), rng)
        assert interval.low <= interval.mean <= interval.high
        hits += interval.low <= 0.5 <= interval.high
    assert 140 <= hits <= 178


def test_bootstrap_is_seeded_and_leaves_nan_out():
    values = np.array([0.1, np.nan, 0.4, 0.7])
    first, second = (bootstrap_mean(values, np.random.default_rng(0)) for _ in range(2))
    assert first == second
    assert first.mean == pytest.approx(0.4) and first.volumes == 3
    assert 0.1 <= first.low < first.high <= 0.7


def test_bootstrap_of_too_few_and_of_equal_values():
    rng = np.random.default_rng(0)
    one, none = bootstrap_mean(np.array([0.3]), rng), bootstrap_mean(np.array([np.nan]), rng)
    assert one.mean == 0.3 and math.isnan(one.low) and math.isnan(one.high) and one.volumes == 1
    assert math.isnan(none.mean) and none.volumes == 0
    equal = bootstrap_mean(np.full(4, 0.25), rng)
    assert (equal.low, equal.mean, equal.high) == (0.25, 0.25, 0.25)


def exact_signed_rank_p(differences):
    """Wilcoxon's two-sided p for differences of distinct sizes: all signs are tried."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    middle = ranks.sum() / 2
    seen = abs(ranks[np.asarray(differences) > 0].sum() - middle)
    sums = [sum(s) for s in itertools.product(*[(0, int(rank)) for rank in ranks])]
    return np.mean([abs(total - middle) >= seen for total in sums])


def test_means_leave_out_what_has_no_meaning_and_draw_the_same_volumes():
    scores = pd.DataFrame({"a": [1.0, 3.0], "b": [1.0, 3.0], "c": [math.nan, 5.0]})
    means = means_over_volumes(scores, seed=0)
    assert means["mean"].to_dict() == {"a": 2, "b": 2, "c": 5}
    assert means["volumes"].to_dict() == {"a": 2, "b": 2, "c": 1}
    assert means.loc["a"].equals(means.loc["b"])


def compare_paired(a, b):
    """The paired differences of one score."""
    frames = (pd.DataFrame({"score": values}, dtype=float) for values in (a, b))
    return paired_differences(*frames, seed=0).loc["score"]


def test_paired_differences_are_of_pairs():
    rng = np.random.default_rng(3)
    a = rng.random(10)
    gains = np.array([0.01, 0.02, 0.03, -0.005, 0.04, 0.05, 0.06, 0.07, -0.015, 0.08])
    found = compare_paired(a, a + gains)
    assert found["mean"] == pytest.approx(gains.mean())
    assert found["b"] - found["a"] == pytest.approx(gains.mean())
    assert 0 < found["low"] < found["high"] < 0.08  # the spread of a drops out
    assert (found["b_higher"], found["a_higher"]) == (8, 2)
    assert found["p_value"] == pytest.approx(exact_signed_rank_p(gains))


def test_pairs_with_a_gap_are_left_out():
    found = compare_paired([0.1, np.nan, 0.3, 0.4], [0.2, 0.5, np.nan, 0.3])
    assert found["volumes"] == 2
    assert found["a"] == pytest.approx(0.25) and found["b"] == pytest.approx(0.25)


def test_equal_scores_have_no_test():
    found = compare_paired([0.3, 0.5], [0.3, 0.5])
    assert (found["low"], found["high"]) == (0, 0)
    assert math.isnan(found["p_value"]) and found["a_higher"] == found["b_higher"] == 0


def test_volumes_are_paired_by_their_index():
    a = pd.DataFrame({"iou": [0.5, 0.25], "hd95": [math.nan, 3.0]}, index=[4, 2])
    b = pd.DataFrame({"iou": [0.75, 0.5], "hd95": [2.0, 9.0]}, index=[2, 4])
    found = paired_differences(a, b, seed=0)
    assert found["mean"].to_dict() == {"iou": 0.25, "hd95": -1}
    assert found.loc["iou", "b_higher"] == 1 and found.loc["iou", "a_higher"] == 0
    assert found["volumes"].to_dict() == {"iou": 2, "hd95": 1}
