import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.stacks import open_stack
from utils.stacks.axes import axis_letters, usual_axes

LENGTHS = {"T": 3, "C": 2, "Z": 5, "Y": 6, "X": 7}
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def orders(draw):
    extra = draw(st.sampled_from(["", "C", "T", "TC"]))
    return "".join(draw(st.permutations(list("YX" + draw(st.sampled_from(["", "Z"])) + extra))))


def stored(axes, seed=0):
    """An array with these axes, and what is to be read of its last channel and time point."""
    array = random_stack([LENGTHS[a] for a in axes], np.uint16, seed)
    order = [axes.index(a) for a in "TCXYZ" if a in axes]
    wanted = array.transpose(order)
    for _ in set(axes) & {"T", "C"}:
        wanted = wanted[-1]
    return array, wanted


def choice(axes):
    return {"index": 2 if "T" in axes else None, "channel": 1 if "C" in axes else None}


@SETTINGS
@given(axes=orders(), lower=st.booleans())
def test_any_order_is_read_as_it_is_given(tmp_path_factory, axes, lower):
    folder = tmp_path_factory.mktemp("given")
    array, wanted = stored(axes)
    np.save(folder / "a.npy", array)
    tifffile.imwrite(folder / "a.tif", array, photometric="minisblack", metadata=None)
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = array
    zarr.create_array(str(folder / "a.zarr"), data=array)
    said = axes.lower() if lower else axes
    for name in ("a.npy", "a.h5", "a.zarr"):
        with open_stack(folder / name, axes=said, **choice(axes)) as stack:
            np.testing.assert_array_equal(stack.read(), wanted)
            assert stack.axes == "".join(a for a in axes if a in "XYZ")


@SETTINGS
@given(axes=orders(), how=st.integers(0, 8), data=st.data())
def test_names_that_stand_in_the_file_are_read(tmp_path_factory, axes, how, data):
    array, wanted = stored(axes)
    path = tmp_path_factory.mktemp("named") / ("a.zarr" if how < 4 else "a.h5")
    letters, words = list(axes.lower()), {"T": "time", "C": "channel"}
    if how < 4:
        names = [words.get(a, a.lower()) for a in axes] if how == 0 else letters
        options = {"dimension_names": names} if how < 2 else {}
        attributes = [None, None, {"_ARRAY_DIMENSIONS": letters}, {"axes": axes}][how]
        chunks = tuple(data.draw(st.integers(1, n)) for n in array.shape)
        zarr.create_array(str(path), data=array, chunks=chunks, attributes=attributes, **options)
    else:
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("data", data=array)
            if how == 8:
                for place, letter in enumerate(letters):
                    dataset.dims[place].label = letter
            else:
                values = (axes, axes.lower().encode(), ", ".join(letters), np.array(letters, "S1"))
                dataset.attrs["axes"] = values[how - 4]
    with open_stack(path, **choice(axes)) as stack:
        np.testing.assert_array_equal(stack.read(), wanted)


@pytest.mark.parametrize(
    ("names", "letters"),
    [
        ("zyx", "ZYX"),
        (b"ZCYX", "ZCYX"),
        ("z, y, x", "ZYX"),
        ("['z', 'y', 'x']", "ZYX"),
        (["time", "channel", "row", "column"], "TCYX"),
        (np.array(["z_um", "y", "x"], object), "ZYX"),
        (["angle", "y", "x"], "QYX"),
        (["dim_0", "dim_1"], None),
        ("", None),
        ([], None),
        ([None, None], None),
    ],
)
def test_letters_of_names(names, letters):
    assert axis_letters(names) == letters


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 48), "YX"),
        ((24, 40, 48), "ZYX"),
        ((1, 40, 48), "ZYX"),
        ((40, 48, 3), "YXC"),
        ((2, 24, 40, 48), "CZYX"),
        ((24, 2, 40, 48), "ZCYX"),
        ((24, 40, 48, 2), "ZYXC"),
        ((1, 24, 2, 40, 48), "TZCYX"),
        ((1, 1, 24, 40, 48), "TTZYX"),
        ((40, 48, 2), None),
        ((24, 30, 40, 48), None),
        ((24, 40, 2, 48), None),
        ((2, 3, 40, 48), None),
        ((3, 24, 2, 40, 48), None),
        ((7,), None),
    ],
)
def test_unnamed_axes_are_guessed_where_there_is_one_way(tmp_path, shape, axes):
    if axes:
        assert usual_axes(tmp_path, shape) == axes
    else:
        example = {3: "ZYX", 4: "ZCYX", 5: "TZCYX"}.get(len(shape), "")
        with pytest.raises(UserError, match=f"{shape[0]}.* is not told; .*--axes {example}"):
            usual_axes(tmp_path, shape)


SPLIT = {
    "ZC2YX": (6, 2),
    "C2ZYX": (2, 6),
    "C2Z6YX": (2, 6),
    "T3C2ZYX": (3, 2, 2),
    "TZ2C2YX": (3, 2, 2),
    "ZT3C2YX": (2, 3, 2),
    "tc2z2yx": (3, 2, 2),
}


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.h5"])
@pytest.mark.parametrize(("axes", "lengths"), SPLIT.items())
def test_pages_in_turn_are_split(tmp_path, name, axes, lengths):
    pages = random_stack((12, 6, 7), np.uint16)
    if name == "a.npy":
        np.save(tmp_path / name, pages)
    elif name == "a.tif":
        tifffile.imwrite(tmp_path / name, pages, photometric="minisblack", compression="zlib")
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("data", data=pages, chunks=(4, 3, 7), compression=1)
    letters = "".join(a for a in axes.upper() if a.isalpha())
    order = [letters.index(a) for a in "TCZYX" if a in letters]
    wanted = pages.reshape(*lengths, 6, 7).transpose(order)
    wanted = wanted[1] if "T" in letters else wanted
    index = 1 if "T" in letters else None
    for channel, planes in enumerate(wanted):
        with open_stack(tmp_path / name, axes=axes, channel=channel, index=index) as stack:
            np.testing.assert_array_equal(stack.read(), planes.T)
            for z, plane in enumerate(planes):
                np.testing.assert_array_equal(stack.read(z, z + 1)[..., 0], plane.T)


@pytest.mark.parametrize("axes", ["ZC5YX", "C3Z3YX", "Z5YX", "ZY2YX", "Z3Y6X", "ZC2Y5X", "TZ2CYX"])
def test_numbers_that_do_not_fit(tmp_path, axes):
    np.save(tmp_path / "a.npy", random_stack((12, 6, 7)))
    with pytest.raises(UserError, match=r"--axes .*(of lengths \(12, 6, 7\)|a letter of its own)"):
        open_stack(tmp_path / "a.npy", axes=axes, channel=0)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("ZY", "Y and X among them"),
        ("ZYXX", "a letter of its own"),
        ("ZAYX", "out of T, C"),
        ("CSYX", "a letter of its own"),
        ("ZYX", r"has 3 letters, but the array has 4 axes, of lengths \(3, 4, 5, 6\)"),
        ("", "such as ZCYX$"),
        ("TZCYX", "but the array has 4 axes, of .*, make it a hyperstack in Fiji first"),
        ("TCYX", "3 time points; name one with --index 0..2, or --axes ZCYX if they are planes"),
    ],
)
def test_axes_that_cannot_be(tmp_path, axes, message):
    np.save(tmp_path / "a.npy", random_stack((3, 4, 5, 6)))
    with pytest.raises(UserError, match=message):
        open_stack(tmp_path / "a.npy", axes=axes, channel=0)


def test_z_stored_as_time_is_offered_and_read(tmp_path):
    array = random_stack((5, 6, 7))
    tifffile.imwrite(
        tmp_path / "a.tif",
        array,
        imagej=True,
        resolution=(2.0, 2.0),
        metadata={"axes": "TYX", "unit": "um", "spacing": 1.5},
    )
    with pytest.raises(UserError, match="5 time points; .* or --axes ZYX if they are planes"):
        open_stack(tmp_path / "a.tif")
    with open_stack(tmp_path / "a.tif", axes="ZYX") as stack:
        np.testing.assert_array_equal(stack.read(), array.T)
        assert stack.spacing == (0.5, 0.5, 1.5)
    # Unless told otherwise, tifffile calls the planes of an array channels of ImageJ's.
    tifffile.imwrite(tmp_path / "b.tif", random_stack((9, 6, 7)), imagej=True)
    with pytest.raises(UserError, match="9 channels; .* or --axes ZYX if they are planes"):
        open_stack(tmp_path / "b.tif")


def test_sizes_follow_their_axes(tmp_path):
    array = random_stack((5, 6, 7))
    for name in (None, "ZYX"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"] = array
            file["data"].attrs["element_size_um"] = [2.0, 0.5, 0.25]
            if name:
                file["data"].attrs["axes"] = name
        with open_stack(tmp_path / f"{name}.h5", axes="XZY") as stack:
            assert stack.spacing == (2.0, 0.25, 0.5)
            np.testing.assert_array_equal(stack.read(), array.transpose(0, 2, 1))
