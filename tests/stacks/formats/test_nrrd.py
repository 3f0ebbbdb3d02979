import nrrd
import numpy as np
import pytest

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.stacks import open_stack

HUGE = b"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 90000 90000 90000\nendian: little\n"


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("detached", [False, True])
def test_encodings(tmp_path, encoding, detached):
    array = random_stack(dtype=np.uint16)
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), array, {"encoding": encoding}, detached_header=detached)
    if detached:
        path = path.rename(tmp_path / "a.nrrd")
    with open_stack(path) as stack:
        assert (stack.shape, stack.dtype) == (array.shape, array.dtype)
        mapped = encoding == "raw" and not detached
        assert stack.loaded == (0 if mapped else array.nbytes)
        np.testing.assert_array_equal(stack.read(2, 4), array[..., 2:4])
        np.testing.assert_array_equal(stack.read(), array)


@pytest.mark.parametrize("order", ["big", "little"])
def test_byte_orders(tmp_path, order):
    array = random_stack(dtype=np.uint16)
    stored = array.astype(">u2" if order == "big" else "<u2")
    nrrd.write(str(tmp_path / "a.nrrd"), stored, {"encoding": "raw"})
    with open_stack(tmp_path / "a.nrrd") as stack:
        assert stack.dtype == np.uint16
        np.testing.assert_array_equal(stack.read(), array)


def test_sizes_are_known_before_voxels_are_read(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(HUGE + b"encoding: gzip\n\nfew")
    with open_stack(tmp_path / "a.nrrd") as stack:
        assert stack.loaded == 2 * 90000**3
    (tmp_path / "b.nrrd").write_bytes(HUGE + b"encoding: raw\n\nfew")
    with pytest.raises(UserError, match=r"b\.nrrd"):
        open_stack(tmp_path / "b.nrrd")
