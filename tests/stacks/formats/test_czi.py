import sys
from pathlib import Path

import numpy as np
import pytest
from pylibCZIrw import czi as zeiss

from tests.stacks.stacks import SPACING, random_stack
from utils.errors import UserError
from utils.stacks import list_stacks, open_stack

SHAPE = (2, 3, 5, 20, 30)
"""Of a scene: T, C, Z, Y, X."""


def write(path, scenes, first=(0, 0, 0), tiles=1, sizes=SPACING, compression=None, skip=()):
    """Write scenes of (T, C, Z, Y, X) beside each other, as Zeiss's library does."""
    with zeiss.create_czi(str(path), compression_options=compression) as file:
        for number, scene in enumerate(scenes):
            for place in np.ndindex(scene.shape[:3]):
                plane = dict(zip("TCZ", np.add(place, first).tolist(), strict=True))
                columns = np.array_split(np.arange(scene.shape[4]), tiles)
                for part in columns if place not in skip else ():
                    tile = np.ascontiguousarray(scene[place][:, part, None])
                    where = (1000 * number - 7 + int(part[0]), 5)
                    file.write(tile, where, plane, scene=number)
        scale = {f"scale_{a}": size * 1e-6 for a, size in zip("xyz", sizes, strict=True)}
        file.write_metadata("made for a test", **scale)
    return path


@pytest.mark.parametrize("compression", [None, "zstd0:ExplicitLevel=2", "zstd1:"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_time_points_and_sizes(tmp_path, dtype, compression):
    array = random_stack(SHAPE, dtype)
    path = write(tmp_path / "a.czi", [array], compression=compression)
    with open_stack(path, channel=2, index=1) as stack:
        assert (stack.shape, stack.dtype, stack.channel) == ((30, 20, 5), dtype, 2)
        assert stack.spacing == pytest.approx(SPACING) and stack.warning() is None
        np.testing.assert_array_equal(stack.read(), array[1, 2].T)
        np.testing.assert_array_equal(stack.read(3, 4), array[1, 2].T[..., 3:4])
        box = (slice(4, 29), slice(3, 11), slice(1, 5, 2))
        np.testing.assert_array_equal(stack.part(box), array[1, 2].T[box])
    with pytest.raises(UserError, match=r"3 channels; name one with --channel 0\.\.2"):
        open_stack(path, index=0)
    with pytest.raises(UserError, match=r"2 time points; name one with --index 0\.\.1"):
        open_stack(path, channel=0)


def test_scenes_are_listed_and_chosen(tmp_path):
    scenes = [random_stack(SHAPE), random_stack((1, 1, 4, 21, 31), seed=1)]
    path = write(tmp_path / "a.czi", scenes)
    listed = [(entry.key, entry.shape, entry.chosen) for entry in list_stacks(path)]
    assert listed == [(str(k), s.shape, False) for k, s in enumerate(scenes)]
    with pytest.raises(UserError, match=r"several arrays; name one with --series: 0 .*, 1 "):
        open_stack(path)
    with pytest.raises(UserError, match="--series '2': not there"):
        open_stack(path, series=2)
    with open_stack(path, series=1) as stack:
        np.testing.assert_array_equal(stack.read(), scenes[1][0, 0].T)


def test_tiles_of_a_mosaic_are_joined(tmp_path):
    array = random_stack((1, 1, 5, 20, 31))
    with open_stack(write(tmp_path / "a.czi", [array], tiles=3)) as stack:
        np.testing.assert_array_equal(stack.read(), array[0, 0].T)
        assert "a mosaic of up to 3 tiles a plane" in stack.warning()
        assert stack.unpacked == 2 * 20 * 11


def test_coordinates_need_not_begin_at_0(tmp_path):
    array = random_stack((1, 2, 4, 20, 30))
    with open_stack(write(tmp_path / "a.czi", [array], first=(2, 1, 3)), channel=1) as stack:
        np.testing.assert_array_equal(stack.read(), array[0, 1].T)


def test_planes_that_were_never_written_are_told(tmp_path):
    array = random_stack((1, 2, 4, 20, 30))
    path = write(tmp_path / "a.czi", [array], skip={(0, 1, 2), (0, 1, 3)})
    array[0, 1, 2:] = 0
    with open_stack(path, channel=1) as stack:
        np.testing.assert_array_equal(stack.read(), array[0, 1].T)
        assert "2 of its 8 planes were never written and are read as zeros" in stack.warning()


def test_colours_are_refused(tmp_path):
    with zeiss.create_czi(str(tmp_path / "a.czi")) as file:
        file.write(random_stack((20, 30, 3)))
    with pytest.raises(UserError, match=r"pixels \(Bgr24\), which are not read; .* Fiji"):
        open_stack(tmp_path / "a.czi")


def test_channels_of_two_types_are_read_as_the_wider_one(tmp_path):
    with zeiss.create_czi(str(tmp_path / "a.czi")) as file:
        for channel, dtype in enumerate((np.uint8, np.uint16)):
            file.write(random_stack((20, 30, 1), dtype), plane={"C": channel})
    with open_stack(tmp_path / "a.czi", channel=0) as stack:
        assert (stack.dtype, stack.spacing) == (np.uint16, None)
        np.testing.assert_array_equal(stack.read(), random_stack((20, 30, 1), np.uint8)[..., 0].T)


@pytest.mark.parametrize("sizes", [(0.1, 0.2, 0), (0, 0, 0)])
def test_sizes_that_are_not_told(tmp_path, sizes):
    path = write(tmp_path / "a.czi", [random_stack((1, 1, *SHAPE[2:]))], sizes=sizes)
    with open_stack(path) as stack:
        assert stack.spacing is None
        known = {a: n for a, n in zip("XYZ", sizes, strict=True) if n}
        assert stack.place.known == pytest.approx(known)


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.czi", [random_stack((1, 1, *SHAPE[2:]))])
    monkeypatch.setitem(sys.modules, "pylibCZIrw.czi", None)
    with pytest.raises(UserError, match="pylibCZIrw.*requirements-formats.txt.*Fiji"):
        open_stack(path)


def test_the_tests_install_what_the_message_names():
    def lines(name):
        text = (Path(__file__).parents[3] / name).read_text()
        return {line for line in text.splitlines() if line[0] != "#"}

    assert lines("requirements-formats.txt") <= lines("requirements-dev.txt")
