"""Indices of data sets: whole numbers, and one line for all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from utils.data import (
    AugmentedDataset,
    OnTheFly3DDataset,
    SegmentationFake2DDataset,
    SegmentationFake3DDataset,
)
from utils.data.epochs import item_index
from utils.simulation.volume import VolumeConfig


@pytest.fixture(params=["2D", "files", "on the fly", "augmented"])
def dataset(request: pytest.FixtureRequest, fake_file: Path, tiny_config: VolumeConfig) -> Dataset:
    if request.param == "2D":
        return SegmentationFake2DDataset(L=3, seed=0, shape=(32, 32), min_labelled=0.1)
    if request.param == "on the fly":
        return OnTheFly3DDataset(tiny_config, patch_size=8, patches_per_epoch=4)
    stored = SegmentationFake3DDataset(fake_file, patch_size=8)
    return AugmentedDataset(stored, "flips") if request.param == "augmented" else stored


@pytest.mark.parametrize("index", [slice(0, 2), [0, 1], 1.0, "a", None])
def test_what_is_no_whole_number_is_one_line_that_says_what_to_do(
    dataset: Dataset, index: object
) -> None:
    with pytest.raises(TypeError, match=r"^data sets take whole numbers, not .*Subset\(dataset, "):
        dataset[index]


def test_the_advice_works(dataset: Dataset) -> None:
    first_two = Subset(dataset, range(2))
    assert len(first_two) == 2 and torch.equal(first_two[1][0], dataset[1][0])


def test_whole_numbers_of_all_kinds_are_indices() -> None:
    for one in (1, np.int64(1), np.uint8(1), torch.tensor(1)):
        assert item_index(one, 3) == 1
    assert [item_index(k, 3) for k in (-3, -1, 2)] == [0, 2, 2]


@pytest.mark.parametrize("index", [3, -4])
def test_numbers_outside_are_named(index: int) -> None:
    with pytest.raises(IndexError, match=rf"item {index} is outside -3..2"):
        item_index(index, 3)
