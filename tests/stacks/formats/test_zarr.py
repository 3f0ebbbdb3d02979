import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import SPACING, random_stack, save
from utils.errors import UserError
from utils.stacks import open_stack


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
        with open_stack(folder) as stack:
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
        assert stack.warning().startswith(f"{path}: 3 of its 8 chunks are absent")
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
        assert "1 of the 4 chunks of its array b is absent" in stack.warning()


def test_our_own_files_have_all_their_chunks(tmp_path):
    path = save(tmp_path / "a.ome.zarr", np.zeros((300, 20, 5), np.uint8))
    with open_stack(path) as stack:
        assert stack.warning() is None
    assert len(chunk_files(path / "0")) == 3
    save(tmp_path / "a.tif", random_stack())
    with open_stack(tmp_path / "a.tif") as stack:
        assert stack.warning() is None
