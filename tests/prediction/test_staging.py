"""Planes that are done survive an interruption, for the same result alone."""

import numpy as np
import pytest

from utils.errors import UserError
from utils.prediction.staging import earlier_record, open_staging


def test_work_that_was_interrupted_is_picked_up(tmp_path):
    arguments = (tmp_path / "mask.tif", (4, 3, 6), np.dtype(np.float32))
    values = np.random.default_rng(0).random((4, 3, 6)).astype(np.float32)
    assert earlier_record(arguments[0]) == {}
    with pytest.raises(KeyboardInterrupt), open_staging(*arguments, {"seed": 1}) as staging:
        assert staging.done == 0
        staging.append(values[..., :4])
        raise KeyboardInterrupt
    assert earlier_record(arguments[0])["seed"] == 1
    with open(staging.file, "ab") as file:
        file.write(bytes(4 * 3 + 5))  # as if killed within a plane
    with open_staging(*arguments, {"seed": 1}) as staging:
        assert staging.done == 4
        with pytest.raises(UserError, match="another process"), open_staging(*arguments, {}):
            pass
        staging.append(values[..., 4:])
        got = np.concatenate(list(staging.slabs()), axis=-1)
        np.testing.assert_array_equal(got, values)
    assert not list(tmp_path.iterdir())


def test_what_another_result_is_made_from_starts_anew(tmp_path):
    output = tmp_path / "mask.tif"
    with pytest.raises(RuntimeError), open_staging(output, (2, 2), "u1", {"a": 1}) as staging:
        staging.append(np.ones((2, 1), bool))
        raise RuntimeError
    assert staging.file.read_bytes() == bytes([1, 1])
    with open_staging(output, (2, 2), "u1", {"a": 2}) as staging:
        assert staging.done == 0 and not staging.file.read_bytes()
        assert earlier_record(output)["a"] == 2


def test_a_disk_without_room_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"mask.tif: needs up to .* GB of disk"),
        open_staging(tmp_path / "mask.tif", (10**5,) * 3, "u1", {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_bug_within_the_work_is_no_disk_error(tmp_path):
    with pytest.raises(OSError, match="^planted$") as caught:
        with open_staging(tmp_path / "mask.tif", (2, 2), "u1", {}):
            raise OSError("planted")
    assert not isinstance(caught.value, UserError)
