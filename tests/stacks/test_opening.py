import json
import os
import pickle

import numpy as np
import pytest
import tifffile
import zarr
from numcodecs import Pickle

from tests.stacks.stacks import NAMES, random_stack, save
from utils.errors import UserError
from utils.stacks import open_stack
from utils.stacks.stack import FileArray


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (bool, np.uint8),
        (">u2", np.uint16),
        (np.int16, np.int16),
        (np.int32, np.float32),
        (np.float64, np.float32),
        (np.float16, np.float16),
    ],
)
def test_number_types(tmp_path, stored, expected):
    array = random_stack().astype(stored)
    np.save(tmp_path / "a.npy", array)
    with open_stack(tmp_path / "a.npy") as stack:
        assert stack.dtype == expected and stack.read().dtype == expected
        np.testing.assert_array_equal(stack.read(), array.T)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[Bomb()]], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    group = zarr.open_group(str(tmp_path / "c.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=(2, 2), dtype="u1", chunks=(2, 2), filters=[Pickle()])
    chunk = next(path for path in (tmp_path / "c.zarr").rglob(".zarray")).parent / "0.0"
    chunk.write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npy", "c.zarr"):
        with pytest.raises(UserError, match=name):
            open_stack(tmp_path / name).read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.tif", "no such file"),
        ("none", "no such file"),
        ("folder.tif", "a folder"),
        ("text.zarr", "a folder is expected"),
        ("pipe.tif", "no regular file"),
        ("text.csv", "unknown ending; the known ones are .tif"),
        ("text.tif", "damaged, cut"),
        ("text.h5", "damaged, cut"),
        ("text.nrrd", "damaged, cut"),
        ("text.nii", "damaged, cut"),
        ("text.nii.gz", "damaged, cut"),
        ("text.npy", "damaged, cut"),
        ("empty.zarr", "text"),
        ("complex.npy", "complex128, not grey values"),
        ("void.npy", "no voxels"),
        ("line.npy", "1 axes"),
        ("five.npy", "5 axes"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, message):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "empty.zarr").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    for ending in ("zarr", "csv", "tif", "h5", "nrrd", "nii", "nii.gz", "npy"):
        (tmp_path / f"text.{ending}").write_text("no stack at all")
    np.save(tmp_path / "complex.npy", np.zeros((2, 2), complex))
    np.save(tmp_path / "void.npy", np.zeros((2, 0, 2)))
    np.save(tmp_path / "line.npy", np.zeros(4))
    np.save(tmp_path / "five.npy", np.zeros((2,) * 5))
    with pytest.raises(UserError, match=message if name != "empty.zarr" else name) as caught:
        open_stack(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_channel_or_key_that_cannot_be(tmp_path):
    path = save(tmp_path / "a.npy", random_stack())
    with pytest.raises(UserError, match="no channels to choose from"):
        open_stack(path, channel=1)
    with pytest.raises(UserError, match="no time points"):
        open_stack(path, index=1)
    with pytest.raises(UserError, match="--key"):
        open_stack(path, key="data")
    with open_stack(path, channel=0) as stack:
        assert stack.channel is None


@pytest.mark.parametrize("kind", [TypeError, ValueError])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", ["opening._choose", "stack.FileArray.part"])
def test_a_bug_of_ours_is_no_damaged_file(tmp_path, monkeypatch, name, kind, broken):
    path = save(tmp_path / name, random_stack())
    monkeypatch.setattr(f"utils.stacks.{broken}", raising(kind("planted")))
    with pytest.raises(kind, match="^planted$"):
        with open_stack(path) as stack:
            stack.read()


@pytest.mark.parametrize("wrong", [(slice(None),), ("z", "y", "x"), (0, 0, 10**6)])
def test_a_wrong_choice_of_voxels_is_no_damaged_file(tmp_path, wrong):
    path = save(tmp_path / "a.npy", random_stack())
    array = FileArray.found(path, lambda: np.load(path, mmap_mode="r"))
    with pytest.raises((TypeError, ValueError, IndexError)) as caught:
        array.part(wrong)
    assert not isinstance(caught.value, UserError)


def test_what_is_not_damaged_is_not_called_so(tmp_path, monkeypatch):
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 4), dtype="u1", zarr_format=2)[...] = 1
    record = tmp_path / "a.zarr" / ".zarray"
    record.write_text(json.dumps({**json.loads(record.read_text()), "compressor": {"id": "new"}}))
    with pytest.raises(UserError, match=r"a.zarr: stored in a way that cannot .*new"):
        with open_stack(tmp_path / "a.zarr") as stack:
            stack.read()

    def lacking(*arguments, **options):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    tifffile.imwrite(tmp_path / "a.tif", random_stack(), compression="lzw")
    monkeypatch.setattr(tifffile.TiffPage, "decode", property(lambda page: lacking))
    with pytest.raises(UserError, match="stored in a way that cannot .* 'imagecodecs'"):
        with open_stack(tmp_path / "a.tif") as stack:
            stack.read()
    np.save(tmp_path / "a.npy", random_stack())
    for error, said in (
        (PermissionError(13, "Permission denied"), r"cannot be read .*Permission denied"),
        (OSError(5, "Input/output error"), r"cannot be read .*Input/output"),
        (OSError("the file is already open for write"), r"cannot be read .*already open"),
        (BlockingIOError(11, "Resource temporarily unavailable"), r"cannot be read"),
        (MemoryError("Unable to allocate 7 TiB"), "not enough memory .*7 TiB"),
        (EOFError("No data left in file"), "damaged, cut or not"),
    ):
        monkeypatch.setattr(np, "load", raising(error))
        with pytest.raises(UserError, match=f"a.npy: {said}"):
            open_stack(tmp_path / "a.npy")


def raising(error):
    def function(*arguments, **options):
        raise error

    return function
