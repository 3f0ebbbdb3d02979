"""Peaks of a heat map, and their matches with the true centres."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils.data.images import heat_map
from utils.evaluation.keypoints import KeypointScores, find_peaks, match_points

GRID = np.array([(x, y) for x in range(8, 64, 12) for y in range(6, 48, 11)]) + 0.3


@pytest.mark.parametrize("type", ["Gaussian", "Cauchy"])
def test_peaks_of_a_true_heat_map_are_the_centres(type: str) -> None:
    peaks = find_peaks(heat_map((64, 48), GRID.astype(np.float32), 2.0, type))
    scores = match_points(peaks, GRID)
    assert scores.matched == scores.peaks == scores.centres == len(GRID)
    assert scores.metrics()["mean_distance"] < 0.5


def test_a_plateau_has_one_peak_and_an_empty_map_none() -> None:
    plateau = np.zeros((30, 30), np.float32)
    plateau[10:15, 12:17] = 1.0
    np.testing.assert_allclose(find_peaks(plateau), [[12.5, 14.5]])
    assert find_peaks(np.full((30, 30), 0.1)).shape == (0, 2)


def test_peaks_in_three_dimensions() -> None:
    volume = np.zeros((12, 12, 12))
    volume[3, 8, 5] = 10.0
    np.testing.assert_allclose(find_peaks(volume), [[3.5, 8.5, 5.5]])


def test_hand_counted_matches() -> None:
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])
    peaks = np.array([[1.0, 0.0], [0.0, 3.0], [10.0, 4.5]])
    scores = match_points(peaks, centres, tolerance=4.0)
    assert scores == KeypointScores(matched=1, peaks=3, centres=3, distance_sum=1.0)
    metrics = (scores + KeypointScores(3, 3, 3, 1.0)).metrics()
    assert metrics == pytest.approx({"precision": 4 / 6, "recall": 4 / 6, "mean_distance": 0.5})


@pytest.mark.parametrize(("peaks", "centres"), [(0, 0), (2, 0), (0, 3)])
def test_nothing_found_or_nothing_there(peaks: int, centres: int) -> None:
    scores = match_points(np.zeros((peaks, 2)), np.zeros((centres, 2)))
    assert scores == KeypointScores(0, peaks, centres, 0.0)
    assert scores.metrics()["mean_distance"] is None


def best_by_trying_all(peaks: np.ndarray, centres: np.ndarray, tolerance: float) -> tuple:
    """Return the most pairs, and the least distance of as many, over all choices of pairs."""
    best = (0, 0.0)
    for order in itertools.permutations(range(len(centres)), min(len(peaks), len(centres))):
        for chosen in itertools.combinations(range(len(peaks)), len(order)):
            gaps = np.linalg.norm(peaks[list(chosen)] - centres[list(order)], axis=1)
            gaps = gaps[gaps <= tolerance]
            best = max(best, (len(gaps), -gaps.sum()))
    return best[0], -best[1]


POINTS = hnp.arrays(float, st.tuples(st.integers(1, 4), st.just(2)), elements=st.floats(0, 9))


@settings(max_examples=60, deadline=None)
@given(POINTS, POINTS)
def test_most_pairs_and_of_those_the_nearest(peaks: np.ndarray, centres: np.ndarray) -> None:
    scores = match_points(peaks, centres, tolerance=3.0)
    count, distance = best_by_trying_all(peaks, centres, 3.0)
    assert scores.matched == count
    assert scores.distance_sum == pytest.approx(distance, abs=1e-9)
