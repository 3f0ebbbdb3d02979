import numpy as np
import pytest
import tifffile

from tests.stacks.stacks import SPACING, random_stack, save
from utils.errors import UserError
from utils.stacks import open_stack


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
    with pytest.raises(UserError, match=r"3 channels; name one with --channel 0\.\.2"):
        open_stack(path)
    with pytest.raises(UserError, match=r"--channel 3: the file's channels are 0\.\.2"):
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
    with pytest.raises(UserError, match="give z,y,x"):
        open_stack(tmp_path / "b.tif", voxel_size=(3, 2))


def test_time_points(tmp_path):
    array = random_stack((2, 5, 6, 7))
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TZYX"})
    with open_stack(tmp_path / "a.tif", index=1) as stack:
        np.testing.assert_array_equal(stack.read(), array[1].T)
    with pytest.raises(UserError, match="2 time points; name one with --index"):
        open_stack(tmp_path / "a.tif")
