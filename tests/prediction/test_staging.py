"""Planes that are done survive an interruption, for the same result alone."""

import json

import numpy as np
import pytest

from utils.errors import UserError
from utils.prediction.staging import open_staging


def test_work_that_was_interrupted_is_picked_up(tmp_path):
    arguments = (tmp_path / "mask.tif", (4, 3, 6), ("mask", "probabilities"))
    values = np.random.default_rng(0).random((4, 3, 6)).astype(np.float32)
    with pytest.raises(KeyboardInterrupt), open_staging(*arguments, {"seed": 1}) as staging:
        assert staging.done == 0
        staging.append(values[..., :4], 0.5)
        raise KeyboardInterrupt
    with open(staging.file("mask"), "ab") as file:
        file.write(bytes(4 * 3 + 5))  # as if killed before the slab of the other output
    with open_staging(*arguments, {"seed": 1}) as staging:
        assert staging.done == 4
        with pytest.raises(UserError, match="another process"), open_staging(*arguments, {}):
            pass
        staging.append(values[..., 4:], 0.5)
        got = np.concatenate(list(staging.slabs("probabilities")), axis=-1)
        np.testing.assert_array_equal(got, values)
        mask = np.concatenate(list(staging.slabs("mask")), axis=-1)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, values >= 0.5)
    assert not list(tmp_path.iterdir())


def test_what_another_result_is_made_from_starts_anew(tmp_path):
    output = tmp_path / "mask.tif"
    with pytest.raises(RuntimeError), open_staging(output, (2, 2), ("mask",), {"a": 1}) as staging:
        staging.append(np.ones((2, 1), np.float32), 0.5)
        raise RuntimeError
    with open_staging(output, (2, 2), ("mask",), {"a": 2}) as staging:
        assert staging.done == 0 and not staging.file("mask").read_bytes()
        assert json.loads((staging.folder / "made_from.json").read_text())["a"] == 2


def test_a_disk_without_room_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"mask.tif: needs up to .* GB of disk"),
        open_staging(tmp_path / "mask.tif", (10**5,) * 3, ("mask",), {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_bug_within_the_work_is_no_disk_error(tmp_path):
    with pytest.raises(OSError, match="^planted$") as caught:
        with open_staging(tmp_path / "mask.tif", (2, 2), ("mask",), {}):
            raise OSError("planted")
    assert not isinstance(caught.value, UserError)
