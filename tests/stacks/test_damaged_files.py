import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stacks.formats import test_czi
from tests.stacks.formats.test_hdf5 import describe, imaris, views
from tests.stacks.stacks import NAMES, SPACING, random_stack, save
from utils.errors import UserError
from utils.stacks import list_stacks, open_stack

FUZZED = {name for name in NAMES if "zarr" not in name} | {"lzw.tif", "pages.tif"}
OTHERS = {"a.ims", "bdv.h5", "a.xml", "a.czi"}
"""Read alone, so that nothing of ours writes them."""


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    array = random_stack((9, 8, 7), np.float32)
    files = {name: save(folder / name, array, spacing=SPACING) for name in NAMES}
    packed = folder / "lzw.tif"
    tifffile.imwrite(packed, random_stack((7, 8, 9)), compression="lzw")
    files["lzw.tif"] = packed
    files["pages.tif"] = folder / "pages.tif"
    tifffile.imwrite(files["pages.tif"], random_stack((7, 30, 30)), metadata=None)
    files.update({name: folder / name for name in OTHERS})
    views(folder / "bdv.h5", times=1)
    describe(folder / "a.xml", ["0.25 0.5 2"] * 2)
    imaris(folder / "a.ims", times=1, channels=1)
    test_czi.write(folder / "a.czi", [random_stack((1, 1, 7, 8, 9))])
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def read_a_little(path):
    """Return what is said of a file, None if it is read."""
    try:
        list_stacks(path)
        with open_stack(path, channel=0 if path.name == "bdv.h5" else None) as stack:
            if np.prod(stack.shape, dtype=float) < 1e6:
                stack.warning()
                assert stack.read(0, min(2, stack.shape[-1])).shape[:-1] == stack.shape[:-1]
    except UserError as error:
        return str(error)
    return None


@pytest.fixture
def read_apart():
    """Read in another process: some bytes end it in HDF5 (a lost variable string), or in libCZI.

    Nothing can be said then, so that such files are passed over.
    """
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=spawn)]

    def read(path):
        try:
            return pools[-1].submit(read_a_little, path).result()
        except BrokenProcessPool:
            pools.append(ProcessPoolExecutor(1, mp_context=spawn))
            return None

    yield read
    for pool in pools:
        pool.shutdown()


@pytest.mark.parametrize("name", sorted(FUZZED | OTHERS))
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_give_one_line(tmp_path, sound_files, read_apart, name, data):
    content = bytearray(sound_files[name])
    size = len(content)
    position = st.integers(0, size - 1) | st.integers(0, min(size - 1, 600))
    for place in data.draw(st.lists(position, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(size) | st.integers(0, size))]
    path = tmp_path / name
    path.write_bytes(content)
    said = (read_apart if ".h" in name or name in ("a.ims", "a.czi") else read_a_little)(path)
    assert said is None or ("\n" not in said and name in said)


@pytest.mark.parametrize("name", sorted(FUZZED))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_cut_files_are_never_taken_for_whole(tmp_path, sound_files, name, share):
    """Unless all voxels stand before the cut."""
    content = sound_files[name]
    for path, part in (("whole", content), ("cut", content[: int(share * len(content))])):
        (tmp_path / path).mkdir()
        (tmp_path / path / name).write_bytes(part)
    try:
        with open_stack(tmp_path / "cut" / name) as stack:
            got = stack.read()
    except UserError as error:
        assert name in str(error)
    else:
        assert share >= 0.9
        with open_stack(tmp_path / "whole" / name) as stack:
            np.testing.assert_array_equal(got, stack.read())
