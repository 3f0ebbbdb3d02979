import json
import pickle

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Pickle

from utils.prediction.microscope_files import (
    StackError,
    StackLayout,
    check_output,
    open_stack,
    write_stack,
)
from utils.storage import VolumeFile

SPACING = (0.25, 0.5, 2.0)
"""Micrometres along x, y, z."""
NAMES = (
    "a.tif",
    "a.tiff",
    "a.ome.tif",
    "a.h5",
    "a.hdf5",
    "a.nrrd",
    "a.nii",
    "a.nii.gz",
    "a.zarr",
    "a.ome.zarr",
    "a.npy",
)
FUZZED = {name for name in NAMES if "zarr" not in name} | {"lzw.tif", "pages.tif"}


def random_stack(shape=(7, 6, 5), dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return values.astype(dtype)


def slabs_of(array, thickness=2):
    for start in range(0, array.shape[-1], thickness):
        yield array[..., start : start + thickness]


def save(path, array, **details):
    write_stack(path, slabs_of(array), StackLayout(array.shape, array.dtype, **details))
    return path


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


def test_imagej_reads_what_tifffile_calls_imagej(tmp_path):
    array = random_stack(dtype=np.float32)
    path = save(tmp_path / "a.tif", array, spacing=SPACING)
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej and file.series[0].axes == "ZYX"
        assert file.imagej_metadata["unit"] == "um"
        assert file.imagej_metadata["spacing"] == pytest.approx(2.0)
        pixels, length = file.pages[0].tags["XResolution"].value
        assert pixels / length == pytest.approx(4.0)
        np.testing.assert_array_equal(file.asarray(), array.T)


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


@pytest.mark.parametrize(
    ("axes", "shape", "options"),
    [
        ("ZCYX", (5, 3, 6, 7), {"imagej": True}),
        ("ZYXS", (5, 6, 7, 3), {"imagej": True, "photometric": "rgb"}),
        ("CZYX", (3, 5, 6, 7), {"ome": True}),
        ("ZCYX", (5, 3, 6, 7), {"ome": True, "compression": "lzw"}),
        ("ZYXS", (5, 6, 7, 3), {"photometric": "rgb", "bigtiff": True, "compression": "zlib"}),
        ("ZCYX", (5, 3, 6, 7), {"imagej": True, "byteorder": ">"}),
    ],
)
def test_channels_of_tiffs(tmp_path, axes, shape, options):
    dtype = np.uint8 if "S" in axes else np.uint16
    array = random_stack(shape, dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, metadata={"axes": axes}, **options)
    where = axes.index("S" if "S" in axes else "C")
    expected = np.moveaxis(array, where, 0)[2].T
    with open_stack(path, channel=2) as stack:
        assert (stack.shape, stack.channel, stack.dtype) == ((7, 6, 5), 2, dtype)
        np.testing.assert_array_equal(stack.read(), expected)
        np.testing.assert_array_equal(stack.read(3, 4), expected[..., 3:4])
    with pytest.raises(StackError, match=r"3 channels; name one with --channel 0\.\.2"):
        open_stack(path)
    with pytest.raises(StackError, match=r"--channel 3: the file's channels are 0\.\.2"):
        open_stack(path, channel=3)


def test_spacing_of_tiffs(tmp_path):
    array = random_stack((5, 6, 7))
    sizes = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    metadata = {"axes": "ZYX", **sizes, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, ome=True, metadata=metadata)
    tifffile.imwrite(tmp_path / "b.tif", array, resolution=(300, 300), resolutionunit="INCH")
    options = {"imagej": True, "resolution": (4, 2)}
    metadata = {"axes": "ZYX", "unit": "\\u00B5m", "spacing": 2.0}
    tifffile.imwrite(tmp_path / "c.tif", array, **options, metadata=metadata)
    metadata = {"axes": "ZYX", "unit": "pixel", "spacing": 2.0}
    tifffile.imwrite(tmp_path / "d.tif", array, **options, metadata=metadata)
    for name, spacing in (("a.ome", SPACING), ("b", None), ("c", SPACING), ("d", None)):
        with open_stack(tmp_path / f"{name}.tif") as stack:
            assert stack.spacing == (spacing and pytest.approx(spacing))
            np.testing.assert_array_equal(stack.read(), array.T)
    with open_stack(tmp_path / "b.tif", voxel_size=(3, 2, 1)) as stack:
        assert stack.spacing == (1, 2, 3)
    with pytest.raises(StackError, match="give z,y,x"):
        open_stack(tmp_path / "b.tif", voxel_size=(3, 2))


def test_time_points(tmp_path):
    array = random_stack((2, 5, 6, 7))
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TZYX"})
    with open_stack(tmp_path / "a.tif", index=1) as stack:
        np.testing.assert_array_equal(stack.read(), array[1].T)
    with pytest.raises(StackError, match="2 time points; name one with --index"):
        open_stack(tmp_path / "a.tif")


def test_samples_of_simulated_volumes(fake_file):
    with VolumeFile(fake_file) as file, open_stack(fake_file, index=2) as stack:
        assert stack.axes == "XYZ" and stack.spacing is None
        np.testing.assert_array_equal(stack.read(), file.read_image(2))
        np.testing.assert_array_equal(stack.read(3, 9), file.read_image(2)[..., 3:9])
    with pytest.raises(StackError, match=r"4 samples; name one with --index 0\.\.3"):
        open_stack(fake_file)
    with pytest.raises(StackError, match="--index 4"):
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
        with pytest.raises(StackError, match="several arrays; name one with --key: .*raw"):
            open_stack(path)
        with pytest.raises(StackError, match="'other': not there; it holds .*raw"):
            open_stack(path, key="other")


def test_a_placement_in_space_is_carried(tmp_path):
    array = random_stack()
    affine = np.array([[0, 0.5, 0, 3], [-0.25, 0, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    header = {
        "space": "right-anterior-superior",
        "space directions": affine[:3, :3],
        "space origin": affine[:3, 3],
        "space units": ["mm"] * 3,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    for name in ("a.nii.gz", "a.nrrd"):
        with open_stack(tmp_path / name) as stack:
            np.testing.assert_array_equal(stack.read(), array)
            layout = StackLayout.like(stack, np.uint8)
            write_stack(tmp_path / f"b_{name}", slabs_of(array), layout)
    np.testing.assert_allclose(nibabel.load(tmp_path / "b_a.nii.gz").affine, affine)
    written = nrrd.read_header(str(tmp_path / "b_a.nrrd"))
    np.testing.assert_allclose(written["space directions"], affine[:3, :3])
    np.testing.assert_allclose(written["space origin"], affine[:3, 3])
    with open_stack(tmp_path / "b_a.nrrd") as stack:
        assert stack.spacing == pytest.approx((500, 250, 2000)[: len(stack.shape)])


def test_scaled_nifti(tmp_path):
    image = nibabel.Nifti1Image(random_stack(dtype=np.float32) / 7, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    with open_stack(tmp_path / "a.nii") as stack:
        assert stack.dtype == np.float32 and stack.spacing is None
        np.testing.assert_allclose(stack.read(2, 4), image.get_fdata()[..., 2:4], atol=1e-3)


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
        with pytest.raises(StackError, match=name):
            open_stack(tmp_path / name).read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.tif", "no such file"),
        ("folder.tif", "a folder"),
        ("text.zarr", "a folder is expected"),
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
    for ending in ("zarr", "csv", "tif", "h5", "nrrd", "nii", "nii.gz", "npy"):
        (tmp_path / f"text.{ending}").write_text("no stack at all")
    np.save(tmp_path / "complex.npy", np.zeros((2, 2), complex))
    np.save(tmp_path / "void.npy", np.zeros((2, 0, 2)))
    np.save(tmp_path / "line.npy", np.zeros(4))
    np.save(tmp_path / "five.npy", np.zeros((2,) * 5))
    with pytest.raises(StackError, match=message if name != "empty.zarr" else name) as caught:
        open_stack(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_channel_or_key_that_cannot_be(tmp_path):
    path = save(tmp_path / "a.npy", random_stack())
    with pytest.raises(StackError, match="no channels to choose from"):
        open_stack(path, channel=1)
    with pytest.raises(StackError, match="no time points"):
        open_stack(path, index=1)
    with pytest.raises(StackError, match="--key"):
        open_stack(path, key="data")
    with open_stack(path, channel=0) as stack:
        assert stack.channel is None


def test_outputs_that_cannot_be(tmp_path, monkeypatch):
    path = save(tmp_path / "a.tif", random_stack())
    with pytest.raises(StackError, match="--overwrite"):
        check_output(path)
    check_output(path, overwrite=True)
    with pytest.raises(StackError, match="unknown ending"):
        check_output(tmp_path / "a.png")
    with pytest.raises(StackError, match="does not exist"):
        check_output(tmp_path / "folder" / "a.tif")
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(StackError, match="is a folder"):
        check_output(tmp_path / "b.tif", overwrite=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StackError, match="cannot be written"):
        check_output(tmp_path / "c.tif")


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_write_leaves_what_was_there(tmp_path, name):
    old = random_stack()
    path = save(tmp_path / name, old)

    def failing():
        yield old[..., :2]
        raise OSError(28, "No space left on device")

    with pytest.raises(StackError, match=f"{name}: cannot be written .No space left"):
        write_stack(path, failing(), StackLayout(old.shape, old.dtype))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), old)
    new = random_stack(seed=1)
    save(path, new)
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), new)


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
    return {name: path.read_bytes() for name, path in files.items() if path.is_file()}


@pytest.mark.parametrize("name", sorted(FUZZED))
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_give_one_line(tmp_path, sound_files, name, data):
    content = bytearray(sound_files[name])
    size = len(content)
    position = st.integers(0, size - 1) | st.integers(0, min(size - 1, 600))
    for place in data.draw(st.lists(position, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(size) | st.integers(0, size))]
    path = tmp_path / name
    path.write_bytes(content)
    try:
        with open_stack(path) as stack:
            if np.prod(stack.shape, dtype=float) < 1e6:
                assert stack.read(0, min(2, stack.shape[-1])).shape[:-1] == stack.shape[:-1]
    except StackError as error:
        assert "\n" not in str(error) and name in str(error)


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
    except StackError as error:
        assert name in str(error)
    else:
        assert share >= 0.9
        with open_stack(tmp_path / "whole" / name) as stack:
            np.testing.assert_array_equal(got, stack.read())


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_zarr(tmp_path, version):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    array = group.create_array("0", shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")
    array[...] = random_stack((8, 8, 8)) + 1
    chunk = max(path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(StackError, match=r"a\.zarr"), open_stack(tmp_path / "a.zarr") as stack:
        stack.read()
    for record in (tmp_path / "a.zarr").rglob("*z*.json" if version == 3 else ".z*"):
        record.write_text(record.read_text()[:20])
    with pytest.raises(StackError, match=r"a\.zarr"):
        open_stack(tmp_path / "a.zarr")
