import json

import h5py
import numpy as np
import pytest
import zarr

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.stacks import list_stacks, open_stack, write_stack
from utils.stacks.endings import check_output
from utils.stacks.stack import StackLayout
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


def test_chunks_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (6, 8, 8), "u1", chunks=(2, 8, 8), fillvalue=9)
        data[:2] = 1
        file.create_dataset("plain", (4, 4, 4), "u1")
        file["whole"] = random_stack((4, 4, 4))
        file.create_dataset("packed", data=random_stack((4, 4, 4)), compression=1)
    for key, said in (
        ("data", r"2 of the 3 chunks of data were never written: read as the fill value"),
        ("plain", "nothing of plain was ever written"),
    ):
        with open_stack(tmp_path / "a.h5", key=key) as stack:
            assert stack.warning().startswith(f"{tmp_path / 'a.h5'}: {said}")
    for key in ("whole", "packed"):
        with open_stack(tmp_path / "a.h5", key=key) as stack:
            assert stack.warning() is None


def virtual(path, sources, shape=(8, 5, 6)):
    layout = h5py.VirtualLayout(shape, "u2")
    for place, (name, planes) in enumerate(sources):
        layout[4 * place : 4 * place + planes] = h5py.VirtualSource(name, "raw", (planes, 5, 6))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


@pytest.mark.parametrize("how", ["whole", "absent", "hole", "no dataset", "short", "unwritten"])
def test_virtual_datasets(tmp_path, how):
    parts = [random_stack((4, 5, 6), np.uint16, seed) + 1 for seed in range(2)]
    for place, part in enumerate(parts):
        with h5py.File(tmp_path / f"{place}.h5", "w") as file:
            if place == 0 or how not in ("no dataset", "unwritten"):
                file["raw"] = part[:2] if place and how == "short" else part
            elif how == "unwritten":
                file.create_dataset("raw", (4, 5, 6), "u2", chunks=(1, 5, 6))
    if how == "absent":
        (tmp_path / "1.h5").unlink()
    virtual(tmp_path / "a.h5", [("0.h5", 4), *([] if how == "hole" else [("1.h5", 4)])])
    with open_stack(tmp_path / "a.h5") as stack:
        said = stack.warning()
        if how == "short":  # HDF5 itself refuses
            with pytest.raises(UserError, match="insufficient elements"):
                stack.read()
        read = stack.read(0, 4) if how == "short" else stack.read()
    np.testing.assert_array_equal(read[..., :4], parts[0].T)
    expected = {
        "absent": "a part of data stands in 1.h5, which is absent",
        "hole": "120 of the 240 voxels of data stand nowhere",
        "no dataset": "a part of data is raw of 1.h5, which lacks it",
        "unwritten": "4 of the 4 chunks of raw were never written",
    }
    if how in ("whole", "short"):
        assert said is None
        np.testing.assert_array_equal(read[..., 4:], parts[1].T[..., : read.shape[-1] - 4])
    else:
        assert expected[how] in said and "\n" not in said


def test_bytes_in_another_file(tmp_path):
    array = random_stack((4, 5, 6))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", array.shape, "u1", external=[("voxels.raw", 8, array.nbytes)])
    with pytest.raises(UserError, match=r"stand in .*voxels\.raw, which is absent"):
        open_stack(tmp_path / "a.h5")
    (tmp_path / "voxels.raw").write_bytes(bytes(8) + array.tobytes())
    with open_stack(tmp_path / "a.h5") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert stack.warning() is None
    (tmp_path / "voxels.raw").write_bytes(bytes(8) + array.tobytes()[:-1])
    with pytest.raises(UserError, match=r"stand in .*voxels\.raw, which is cut"):
        open_stack(tmp_path / "a.h5")


def test_links(tmp_path):
    array = random_stack((4, 5, 6))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["inner/raw"] = array
        file["inner/back"] = h5py.SoftLink("/inner")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["there"] = h5py.ExternalLink("b.h5", "/inner")
        file["gone"] = h5py.ExternalLink("c.h5", "/raw")
        file["nowhere"] = h5py.SoftLink("/other")
    assert [entry.key for entry in list_stacks(tmp_path / "a.h5")] == ["there/raw"]
    for key in (None, "there/raw"):
        with open_stack(tmp_path / "a.h5", key=key) as stack:
            np.testing.assert_array_equal(stack.read(), array.T)
    with pytest.raises(UserError, match=r"'gone': not there; .*gone \(to /raw of c\.h5\)"):
        open_stack(tmp_path / "a.h5", key="gone")
    (tmp_path / "b.h5").unlink()
    with pytest.raises(UserError, match=r"no arrays; its links lead nowhere: .*inner of b\.h5"):
        open_stack(tmp_path / "a.h5")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["group/data"] = array
        file["also"] = file["group/data"]
        file["soft"] = h5py.SoftLink("/group/data")
    assert len(list_stacks(tmp_path / "d.h5")) == 1
    for key in (None, "also", "soft", "group/data"):
        with open_stack(tmp_path / "d.h5", key=key) as stack:
            np.testing.assert_array_equal(stack.read(), array.T)


def test_links_that_point_at_each_other(tmp_path):
    array = random_stack((4, 5, 6))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = array
        file["one"], file["two"] = h5py.SoftLink("/two"), h5py.SoftLink("/one")
        file["self"] = h5py.SoftLink("/self/below")
    with open_stack(tmp_path / "a.h5") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert "its links lead nowhere: one (to /two)" in stack.warning()
    with pytest.raises(UserError, match=r"lead nowhere: one \(to /two\), self .*, two \(to /one"):
        open_stack(tmp_path / "a.h5", key="one")


def test_an_unknown_filter_names_its_package(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=random_stack((4, 5, 6)), compression=1)
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != h5py.h5z.FILTER_DEFLATE)
    with pytest.raises(UserError, match=r"\(deflate, number 1\).*pip install hdf5plugin") as caught:
        open_stack(tmp_path / "a.h5")
    assert "damaged" not in str(caught.value)


XML = """<?xml version="1.0" encoding="UTF-8"?>
<SpimData version="0.2"><BasePath type="relative">.</BasePath><SequenceDescription>
<ImageLoader format="{kind}"><{tag} type="relative">{name}</{tag}></ImageLoader><ViewSetups>
{setups}</ViewSetups></SequenceDescription></SpimData>"""
SETUP = """<ViewSetup><id>{id}</id><size>7 6 5</size>
<voxelSize><unit>{unit}</unit><size>{size}</size></voxelSize></ViewSetup>"""


def describe(path, sizes, kind="bdv.hdf5", tag="hdf5", name="a.h5", unit="µm"):
    setups = "".join(SETUP.format(id=k, size=size, unit=unit) for k, size in enumerate(sizes))
    path.write_text(XML.format(kind=kind, tag=tag, name=name, setups=setups), encoding="utf-8")


def views(path, times=2, shapes=((5, 6, 7), (5, 6, 7)), left_out=(), resolutions=None):
    """Write BigDataViewer's HDF5; return its voxels as uint16 by (time point, setup)."""
    true = {}
    with h5py.File(path, "w") as file:
        for setup, shape in enumerate(shapes):
            file[f"s{setup:02d}/resolutions"] = resolutions or [[1.0, 1, 1], [2, 2, 1]]
            for time in range(times):
                if (time, setup) in left_out:
                    continue
                values = np.random.default_rng(10 * time + setup).integers(0, 1 << 16, shape)
                true[time, setup] = values.astype(np.uint16)
                group = f"t{time:05d}/s{setup:02d}"
                for level, step in enumerate((1, 2)):
                    cells = true[time, setup][:, ::step, ::step].view(np.int16)
                    file.create_dataset(
                        f"{group}/{level}/cells", data=cells, chunks=(2, 3, 3), compression=1
                    )
    return true


def test_views_of_bigdataviewer(tmp_path):
    true = views(tmp_path / "a.h5", left_out={(1, 1)})
    describe(tmp_path / "a.xml", ["0.25 0.5 2"] * 2)
    for name in ("a.h5", "a.xml"):
        (entry,) = list_stacks(tmp_path / name)
        assert (entry.axes, entry.shape, entry.dtype) == ("TCZYX", (2, 2, 5, 6, 7), np.uint16)
        for (time, setup), values in true.items():
            with open_stack(tmp_path / name, channel=setup, index=time) as stack:
                assert stack.dtype == np.uint16 and stack.spacing == (0.25, 0.5, 2.0)
                np.testing.assert_array_equal(stack.read(), values.T)
                np.testing.assert_array_equal(stack.read(1, 4), values.T[..., 1:4])
        with pytest.raises(UserError, match="2 channels; name one with --channel"):
            open_stack(tmp_path / name, index=0)
        with pytest.raises(UserError, match="no channel 1 at time point 1"):
            with open_stack(tmp_path / name, channel=1, index=1) as stack:
                stack.read()
        with open_stack(tmp_path / name, key="t00000/s01/1/cells") as stack:
            assert stack.spacing == (0.5, 1.0, 2.0)
            np.testing.assert_array_equal(stack.read(), true[0, 1][:, ::2, ::2].T)


def test_setups_that_differ_are_named(tmp_path):
    true = views(tmp_path / "a.h5", times=1, shapes=((5, 6, 7), (4, 6, 7)))
    describe(tmp_path / "a.xml", ["1 1 2", "500 500 1000"], unit="nm")
    assert [e.key for e in list_stacks(tmp_path / "a.xml")] == ["s00", "s01"]
    with pytest.raises(UserError, match="name one with --key: s00 .*, s01"):
        open_stack(tmp_path / "a.xml")
    with open_stack(tmp_path / "a.xml", key="s01") as stack:
        assert stack.spacing == (0.5, 0.5, 1.0)
        np.testing.assert_array_equal(stack.read(), true[0, 1].T)


def test_time_points_that_differ_are_named(tmp_path):
    true = views(tmp_path / "a.h5", shapes=((5, 6, 7),))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["t00001/s00/0/cells"]
        file["t00001/s00/0/cells"] = np.zeros((4, 6, 7), np.int16)
    with pytest.raises(UserError, match="name one with --key: .*t00000/s00/0/cells"):
        open_stack(tmp_path / "a.h5")
    with open_stack(tmp_path / "a.h5", key="t00000/s00/0/cells") as stack:
        np.testing.assert_array_equal(stack.read(), true[0, 0].T)


@pytest.mark.parametrize(
    ("resolutions", "spacing"),
    [([[1, 1, 1]] * 2, None), ([[0.5, 0.5, 1.5], [1, 1, 1.5]], (0.5, 0.5, 1.5))],
)
def test_sizes_without_xml(tmp_path, resolutions, spacing):
    views(tmp_path / "a.h5", times=1, shapes=((5, 6, 7),), resolutions=resolutions)
    with open_stack(tmp_path / "a.h5") as stack:
        assert stack.spacing == spacing


@pytest.mark.parametrize("unit", ["pixel", "unknown", ""])
def test_xml_of_a_ratio_keeps_it(tmp_path, unit):
    views(tmp_path / "a.h5", times=1, shapes=((5, 6, 7),))
    describe(tmp_path / "a.xml", ["1 1 3"], unit=unit)
    for key, sizes in ((None, (1, 1, 3)), ("t00000/s00/1/cells", (2, 2, 3))):
        with open_stack(tmp_path / "a.xml", key=key) as stack:
            assert stack.spacing is None and stack.place.sizes == sizes
            assert "no unit" in stack.warning()
    describe(tmp_path / "a.xml", ["1 1 1"], unit=unit)
    with open_stack(tmp_path / "a.xml", key="t00000/s00/1/cells") as stack:
        assert stack.edges == (1, 1, 1) and stack.warning() is None


def test_xml_with_a_decimal_comma(tmp_path):
    views(tmp_path / "a.h5", times=1, shapes=((5, 6, 7),))
    describe(tmp_path / "a.xml", ["0,25 0,5 2"])
    with open_stack(tmp_path / "a.xml") as stack:
        assert stack.spacing == (0.25, 0.5, 2.0)
    describe(tmp_path / "a.xml", ["0.25 0.5 ?"])
    with open_stack(tmp_path / "a.xml") as stack:
        assert stack.place.known == {"X": 0.25, "Y": 0.5}


def test_views_within_a_group(tmp_path):
    true = views(tmp_path / "b.h5", times=2)
    with h5py.File(tmp_path / "a.h5", "w") as file, h5py.File(tmp_path / "b.h5") as plain:
        plain.copy("/", file, "scan")
        file["scan/s00/resolutions"][...] = file["scan/s01/resolutions"][...] = [[0.5] * 3, [1] * 3]
    with open_stack(tmp_path / "a.h5", channel=1, index=1) as stack:
        assert stack.dtype == np.uint16 and stack.spacing == (0.5, 0.5, 0.5)
        np.testing.assert_array_equal(stack.read(), true[1, 1].T)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.copy("scan", "other")
    with pytest.raises(UserError, match="several arrays; name one with --key"):
        open_stack(tmp_path / "a.h5")
    with open_stack(tmp_path / "a.h5", key="other/t00001/s00/0/cells") as stack:
        np.testing.assert_array_equal(stack.read(), true[1, 0].T)


def test_xml_that_is_none_of_hdf5(tmp_path):
    views(tmp_path / "a.h5", times=1, shapes=((5, 6, 7),))
    describe(tmp_path / "n5.xml", ["1 1 1"], kind="bdv.n5", tag="n5")
    describe(tmp_path / "gone.xml", ["1 1 1"], name="gone.h5")
    (tmp_path / "other.xml").write_text("<notes/>")
    (tmp_path / "cut.xml").write_text("<SpimData")
    (tmp_path / "a.xml").write_text("<notes/>")
    for name, said in (
        ("n5.xml", "its images are kept as bdv.n5; of BigDataViewer's XML those with HDF5"),
        ("gone.xml", r"names the HDF5 file .*gone\.h5, which is absent"),
        ("other.xml", "it names no images"),
        ("cut.xml", "damaged"),
    ):
        with pytest.raises(UserError, match=f"{name}: {said}"):
            open_stack(tmp_path / name)
    with open_stack(tmp_path / "a.h5") as stack:
        assert stack.spacing is None


def letters(value):
    return np.array(list(str(value)), "S1")


def imaris(path, shape=(5, 6, 7), times=2, channels=2, extents=(3.5, 6.0, 10.0), whole=(8, 8, 8)):
    """Write Imaris's HDF5, its arrays filled up to ``whole``; return what is in them."""
    true = {}
    with h5py.File(path, "w") as file:
        info = file.create_group("DataSetInfo/Image").attrs
        info["Unit"] = letters("um")
        for k, axis in enumerate("XYZ"):
            info[axis] = letters(shape[2 - k])
            info[f"ExtMin{k}"], info[f"ExtMax{k}"] = letters("-1.5"), letters(extents[k] - 1.5)
        for time in range(times):
            for channel in range(channels):
                values = random_stack(shape, np.uint16, 10 * time + channel) + 1
                true[time, channel] = values
                place = f"DataSet/ResolutionLevel {{}}/TimePoint {time}/Channel {channel}"
                filled = np.zeros(whole, np.uint16)
                filled[tuple(map(slice, shape))] = values
                group = file.create_group(place.format(0))
                group.create_dataset("Data", data=filled, chunks=(4, 4, 4), compression=2)
                coarse = file.create_group(place.format(1))
                coarse["Data"] = filled[:, ::2, ::2]
                for k, axis in enumerate("XYZ"):
                    coarse.attrs[f"ImageSize{axis}"] = letters((4, 3, 5)[k])
        file["Thumbnail/Data"] = np.zeros((16, 64), np.uint8)
    return true


def test_imaris_is_cut_to_its_size(tmp_path):
    true = imaris(tmp_path / "a.ims")
    (entry,) = list_stacks(tmp_path / "a.ims")
    assert (entry.axes, entry.shape, entry.chosen) == ("TCZYX", (2, 2, 5, 6, 7), True)
    for (time, channel), values in true.items():
        with open_stack(tmp_path / "a.ims", channel=channel, index=time) as stack:
            assert stack.spacing == (0.5, 1.0, 2.0) and stack.warning() is None
            np.testing.assert_allclose(stack.place.first, [-1.5] * 3)
            np.testing.assert_array_equal(stack.read(), values.T)
    with pytest.raises(UserError, match=r"it holds [^ ][^;]*[^ ]$") as caught:
        open_stack(tmp_path / "a.ims", key="none")
    assert ",  (" not in str(caught.value)
    with h5py.File(tmp_path / "a.ims", "a") as file:
        file["DataSetInfo/Image"].attrs["Unit"] = letters("pixels")
    with open_stack(tmp_path / "a.ims", channel=0, index=0) as stack:
        assert stack.spacing is None and stack.place.sizes == (0.5, 1.0, 2.0)
        assert "no unit" in stack.warning()
    key = "DataSet/ResolutionLevel 1/TimePoint 1/Channel 0/Data"
    with open_stack(tmp_path / "a.ims", key=key) as stack:
        assert stack.place.sizes == (0.875, 2.0, 2.0)
        np.testing.assert_array_equal(stack.read(), true[1, 0][:, ::2, ::2].T)


def test_imaris_that_is_cut_short(tmp_path):
    imaris(tmp_path / "a.ims", whole=(8, 8, 8))
    with h5py.File(tmp_path / "a.ims", "a") as file:
        file["DataSetInfo/Image"].attrs["Z"] = letters(9)
    with pytest.raises(UserError, match="damaged: .*Data of .* is smaller than"):
        open_stack(tmp_path / "a.ims", channel=0, index=0)


@pytest.mark.parametrize("name", ["a.ims", "a.xml"])
def test_what_is_only_read_is_not_written(tmp_path, name):
    with pytest.raises(UserError, match="only read"):
        check_output(tmp_path / name)
    with pytest.raises(UserError, match="only read"):
        write_stack(tmp_path / name, [], StackLayout((1, 1, 1), np.dtype("u1")))
