"""Layers of chunks that are unpacked whole: each once, and counted in what memory is needed."""

import math
from unittest import mock

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.prediction.memory import Memory, check_loading
from utils.stacks import crop_stack, open_stack
from utils.stacks.stack import FileArray


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_chunks_give_the_same_voxels(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("chunks")
    shape = tuple(data.draw(st.integers(3, 9)) for _ in range(3))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    array = random_stack(shape, data.draw(st.sampled_from([np.uint8, np.int32])))
    name = data.draw(st.sampled_from(["a.h5", "plain.h5", "a.zarr"]))
    if name.endswith("zarr"):
        zarr.create_array(str(folder / name), data=array, chunks=chunks)
    else:
        with h5py.File(folder / name, "w") as file:
            packed = 1 if name == "a.h5" else None
            file.create_dataset("data", data=array, chunks=chunks, compression=packed)
    box = [sorted(data.draw(st.permutations(range(n + 1)))[:2]) for n in shape]
    expected = array[tuple(slice(*pair) for pair in box)].T
    with open_stack(folder / name, axes="ZYX") as whole:
        stack = crop_stack(whole, box)
        assert stack.layer == (1 if name == "plain.h5" else chunks[0])
        for _ in range(3):
            start, stop = sorted(data.draw(st.permutations(range(stack.shape[-1] + 1)))[:2])
            slab = stack.read(start, stop)
            assert slab.dtype == stack.dtype and slab.shape == (*stack.shape[:-1], stop - start)
            np.testing.assert_array_equal(slab, expected[..., start:stop])
        np.testing.assert_array_equal(whole.read(), array.T)


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
@pytest.mark.parametrize("first", [0, 3])
def test_slabs_in_order_unpack_each_layer_once(tmp_path, name, first):
    array = random_stack((24, 6, 7))
    if name == "a.zarr":
        zarr.create_array(str(tmp_path / name), data=array, chunks=(8, 3, 7))
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("data", data=array, chunks=(8, 3, 7), compression=1)
    read = []
    part = FileArray.part

    def noted(self, where):
        read.append((where[0].start, where[0].stop))
        return part(self, where)

    with open_stack(tmp_path / name) as whole, mock.patch.object(FileArray, "part", noted):
        stack = crop_stack(whole, ((first, None), (None, None), (2, 4)))
        slabs = [stack.read(z, min(z + 2, stack.shape[-1])) for z in range(0, stack.shape[-1], 2)]
    np.testing.assert_array_equal(np.concatenate(slabs, axis=-1), array.T[2:4, :, first:])
    assert read == [(first, 8), (8, 16), (16, 24)]


def test_chunks_that_cannot_be_kept_are_refused(tmp_path):
    shape = (200, 300, 400)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", shape, "u2", chunks=shape, compression=1)[0] = 1
        file.create_dataset("flat", shape, "u2", chunks=(1, 300, 400), compression=1)[0] = 1
    chunk = 2 * math.prod(shape)
    with open_stack(tmp_path / "a.h5", key="data") as whole:
        stack = crop_stack(whole, ((0, 20), (0, 40), (0, 40)))
        assert stack.unpacked == 2 * chunk
        enough = Memory(0, Memory(0, 0).peak(stack.unpacked + 200 * 40 * 40 * 4))
        check_loading(stack, enough)
        with pytest.raises(
            UserError, match="its chunks, 200 deep, are unpacked whole, which needs"
        ):
            check_loading(stack, Memory(0, Memory(0, 0).peak(stack.unpacked - 1)))
    with open_stack(tmp_path / "a.h5", key="flat") as stack:
        check_loading(stack, Memory(0, Memory(0, 0).peak(2 * chunk // 50)))
