import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import zarr

from tests.stacks.stacks import NAMES, SPACING, random_stack, save
from utils.errors import UserError
from utils.stacks import StackLayout, check_output, open_stack, write_stack

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("axes", ["ZYX", "XYZ", "YX"])
def test_what_is_written_is_read_again(tmp_path, name, dtype, axes):
    shape = (7, 6, 5)[: len(axes)]
    array = random_stack(shape, dtype)
    spacing = SPACING[: len(axes)]
    path = save(tmp_path / name, array, spacing=spacing, axes=axes)
    with open_stack(path) as stack:
        if name == "a.npy":  # has neither spacing nor names of axes
            if axes != "XYZ":
                np.testing.assert_array_equal(stack.read(), array)
            np.testing.assert_array_equal(np.load(path), array if axes == "XYZ" else array.T)
            return
        assert (stack.shape, stack.dtype, stack.channel) == (shape, dtype, None)
        assert stack.spacing == pytest.approx(spacing)
        np.testing.assert_array_equal(stack.read(), array)
        np.testing.assert_array_equal(stack.read(1, 4), array[..., 1:4])
        if ".h5" in name:
            assert stack.axes == axes
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_spacing_none_is_made_up(tmp_path, name):
    path = save(tmp_path / name, random_stack())
    with open_stack(path) as stack:
        assert stack.spacing is None


def test_others_libraries_find_axes_and_spacing(tmp_path):
    array = random_stack()
    image = nibabel.load(save(tmp_path / "a.nii", array, spacing=SPACING))
    assert image.header.get_zooms() == pytest.approx(SPACING)
    assert image.header.get_xyzt_units()[0] == "micron"
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    values, header = nrrd.read(str(save(tmp_path / "a.nrrd", array, spacing=SPACING)))
    np.testing.assert_array_equal(values, array)
    np.testing.assert_allclose(header["spacings"], SPACING)
    group = zarr.open_group(str(save(tmp_path / "a.zarr", array, spacing=SPACING)), mode="r")
    (multiscale,) = group.attrs["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"micrometer"}
    (scale,) = multiscale["datasets"][0]["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [2.0, 0.5, 0.25]}
    np.testing.assert_array_equal(group["0"][:], array.T)
    with h5py.File(save(tmp_path / "a.h5", array, spacing=SPACING)) as file:
        np.testing.assert_array_equal(file["data"][:], array.T)
        assert file["data"].attrs["axes"] == "ZYX"
        np.testing.assert_allclose(file["data"].attrs["element_size_um"], [2.0, 0.5, 0.25])


def test_outputs_that_cannot_be(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif", random_stack())
    with pytest.raises(UserError, match="--overwrite"):
        check_output(path)
    check_output(path, overwrite=True)
    with pytest.raises(UserError, match="unknown ending"):
        check_output(tmp_path / "a.png")
    with pytest.raises(UserError, match="does not exist"):
        check_output(tmp_path / "folder" / "a.tif")
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_output(tmp_path / "b.tif", overwrite=True)

    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match="cannot be written .Read-only file system"):
        check_output(tmp_path / "c.tif")


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_write_leaves_what_was_there(tmp_path, name):
    old = random_stack()
    path = save(tmp_path / name, old)

    def failing():
        yield old[..., :2]
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=f"{name}: cannot be written .No space left"):
        write_stack(path, failing(), StackLayout(old.shape, old.dtype))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), old)
    new = random_stack(seed=1)
    save(path, new)
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), new)


FULL_DISK = """
import resource, signal, sys
import numpy as np
from utils.stacks import StackLayout, write_stack
from utils.errors import UserError

image = np.random.default_rng(0).integers(0, 60000, (64, 64, 64)).astype(np.uint16)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
slabs = (image[..., z : z + 16] for z in range(0, 64, 16))
try:
    write_stack(sys.argv[1], slabs, StackLayout(image.shape, image.dtype))
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_one_line(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.tif")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "a.tif: cannot be written (" in answer.stdout
    assert answer.stdout.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, name, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10, 10, 209))
    with pytest.raises(UserError, match=f"{name}: needs up to 0.0 GB of disk, and 0.0 GB are free"):
        save(tmp_path / name, random_stack())  # 210 bytes
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10, 10, 210))
    assert save(tmp_path / name, random_stack()).exists()
