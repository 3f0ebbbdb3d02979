import shutil

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import SPACING, random_stack, save
from utils.errors import UserError
from utils.stacks import list_stacks, open_stack


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_zarr(tmp_path, version):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    array = group.create_array("0", shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")
    array[...] = random_stack((8, 8, 8)) + 1
    chunk = max(path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(UserError, match=r"a\.zarr"), open_stack(tmp_path / "a.zarr") as stack:
        stack.read()
    for record in (tmp_path / "a.zarr").rglob("*z*.json" if version == 3 else ".z*"):
        record.write_text(record.read_text()[:20])
    with pytest.raises(UserError, match=r"a\.zarr"):
        open_stack(tmp_path / "a.zarr")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sound_folders(tmp_path_factory):
    """What stands in an OME-Zarr folder of ours, and in plain ones of both Zarr formats."""
    place = tmp_path_factory.mktemp("sound")
    array = random_stack((9, 8, 7), np.float32)
    folders = {"a.ome.zarr": save(place / "a.ome.zarr", array, spacing=SPACING)}
    for version in (2, 3):
        name = f"format{version}.zarr"
        plain = zarr.open_array(
            str(place / name),
            mode="w",
            shape=(8, 8, 8),
            chunks=(4, 8, 4),
            dtype="u2",
            zarr_format=version,
        )
        plain[...] = random_stack((8, 8, 8)) + 1
        folders[name] = place / name
    return {name: contents(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["a.ome.zarr", "format2.zarr", "format3.zarr"])
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_folders_give_one_line(tmp_path_factory, sound_folders, name, data):
    files = dict(sound_folders[name])
    for path in data.draw(
        st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=3, unique=True)
    ):
        content = bytearray(files.pop(path))
        how = data.draw(st.sampled_from(["changed", "cut", "gone"]))
        if how == "gone":
            continue
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
        if how == "cut":
            content = content[: data.draw(st.integers(0, len(content)))]
        files[path] = bytes(content)
    folder = tmp_path_factory.mktemp("damaged") / name
    folder.mkdir()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    try:
        list_stacks(folder)
        with open_stack(folder) as stack:
            stack.warning()
            if np.prod(stack.shape, dtype=float) < 1e6:
                assert stack.read(0, min(2, stack.shape[-1])).shape[:-1] == stack.shape[:-1]
    except UserError as error:
        assert "\n" not in str(error) and name in str(error)


def plain(path, version, **options):
    """Write 8 x 8 x 8 voxels, none of them 0, in 2 x 1 x 4 chunks."""
    array = zarr.create_array(
        str(path), shape=(8, 8, 8), chunks=(4, 8, 2), dtype="u2", zarr_format=version, **options
    )
    array[...] = random_stack((8, 8, 8)) + 1
    return path


def chunk_files(path):
    files = [file for file in path.rglob("*") if file.is_file() and file.name[0] != "."]
    return sorted(file for file in files if file.name != "zarr.json")


@pytest.mark.parametrize(
    ("version", "encoding"),
    [(2, "."), (2, "/"), (3, "."), (3, "/")],
)
def test_absent_chunks_are_counted(tmp_path, version, encoding):
    name = "v2" if version == 2 else "default"
    key = {"name": name, "separator": encoding}
    path = plain(tmp_path / "a.zarr", version, chunk_key_encoding=key, fill_value=7)
    (path / "notes.txt").write_text("no chunk")
    with open_stack(path) as stack:
        assert stack.warning() is None
        whole = stack.read()
    gone = [file for file in chunk_files(path) if file.name != "notes.txt"][2:5]
    for file in gone:
        file.unlink()
    with open_stack(path) as stack:
        assert stack.warning().startswith(f"{path}: chunks absent from its array: 3 of 8")
        assert "fill value, 7" in stack.warning()
        read = stack.read()
    assert (read == 7).sum() >= 3 * 64 and (read == whole).sum() >= 5 * 64


def test_absent_shards_are_counted_and_other_levels_are_not(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    for name in "ab":
        array = group.create_array(
            name, shape=(8, 8, 8), chunks=(2, 2, 2), shards=(4, 4, 8), dtype="u1"
        )
        array[...] = random_stack((8, 8, 8)) + 1
    chunk_files(tmp_path / "a.zarr" / "b")[0].unlink()
    with open_stack(tmp_path / "a.zarr", key="a") as stack:
        assert stack.warning() is None
    with open_stack(tmp_path / "a.zarr", key="b") as stack:
        assert "chunks absent from its array b: 1 of 4" in stack.warning()


def test_our_own_files_have_all_their_chunks(tmp_path):
    path = save(tmp_path / "a.ome.zarr", np.zeros((300, 20, 5), np.uint8))
    with open_stack(path) as stack:
        assert stack.warning() is None
    assert len(chunk_files(path / "0")) == 3
    save(tmp_path / "a.tif", random_stack())
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.warning() is None


AXES = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]


def image(group, multiscale, levels=("0",), shape=(4, 5, 6), ome=False, **options):
    """Make an OME-Zarr image of a group, its coarser levels smaller; return its full voxels."""
    array = random_stack(shape, np.uint16)
    for k, name in enumerate(levels):
        data = np.ascontiguousarray(array[..., :: 1 << k])
        group.create_array(name, data=data, chunks=tuple(min(2, n) for n in data.shape), **options)
    multiscale = {"datasets": [{"path": name} for name in levels], **multiscale}
    group.attrs.update(
        {"ome": {"multiscales": [multiscale]}} if ome else {"multiscales": [multiscale]}
    )
    return array


@pytest.mark.parametrize(
    ("version", "axes", "shape"),
    [
        ("0.1", None, (2, 2, 4, 5, 6)),
        ("0.2", None, (1, 2, 4, 5, 6)),
        ("0.3", ["c", "z", "y", "x"], (2, 4, 5, 6)),
        ("0.4", [{"name": "lambda", "type": "channel"}, *AXES], (2, 4, 5, 6)),
        ("0.5", [{"name": "c", "type": "channel"}, *AXES], (2, 4, 5, 6)),
    ],
)
def test_versions_of_ome_zarr(tmp_path, version, axes, shape):
    new = version == "0.5"
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3 if new else 2)
    array = image(
        group, {"version": version, **({"axes": axes} if axes else {})}, shape=shape, ome=new
    )
    index = shape[0] - 1 if len(shape) == 5 else None
    with open_stack(tmp_path / "a.zarr", channel=1, index=index) as stack:
        np.testing.assert_array_equal(stack.read(), array.reshape(-1, 2, 4, 5, 6)[-1, 1].T)


lengths = st.lists(st.floats(0.1, 9), min_size=3, max_size=3)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(own=lengths, every=lengths, moved=st.none() | lengths, shifted=st.none() | lengths)
def test_sizes_of_all_levels_multiply(tmp_path_factory, own, every, moved, shifted):
    """As in the specification 0.4: first the level's, then the image's transformations."""
    folder = tmp_path_factory.mktemp("scales") / "a.zarr"
    steps = [
        [{"type": "scale", "scale": scale}]
        + ([] if way is None else [{"type": "translation", "translation": way}])
        for scale, way in ((own, moved), (every, shifted))
    ]
    group = zarr.open_group(str(folder), mode="w", zarr_format=2)
    levels = [{"path": "0", "coordinateTransformations": steps[0]}]
    image(group, {"axes": AXES, "datasets": levels, "coordinateTransformations": steps[1]})
    with open_stack(folder) as stack:
        assert stack.spacing == pytest.approx(np.multiply(own, every)[::-1])


def test_images_in_groups(tmp_path):
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    steps = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}, {"type": "scale", "scale": [2.0, 0.5, 1]}]
    datasets = [
        {"path": str(k), "coordinateTransformations": [step]} for k, step in enumerate(steps)
    ]
    details = {"axes": AXES, "datasets": datasets}
    root.create_group("OME")
    inner = root.create_group("A/1/0")
    array = image(inner, details, ("0", "1"))
    label = image(inner.create_group("labels/cells"), details, ("0", "1"), (3, 5, 6))
    cases = [("", None), ("", "A/1/0"), ("", "A"), ("", "A/1/0/0"), ("A", None), ("A/1/0", None)]
    cases += [("A/1/0/0", None), ("A/1/0", "0"), ("A/1", "0")]
    for place, key in cases:
        with open_stack(tmp_path / "a.zarr" / place, key=key) as stack:
            assert stack.spacing == (0.5, 0.5, 2.0), (place, key)
            np.testing.assert_array_equal(stack.read(), array.T)
    for place, key in (("", "A/1/0/labels/cells/0"), ("A/1/0/labels", None), ("A", "1/0/labels")):
        with open_stack(tmp_path / "a.zarr" / place, key=key) as stack:
            assert stack.spacing == (0.5, 0.5, 2.0), (place, key)
            np.testing.assert_array_equal(stack.read(), label.T)
    for place, key in (("", "A/1/0/1"), ("A/1/0/1", None)):
        with open_stack(tmp_path / "a.zarr" / place, key=key) as stack:
            assert stack.spacing == (1.0, 0.5, 2.0) and stack.shape == (3, 5, 4)
    found = {entry.key: entry.chosen for entry in list_stacks(tmp_path / "a.zarr")}
    assert found == {"A/1/0/0": True, "A/1/0/labels/cells/0": False}
    second = image(root.create_group("A/1/1"), details, ("0", "1"))
    with pytest.raises(UserError, match=r"name one with --key: A/1/0/0 .*A/1/1/0"):
        open_stack(tmp_path / "a.zarr")
    with open_stack(tmp_path / "a.zarr", key="A/1/1") as stack:
        np.testing.assert_array_equal(stack.read(), second.T)
    with pytest.raises(UserError, match="'B': not there"):
        open_stack(tmp_path / "a.zarr", key="B")


def test_a_level_that_is_absent_is_no_reason_for_another(tmp_path):
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    image(root, {"axes": AXES}, ("0", "1"))
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    with pytest.raises(UserError, match="lacks the array 0"):
        open_stack(tmp_path / "a.zarr")


def test_coordinates_of_xarray_are_no_stacks(tmp_path):
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    root.create_array("raw", data=random_stack((4, 5, 6)))
    root.create_array("z", data=np.arange(4.0))
    assert [entry.key for entry in list_stacks(tmp_path / "a.zarr")] == ["raw"]


SPACE = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]


def scaled(path, scale, **more):
    steps = [{"type": "scale", "scale": scale, **more}]
    return {"axes": SPACE, "datasets": [{"path": path, "coordinateTransformations": steps}]}


def test_every_image_of_a_group(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    arrays = {name: random_stack(seed=seed) for seed, name in enumerate("ab")}
    for name, array in arrays.items():
        group.create_array(name, shape=array.shape, dtype="u1")[...] = array
    group.attrs["multiscales"] = [scaled("a", [2, 0.5, 0.5]), scaled("b", [3, 0.5, 0.5])]
    assert [(e.key, e.chosen) for e in list_stacks(tmp_path / "a.zarr")] == [
        ("a", True),
        ("b", False),
    ]
    for key, name, z in ((None, "a", 2), ("a", "a", 2), ("b", "b", 3)):
        with open_stack(tmp_path / "a.zarr", key=key) as stack:
            assert stack.spacing == (0.5, 0.5, z)
            np.testing.assert_array_equal(stack.read(), arrays[name].T)


def test_a_mirrored_axis_stays_mirrored(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=(4, 5, 6), dtype="u1")[...] = 1
    image = scaled("0", [2, -0.5, 0.5])
    shift = {"type": "translation", "translation": [0, 10, 3]}
    image["datasets"][0]["coordinateTransformations"].append(shift)
    group.attrs["multiscales"] = [image]
    with open_stack(tmp_path / "a.zarr") as stack:
        np.testing.assert_allclose(stack.place.steps, np.diag([0.5, -0.5, 2]))
        np.testing.assert_allclose(stack.place.first, [3, 10, 0])
        assert stack.spacing == (0.5, 0.5, 2) and stack.place.turned


def test_sizes_that_are_kept_elsewhere_are_no_damage(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=(4, 5, 6), dtype="u1")[...] = 1
    image = scaled("0", [1, 1, 1])
    image["datasets"][0]["coordinateTransformations"] = [{"type": "scale", "path": "numbers"}]
    group.attrs["multiscales"] = [image]
    with open_stack(tmp_path / "a.zarr") as stack:
        assert stack.spacing is None and "in another way" in stack.warning()
