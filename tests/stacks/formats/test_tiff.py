from contextlib import closing

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import SPACING, random_stack, save
from utils.errors import UserError
from utils.stacks import list_stacks, open_stack


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
    for name, spacing in (("a.ome", SPACING), ("b", None), ("c", SPACING)):
        with open_stack(tmp_path / f"{name}.tif") as stack:
            assert stack.spacing == (spacing and pytest.approx(spacing))
            np.testing.assert_array_equal(stack.read(), array.T)
    with open_stack(tmp_path / "b.tif", voxel_size=(3, 2, 1)) as stack:
        assert stack.spacing == (1, 2, 3)
    with pytest.raises(UserError, match="give z,y,x"):
        open_stack(tmp_path / "b.tif", voxel_size=(3, 2))


def test_axes_without_names_are_asked_for_unless_a_channel_is_named(tmp_path):
    array = random_stack((5, 2, 20, 30))
    tifffile.imwrite(tmp_path / "a.tif", array)
    with pytest.raises(UserError, match="--axes, a letter each of T, C, Z, Y and X"):
        open_stack(tmp_path / "a.tif")
    with open_stack(tmp_path / "a.tif", channel=1) as stack:
        np.testing.assert_array_equal(stack.read(), array[:, 1].T)
    tifffile.imwrite(tmp_path / "b.tif", random_stack((5, 6, 20, 30)))
    with pytest.raises(UserError, match="which of its 4 axes .* is not told; name its axes"):
        open_stack(tmp_path / "b.tif", channel=1)


def test_time_points(tmp_path):
    array = random_stack((2, 5, 6, 7))
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": "TZYX"})
    with open_stack(tmp_path / "a.tif", index=1) as stack:
        np.testing.assert_array_equal(stack.read(), array[1].T)
    with pytest.raises(UserError, match="2 time points; name one with --index"):
        open_stack(tmp_path / "a.tif")


IMAGEJ = [
    ({"unit": "um", "zunit": "nm", "spacing": 500}, (0.5, 0.25, 0.5)),
    ({"unit": "mm", "yunit": "um", "zunit": "\\u00C5", "spacing": 1e4}, (500, 0.25, 1)),
    ({"unit": "\\u03BCm", "spacing": "1,5"}, (0.5, 0.25, 1.5)),
    ({"unit": "micron", "spacing": -1.5}, (0.5, 0.25, 1.5)),
    ({"unit": "inch", "spacing": 1}, (12700, 6350, 25400)),
    ({"unit": "um"}, None),
    ({"unit": "um", "zunit": "weeks", "spacing": 3}, None),
    ({"unit": "pixel", "spacing": 3}, None),
    ({"spacing": 3}, None),
    ({}, None),
]


@pytest.mark.parametrize(("fields", "expected"), IMAGEJ)
def test_units_of_imagej(tmp_path, fields, expected):
    options = {"imagej": True, "resolution": (2, 4), "metadata": {"axes": "ZYX", **fields}}
    tifffile.imwrite(tmp_path / "a.tif", random_stack((5, 6, 7)), **options)
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.spacing == (expected and pytest.approx(expected))
        said = stack.warning() or ""
    if "zunit" in fields or fields == {"unit": "um"}:
        assert ("no voxel size along z" in said) == (expected is None)
    elif "spacing" in fields and expected is None:
        assert "no unit" in said and "0.5 x 0.25 x 3" in said
        assert stack.edges == pytest.approx((2, 1, 12))
    else:
        assert not said


def test_pages_that_were_appended_are_one_stack(tmp_path):
    array = random_stack((5, 6, 7), np.uint16)
    for plane in array:
        tifffile.imwrite(tmp_path / "a.tif", plane, append=True)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        np.testing.assert_array_equal(stack.read(1, 3), array[1:3].T)
        assert stack.warning() is None
    (entry,) = list_stacks(tmp_path / "a.tif")
    assert (entry.key, entry.shape, entry.axes, entry.chosen) == ("", (5, 6, 7), "ZYX", True)


@pytest.mark.parametrize("where", [0, (0, 1), 1, (0, 1, 2)])
def test_an_axis_without_a_name_is_z_whatever_stands_beside_it_alone(tmp_path, where):
    array = random_stack((5, 6, 7), np.uint16)
    whole = np.expand_dims(array, where)
    tifffile.imwrite(tmp_path / "a.tif", whole, photometric="minisblack")
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
    if where == 0:
        with open_stack(tmp_path / "a.tif", axes="TZYX") as stack:
            np.testing.assert_array_equal(stack.read(), array.T)
    tifffile.imwrite(tmp_path / "b.tif", random_stack((5, 4, 6, 7)), photometric="minisblack")
    with pytest.raises(UserError, match=r"QQYX of lengths .* such as --axes ZCYX$"):
        open_stack(tmp_path / "b.tif")


@pytest.mark.parametrize("metadata", [{}, None])
@pytest.mark.parametrize("other", [{"compression": "zlib"}, {"rowsperstrip": 2}, {"bigger": True}])
def test_appended_pages_are_one_stack_however_each_is_stored(tmp_path, metadata, other):
    array = random_stack((5, 6, 7), np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for k, plane in enumerate(array):
            options = {} if k % 2 or "bigger" in other else other
            page = plane[None] if "bigger" in other else plane
            writer.write(page, metadata=metadata, photometric="minisblack", **options)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        np.testing.assert_array_equal(stack.read(1, 3), array[1:3].T)
        assert stack.warning() is None


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("cuts", [(0, 2, 4, 6), (0, 5, 6), (0, 4, 6)])
def test_appended_slabs_are_joined_and_can_be_had_alone(tmp_path, cuts, compression):
    array = random_stack((6, 8, 7), np.uint16)
    pieces = [array[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for piece in pieces:
            writer.write(piece.squeeze(), photometric="minisblack", compression=compression)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert "the pages of several series are read as one, number" in stack.warning()
    for number, piece in enumerate(pieces):
        with open_stack(tmp_path / "a.tif", series=number) as stack:
            np.testing.assert_array_equal(stack.read(), piece.squeeze().T)
    assert [entry.chosen for entry in list_stacks(tmp_path / "a.tif")].count(True) == 1


@pytest.mark.parametrize("ome", [False, True])
def test_the_largest_of_several_series_is_read(tmp_path, ome):
    small, large = random_stack((4, 6, 7)), random_stack((5, 6, 7), seed=1)
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    with tifffile.TiffWriter(path, ome=ome) as writer:
        for array, size in ((small, 1.0), (large, 2.0)):
            metadata = {"axes": "ZYX", **{f"PhysicalSize{a}": size for a in "XYZ"}}
            writer.write(array, metadata=metadata, photometric="minisblack")
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), large.T)
        assert "largest of 2 series is read, number 1" in stack.warning()
        assert stack.spacing == ((2.0,) * 3 if ome else None)
    with open_stack(path, series=0) as stack:
        np.testing.assert_array_equal(stack.read(), small.T)
        assert stack.warning() is None
        assert stack.spacing == ((1.0,) * 3 if ome else None)
    entries = list_stacks(path)
    assert [(e.key, e.shape[0], e.chosen) for e in entries] == [("0", 4, False), ("1", 5, True)]
    with pytest.raises(UserError, match=r"--series '2': not there; it holds 0 \(4, 6, 7\), 1 \(5"):
        open_stack(path, series=2)
    with pytest.raises(UserError, match="--series 1 is for TIFF"):
        open_stack(save(tmp_path / "a.npy", small), series=1)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_of_two_equal_stacks_the_first_is_read(tmp_path, compression):
    stacks = [random_stack((5, 6, 7), np.uint16, seed) for seed in range(2)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for array in stacks:
            writer.write(array, photometric="minisblack", compression=compression)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), stacks[0].T)
        assert (
            "only the largest of 3 series is read, number 0 of shape (5, 6, 7)" in stack.warning()
        )
    for number, array in enumerate([*stacks, np.concatenate(stacks)]):
        with open_stack(tmp_path / "a.tif", series=number) as stack:
            np.testing.assert_array_equal(stack.read(), array.T)
    chosen = [(entry.key, entry.chosen) for entry in list_stacks(tmp_path / "a.tif")]
    assert chosen == [("0", True), ("1", False), ("2", False)]


def test_a_preview_before_the_planes_is_not_taken_for_them(tmp_path):
    array = random_stack((5, 6, 7))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(array[0, ::2, ::2], metadata=None)
        for plane in array:
            writer.write(plane, metadata=None)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert "only the largest of 2 series" in stack.warning()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_as_zero_is_inverted_and_said(tmp_path, dtype, compression):
    array = random_stack((5, 6, 7), dtype)
    options = {"photometric": "miniswhite", "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - array, **options)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert "inverted" in stack.warning() and stack.dtype == dtype
    tifffile.imwrite(tmp_path / "b.tif", array.astype(np.float32), **options)
    with pytest.raises(UserError, match="white as zero"):
        open_stack(tmp_path / "b.tif")


def test_a_mask_of_a_bit_a_voxel_keeps_its_values(tmp_path):
    """As tifffile writes boolean arrays: with white as zero, and 1 for True."""
    mask = random_stack((5, 6, 7), np.uint8) % 2 == 1
    tifffile.imwrite(tmp_path / "a.tif", mask)
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), mask.T)


def ome_xml(names, planes, own, *, master=None):
    """Return the metadata of an OME-TIFF whose planes lie in several files, or of a part of it."""
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    start = f'<OME xmlns="{schema}" UUID="urn:uuid:{own}">'
    if master:
        return f'{start}<BinaryOnly MetadataFile="{master}" UUID="urn:uuid:all"/></OME>'
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="{z % planes}" PlaneCount="1">'
        f'<UUID FileName="{names[z // planes]}">urn:uuid:{z // planes}</UUID></TiffData>'
        for z in range(planes * len(names))
    )
    return (
        f'{start}<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
        f'SizeX="7" SizeY="6" SizeZ="{planes * len(names)}" SizeC="1" SizeT="1" '
        f'PhysicalSizeX="0.25" PhysicalSizeY="0.5" PhysicalSizeZ="2">{data}</Pixels></Image></OME>'
    )


@pytest.mark.parametrize("companion", ["all.companion.ome", "a0.ome.tif", None])
def test_an_ome_tiff_of_several_files(tmp_path, companion):
    array, names = random_stack((4, 6, 7)), ["a0.ome.tif", "a1.ome.tif"]
    parts = [ome_xml(names, 2, k, master=companion) for k in range(2)]
    if companion == names[0]:
        parts[0] = ome_xml(names, 2, 0)
    for name, xml, part in zip(names, parts, (array[:2], array[2:]), strict=True):
        options = {"description": xml, "metadata": None, "photometric": "minisblack"}
        tifffile.imwrite(tmp_path / name, part, **options)
    if companion == "all.companion.ome":
        with pytest.raises(
            UserError, match=r"a1\.ome\.tif: is a part .* needs all\.companion\.ome"
        ):
            open_stack(tmp_path / names[1])
        (tmp_path / companion).write_text(ome_xml(names, 2, "all"))
        with pytest.raises(UserError, match="name one of the .ome.tif files beside it"):
            open_stack(tmp_path / companion)
    for path in (tmp_path / names[0], tmp_path / names[1], tmp_path):
        with open_stack(path) as stack:
            np.testing.assert_array_equal(stack.read(), array.T)
            assert stack.spacing == pytest.approx(SPACING)
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match="neighbouring file"):
        open_stack(tmp_path / names[0])


@pytest.mark.parametrize(
    "absent", ["<MetadataOnly/>", "<TiffData IFD='0'><UUID FileName='b.tif'>x"]
)
@pytest.mark.parametrize("renamed", [False, True])
def test_an_image_of_ome_without_pages_lends_its_size_to_no_other(tmp_path, absent, renamed):
    array, name = random_stack((4, 6, 7)), "before.ome.tif" if renamed else "a.ome.tif"
    xml = ome_xml([name], 4, 0)
    absent += "</UUID></TiffData>" if "UUID" in absent else ""
    pixels = xml[xml.index("<Pixels") : xml.index(">", xml.index("<Pixels")) + 1]
    other = f"{pixels.replace('0.25', '0.1').replace(':0', ':1')}{absent}</Pixels></Image>"
    at = xml.index("<Image")
    xml = f'{xml[:at]}<Image ID="Image:1">{other}{xml[at:]}'
    options = {"description": xml, "metadata": None, "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, **options)
    with open_stack(tmp_path / "a.ome.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert stack.spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_folder_of_planes_in_their_natural_order(tmp_path, compression):
    array, folder = random_stack((5, 6, 7), np.uint16), tmp_path / "planes"
    folder.mkdir()
    for z, plane in enumerate(array, start=8):
        options = {"compression": compression, "byteorder": ">", "resolution": (4, 2)}
        tifffile.imwrite(folder / f"z{z}.tif", plane, imagej=not compression, **options)
    (folder / "notes.txt").write_text("none of them")
    with open_stack(folder) as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        np.testing.assert_array_equal(stack.read(2, 3), array[2:3].T)
        assert "5 planes in the order of their names" in stack.warning()
    with open_stack(folder, voxel_size=(2, 0.5, 0.25)) as stack:
        assert stack.spacing == pytest.approx(SPACING)
    assert [entry.shape for entry in list_stacks(folder)] == [(5, 6, 7)]
    tifffile.imwrite(folder / "z99.tif", array[0, :3])
    with pytest.raises(
        UserError, match=r"z99\.tif: is stored otherwise \(\(3, 7\) uint16 .*\) than z8"
    ):
        open_stack(folder)
    tifffile.imwrite(folder / "z99.tif", array)
    with pytest.raises(UserError, match=r"z99\.tif: holds 5 pages, a plane has one"):
        open_stack(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: a folder without planes"):
        open_stack(tmp_path / "empty")


@pytest.mark.parametrize("planes", [1, 5])
def test_a_folder_of_one_file_is_that_file(tmp_path, planes):
    array, folder = random_stack((planes, 6, 7), np.uint16).squeeze(), tmp_path / "planes"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", array, photometric="minisblack")
    with open_stack(folder) as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert stack.warning() is None


def test_a_large_preview_is_not_preferred_to_a_stack(tmp_path):
    array = random_stack((5, 6, 7), np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(random_stack((40, 40), np.uint16), photometric="minisblack")
        writer.write(array, photometric="minisblack")
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert "number 1 of shape (5, 6, 7)" in stack.warning()
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(np.zeros((40, 40, 3), np.uint8), photometric="rgb")
        writer.write(array[0], photometric="minisblack")
    with pytest.raises(UserError, match=r"--channel 0\.\.2; only the largest .* --series 0\.\.1"):
        open_stack(tmp_path / "b.tif")


def test_planes_of_a_folder_may_differ_in_how_they_are_stored(tmp_path):
    array, folder = random_stack((5, 6, 7), np.uint16), tmp_path / "planes"
    folder.mkdir()
    for z, plane in enumerate(array):
        options = {"compression": "zlib" if z == 2 else None, "byteorder": "<>"[z % 2]}
        tifffile.imwrite(folder / f"z{z}.tif", plane, photometric="minisblack", **options)
    with open_stack(folder) as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        np.testing.assert_array_equal(stack.read(2, 3), array[2:3].T)
    tifffile.imwrite(folder / "z9.tif", array[0], photometric="miniswhite")
    with pytest.raises(UserError, match=r"z9\.tif: .* MINISWHITE\) than z0.* MINISBLACK\)"):
        open_stack(folder)


def test_chunks_are_what_is_unpacked_at_once(tmp_path):
    from utils.stacks.formats import tiff

    array = random_stack((5, 32, 48))
    tifffile.imwrite(tmp_path / "a.tif", array)
    tifffile.imwrite(tmp_path / "b.tif", array, compression="zlib", tile=(16, 16))
    tifffile.imwrite(tmp_path / "c.tif", array, compression="zlib", rowsperstrip=8)
    found = {}
    for name in "abc":
        with closing(tiff.contents(tmp_path / f"{name}.tif")) as contents:
            found[name] = contents.source(None).chunks
    assert found == {"a": None, "b": (1, 16, 16), "c": (1, 8, 48)}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_tifffile_writes_reads_the_same(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    shape = data.draw(st.tuples(*[st.integers(2, 9)] * 3))
    array = random_stack(shape, data.draw(st.sampled_from([np.uint8, np.uint16, np.float32])))
    unit, length = data.draw(st.sampled_from([("um", 1), ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4)]))
    x, y, z = data.draw(st.tuples(*[st.floats(0.01, 100)] * 3))
    if data.draw(st.booleans()):
        kind = {"ome": True, "compression": data.draw(st.sampled_from([None, "zlib", "lzw"]))}
        sizes = {f"PhysicalSize{a}": n for a, n in zip("XYZ", (x, y, z), strict=True)}
        metadata = {**sizes, **{f"PhysicalSize{a}Unit": unit for a in "XYZ"}}
    else:
        kind = {"imagej": True, "resolution": (1 / x, 1 / y)}
        metadata = {"unit": unit, "spacing": z}
    kind["byteorder"] = data.draw(st.sampled_from("<>"))
    tifffile.imwrite(
        path, array, photometric="minisblack", metadata={"axes": "ZYX", **metadata}, **kind
    )
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert stack.spacing == pytest.approx((x * length, y * length, z * length), rel=1e-3)
