"""Choosing patches: counts against a plain twin, uniformity over valid corners, the densest."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data import patches
from utils.data.patches import Slices, box_counts, choose_patch, patch_slices


def counts_one_by_one(mask: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    corners = [range(s - p + 1) for s, p in zip(mask.shape, patch, strict=True)]
    flat = [mask[patch_slices(c, patch)].sum() for c in itertools.product(*corners)]
    return np.reshape(flat, [len(c) for c in corners])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dims=st.integers(1, 3))
def test_box_counts_equal_those_counted_one_by_one(data: st.DataObject, dims: int) -> None:
    shape = tuple(data.draw(st.integers(1, 8)) for _ in range(dims))
    patch = tuple(data.draw(st.integers(1, s)) for s in shape)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2, shape, np.uint8)
    np.testing.assert_array_equal(box_counts(mask, patch), counts_one_by_one(mask, patch))


def corner_of(slices: Slices) -> tuple[int, ...]:
    return tuple(part.start for part in slices)


@pytest.mark.parametrize("tries", [4, 6, 1000])
def test_patches_are_uniform_over_valid_corners(
    tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "_TRIES", tries)
    mask = np.zeros((9, 8), np.uint8)
    mask[6:, 5:] = 1
    mask[0, 0] = 1
    patch = (3, 3)
    valid = set(zip(*np.nonzero(counts_one_by_one(mask, patch) >= 3), strict=True))
    rng = np.random.default_rng(0)
    drawn = Counter(
        corner_of(choose_patch(mask.__getitem__, mask.shape, patch, 6 / 9, rng)[0])
        for _ in range(400 * len(valid))
    )
    assert set(drawn) == valid
    # A count has a standard deviation of 20 about 400: five of them.
    assert all(abs(count - 400) < 100 for count in drawn.values())


def test_the_patch_has_enough_foreground_and_its_own_mask() -> None:
    rng = np.random.default_rng(1)
    mask = (rng.random((20, 20, 20)) < 0.05).astype(np.uint8)
    for _ in range(50):
        slices, part = choose_patch(mask.__getitem__, mask.shape, (8, 8, 8), 0.95, rng)
        np.testing.assert_array_equal(part, mask[slices])
        assert part.mean() >= 0.05


def test_where_none_has_enough_the_densest_is_taken() -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[7, 8, 9] = mask[7, 8, 10] = 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, part = choose_patch(mask.__getitem__, mask.shape, (4, 4, 4), 0.5, rng)
        assert part.sum() == 2


def test_an_empty_mask_gives_a_patch_all_the_same() -> None:
    mask = np.zeros((6, 6), np.uint8)
    _, part = choose_patch(mask.__getitem__, (6, 6), (4, 4), 0.95, np.random.default_rng(0))
    assert part.shape == (4, 4)


def test_only_the_patch_is_read_when_the_first_try_hits() -> None:
    read: list[Slices] = []

    def read_mask(slices: Slices) -> np.ndarray:
        read.append(slices)
        return np.ones([part.stop - part.start for part in slices], np.uint8)

    slices, _ = choose_patch(read_mask, (50, 50, 50), (8, 8, 8), 0.0, np.random.default_rng(0))
    assert read == [slices]


def test_a_patch_may_be_the_whole_volume() -> None:
    mask = np.eye(5, dtype=np.uint8)
    slices, _ = choose_patch(mask.__getitem__, (5, 5), (5, 5), 0.95, np.random.default_rng(0))
    assert corner_of(slices) == (0, 0)


def test_the_threshold_itself_is_enough() -> None:
    mask = np.zeros((20,), np.uint8)
    mask[4] = 1  # 95 % background exactly
    reads: list[Slices] = []

    def read_mask(slices: Slices) -> np.ndarray:
        reads.append(slices)
        return mask[slices]

    choose_patch(read_mask, (20,), (20,), 0.95, np.random.default_rng(0))
    assert len(reads) == 1
