"""What both scripts share: which shares of a batch a device can train on."""

from __future__ import annotations

import argparse

import pytest

from tests.training.test_loop import Blobs
from utils.errors import UserError
from utils.training import ranks
from utils.training.options import TrainingOptions
from utils.training.run import TrainingData, check_shares


@pytest.mark.parametrize(
    ("patches", "batch_size", "devices", "message"),
    [
        (4, 2, 1, None),
        (1, 2, 1, "a single patch a step"),
        (4, 1, 1, "a single patch a step"),
        (5, 4, 2, None),
        (8, 2, 2, "a single patch a step"),
        (3, 8, 2, "a single patch a step"),
        (2, 8, 3, "3 devices cannot share the 2 patches of an epoch; lower --devices"),
    ],
)
def test_a_device_needs_two_patches_where_one_voxel_is_left(
    monkeypatch: pytest.MonkeyPatch,
    patches: int,
    batch_size: int,
    devices: int,
    message: str | None,
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: devices)
    train, options = Blobs(patches), TrainingOptions(batch_size=batch_size)
    data = TrainingData(train, train, 4, [4.0] * 3, {})
    flags = argparse.Namespace(depth=3, stem_stride=1)
    if message is None:
        check_shares(data, options, flags)
    else:
        with pytest.raises(UserError, match=message):
            check_shares(data, options, flags)
    if patches >= devices:
        check_shares(data, options, argparse.Namespace(depth=2, stem_stride=1))
