import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import random_stack
from utils.errors import UserError
from utils.stacks import open_stack

HUGE = b"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 90000 90000 90000\nendian: little\n"


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("detached", [False, True])
def test_encodings(tmp_path, encoding, detached):
    array = random_stack(dtype=np.uint16)
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), array, {"encoding": encoding}, detached_header=detached)
    with open_stack(path) as stack:
        assert (stack.shape, stack.dtype) == (array.shape, array.dtype)
        mapped = encoding == "raw" and not detached
        assert stack.loaded == (0 if mapped else array.nbytes)
        np.testing.assert_array_equal(stack.read(2, 4), array[..., 2:4])
        np.testing.assert_array_equal(stack.read(), array)


@pytest.mark.parametrize("order", ["big", "little"])
def test_byte_orders(tmp_path, order):
    array = random_stack(dtype=np.uint16)
    stored = array.astype(">u2" if order == "big" else "<u2")
    nrrd.write(str(tmp_path / "a.nrrd"), stored, {"encoding": "raw"})
    with open_stack(tmp_path / "a.nrrd") as stack:
        assert stack.dtype == np.uint16
        np.testing.assert_array_equal(stack.read(), array)


def test_sizes_are_known_before_voxels_are_read(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(HUGE + b"encoding: gzip\n\nfew")
    with open_stack(tmp_path / "a.nrrd") as stack:
        assert stack.loaded == 2 * 90000**3
    (tmp_path / "b.nrrd").write_bytes(HUGE + b"encoding: raw\n\nfew")
    with pytest.raises(UserError, match=r"b\.nrrd"):
        open_stack(tmp_path / "b.nrrd")


def with_header(path, array, lines, encoding="utf-8"):
    """Write a file whose header is this text, in this encoding."""
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {' '.join(map(str, array.shape))}\n"
    text = f"{head}encoding: raw\n{lines}\n\n"
    path.write_bytes(text.encode(encoding) + array.tobytes(order="F"))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("space", [False, True])
def test_the_sign_of_micro_in_any_encoding(tmp_path, encoding, space):
    array = random_stack()
    units = " ".join(['"\u00b5m"'] * 3)
    lines = f"spacings: 0.25 0.5 2\nunits: {units}"
    if space:
        lines = (
            "space: left-posterior-superior\nspace directions: (-0.25,0,0) (0,0.5,0) (0,0,2)\n"
            f"space origin: (1,2,3)\nspace units: {units}"
        )
    with open_stack(with_header(tmp_path / "a.nrrd", array, lines, encoding)) as stack:
        assert stack.spacing == (0.25, 0.5, 2) and stack.warning() is None
        assert stack.place.turned == space
        np.testing.assert_array_equal(stack.read(), array)


def test_sizes_without_a_unit_keep_their_ratio(tmp_path):
    path = with_header(tmp_path / "a.nrrd", random_stack(), "spacings: 0.25 0.5 2")
    with open_stack(path) as stack:
        assert stack.spacing is None and stack.edges == (1, 2, 8)
        assert "no unit" in stack.warning()


def test_each_axis_of_space_may_have_its_own_unit(tmp_path):
    lines = "space dimension: 3\nspace directions: (250,0,0) (0,500,0) (0,0,2)\nspace units: "
    path = with_header(tmp_path / "a.nrrd", random_stack(), lines + '"nm" "nm" "um"')
    with open_stack(path) as stack:
        assert stack.spacing == pytest.approx((0.25, 0.5, 2))


PLACED = (
    "space: right-anterior-superior\nspace directions: (-0.5,0,0) (0,0.5,0) (0,0,1.5)\n"
    "space origin: (10,20,30)\nspace units: "
)


@pytest.mark.parametrize("units", ['"pixel" "pixel" "pixel"', '"" "" ""', '"pixel" "" "voxel"'])
@pytest.mark.parametrize("size", [None, (1.5, 0.5, 0.5)])
def test_units_that_are_no_lengths_leave_directions_and_origin(tmp_path, units, size):
    path = with_header(tmp_path / "a.nrrd", random_stack(), PLACED + units)
    with open_stack(path, voxel_size=size) as stack:
        assert stack.spacing == (None if size is None else (0.5, 0.5, 1.5))
        np.testing.assert_array_equal(stack.place.steps, np.diag([-0.5, 0.5, 1.5]))
        np.testing.assert_array_equal(stack.place.first, [10, 20, 30])
        assert (stack.warning() is None) == (size is not None)


def test_an_axis_of_space_without_a_unit_leaves_a_ratio(tmp_path):
    path = with_header(tmp_path / "a.nrrd", random_stack(), PLACED + '"um" "um" ""')
    with open_stack(path) as stack:
        assert stack.spacing is None and "no unit" in stack.warning()
        np.testing.assert_allclose(stack.place.steps, np.diag([-0.5, 0.5, 1.5]))
        np.testing.assert_allclose(stack.place.first, [10, 20, 30])
    with open_stack(path, voxel_size=(1.5, 0.5, 0.5)) as stack:
        np.testing.assert_allclose(stack.place.steps, np.diag([-0.5, 0.5, 1.5]))
        np.testing.assert_allclose(stack.place.first, [10, 20, 30])
    turned = PLACED.replace("(-0.5,0,0)", "(-0.5,0,1)").replace("(0,0.5,0)", "(0,0.5,1)")
    with open_stack(with_header(tmp_path / "b.nrrd", random_stack(), turned + '"um" "um" ""')) as b:
        assert b.spacing is None and "no unit" in b.warning()
        np.testing.assert_allclose(b.place.first, [10, 20, 30])


def test_an_axis_whose_size_is_unknown_is_none_of_channels(tmp_path):
    path = with_header(tmp_path / "a.nrrd", random_stack(), "spacings: 0.5 0.5 nan")
    with open_stack(path) as stack:
        assert stack.shape == (7, 6, 5) and stack.axes == "ZYX"[::-1]
        assert stack.place.sizes == (0.5, 0.5, 0.5) and "along z" in stack.warning()
    path = with_header(tmp_path / "b.nrrd", random_stack((3, 7, 6)), "spacings: nan 0.5 0.5")
    with open_stack(path, channel=1) as stack:
        assert stack.shape == (7, 6)


def test_time_is_no_channel(tmp_path):
    path = with_header(tmp_path / "a.nrrd", random_stack((7, 6, 3)), "kinds: domain domain time")
    with open_stack(path, index=2) as stack:
        assert stack.shape == (7, 6)


@pytest.mark.parametrize("files", ["LIST\na.raw\nb.raw", "a%02d.raw 1 5 1", "none.raw"])
def test_voxels_elsewhere_that_cannot_be_read(tmp_path, files):
    lines = f"data file: {files}"
    path = with_header(tmp_path / "a.nhdr", random_stack(), lines)
    message = "cannot be read .*none" if "none" in files else "in several files; save it as one"
    with pytest.raises(UserError, match=message), open_stack(path) as stack:
        stack.read()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([("um", 1), ("microns", 1), ("nm", 1e-3), ("mm", 1e3), ("m", 1e6)]),
    st.tuples(*[st.floats(0.01, 100)] * 3),
    st.integers(0, 99),
    st.sampled_from([">u2", "<u2", "u1", "<f4"]),
    st.booleans(),
)
def test_what_pynrrd_writes_reads_the_same(tmp_path_factory, unit, sizes, seed, dtype, detached):
    path = tmp_path_factory.mktemp("nrrd") / ("a.nhdr" if detached else "a.nrrd")
    array = random_stack(seed=seed).astype(dtype)
    steps = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0] * sizes
    header = {"space": "right-anterior-superior", "space directions": steps.T}
    header |= {"space origin": [3.0, -4.0, 5.0], "space units": [unit[0]] * 3}
    nrrd.write(str(path), array, header, detached_header=detached)
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), array)
        assert stack.spacing == pytest.approx(np.array(sizes) * unit[1])
        np.testing.assert_allclose(stack.place.steps, steps)
