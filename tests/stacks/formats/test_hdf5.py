import json

import h5py
import numpy as np
import pytest
import zarr

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.stacks import open_stack
from utils.storage import VolumeFile


def test_samples_of_simulated_volumes(fake_file):
    with VolumeFile(fake_file) as file, open_stack(fake_file, index=2) as stack:
        assert stack.axes == "XYZ" and stack.spacing is None
        np.testing.assert_array_equal(stack.read(), file.read_image(2))
        np.testing.assert_array_equal(stack.read(3, 9), file.read_image(2)[..., 3:9])
    with pytest.raises(UserError, match=r"4 samples; name one with --index 0\.\.3"):
        open_stack(fake_file)
    with pytest.raises(UserError, match="--index 4"):
        open_stack(fake_file, index=4)


def test_keys_of_hdf5_and_zarr(tmp_path):
    first, second = random_stack((5, 6, 7)), random_stack((3, 5, 6, 7), np.uint16, 1)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = first
        file["group/channels"] = second
        tags = {"axes": [{"key": letter} for letter in "czyx"]}
        file["group/channels"].attrs["axistags"] = json.dumps(tags)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for name, array in (("raw", first), ("group/channels", second)):
        group.create_array(name, shape=array.shape, dtype=array.dtype)[...] = array
    for path in (tmp_path / "a.h5", tmp_path / "a.zarr"):
        with open_stack(path, key="raw") as stack:
            np.testing.assert_array_equal(stack.read(), first.T)
        with open_stack(path, key="group/channels", channel=1) as stack:
            np.testing.assert_array_equal(stack.read(), second[1].T)
        with pytest.raises(UserError, match="several arrays; name one with --key: .*raw"):
            open_stack(path)
        with pytest.raises(UserError, match="'other': not there; it holds .*raw"):
            open_stack(path, key="other")


@pytest.mark.parametrize("size", ["x", "1.5,0.5,0.5", [b"a", b"b", b"c"]])
def test_a_size_that_is_no_number_is_no_damage(tmp_path, size):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = random_stack()
        file["data"].attrs["element_size_um"] = size
    with open_stack(tmp_path / "a.h5") as stack:
        assert stack.spacing is None and "element_size_um" in stack.warning()
