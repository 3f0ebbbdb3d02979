"""The HDF5 file: what plain h5py sees, round trips, interruptions, full disks, broken files."""

from __future__ import annotations

import dataclasses
import fcntl
import pickle
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import fake_volume, write_fake_file
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils.errors import UserError
from utils.simulation.volume import SimulatedVolume, VolumeConfig, sample_rng
from utils.storage import (
    LAYOUT,
    Recipe,
    RecipeMismatchError,
    StorageError,
    VolumeFile,
    disk_space,
    encode_row,
    open_writer,
    partial_path,
    remove_stray_journal,
)

SHAPE = (32, 32, 32)
RECIPE = Recipe(VolumeConfig(shape=SHAPE), seed=0, num_samples=4)


def write_rows(path: Path, indices: list[int], *, finish: bool = False) -> list[int]:
    """Write some rows of RECIPE; return those that were missing before."""
    with open_writer(path, RECIPE) as writer:
        missing = writer.missing
        for index in indices:
            writer.write(index, encode_row(fake_volume(sample_rng(0, index), SHAPE)))
        if finish:
            writer.finish()
    return missing


def assert_same_volume(stored: SimulatedVolume, simulated: SimulatedVolume) -> None:
    for field in dataclasses.fields(SimulatedVolume):
        got, expected = getattr(stored, field.name), getattr(simulated, field.name)
        if field.name == "parameters":
            assert got == expected
            continue
        if field.name == "image":
            expected = np.minimum(expected, 65504).astype(np.float16).astype(np.float32)
        assert got.dtype == expected.dtype, field.name
        np.testing.assert_array_equal(got, expected, err_msg=field.name)


# --- Round trips ----------------------------------------------------------------------------------

finite = {"allow_nan": False, "allow_infinity": False}


@st.composite
def volumes(draw: st.DrawFn) -> list[SimulatedVolume]:
    """Draw volumes of one odd shape with numbers of any size."""
    shape = draw(st.tuples(*[st.integers(2, 40)] * 3))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        volume = fake_volume(rng, shape, draw(st.integers(0, 9)))
        some = draw(
            hnp.arrays(np.float32, 8, elements=st.floats(0, np.float32(3e38), width=32, **finite))
        )
        image = volume.image.copy()
        image.ravel()[: some.size] = some[: image.size]
        ids = draw(hnp.arrays(np.uint16, 8))
        instances = volume.instances.copy()
        instances.ravel()[-ids.size :] = ids[: instances.size]
        made.append(dataclasses.replace(volume, image=image, instances=instances))
    return made


@settings(max_examples=25, deadline=None)
@given(made=volumes())
def test_volumes_come_back_as_they_went_in(
    made: list[SimulatedVolume], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "trip.h5"
    recipe = Recipe(VolumeConfig(shape=made[0].image.shape), seed=3, num_samples=len(made))
    with open_writer(path, recipe) as writer:
        for index, volume in enumerate(made):
            writer.write(index, encode_row(volume))
        writer.finish()
    with VolumeFile(path) as file:
        assert (len(file), file.recipe) == (len(made), recipe)
        for index, volume in enumerate(made):
            assert_same_volume(file.read_volume(index), volume)
            np.testing.assert_array_equal(file.read_mask(index), volume.instances > 0)
            np.testing.assert_allclose(
                file.percentiles(index), np.percentile(file.read_image(index), (1, 99)), rtol=1e-6
            )
    assert [entry.name for entry in path.parent.iterdir()] == ["trip.h5"]


def test_parts_equal_the_same_parts_of_the_whole(tmp_path: Path) -> None:
    path = write_fake_file(tmp_path / "odd.h5", shape=(50, 33, 70), num_samples=2)
    part = (slice(20, 45), slice(0, 33), slice(31, 65))
    with VolumeFile(path) as file:
        whole = file.read_volume(1)
        np.testing.assert_array_equal(file.read_image(1, part), whole.image[part])
        np.testing.assert_array_equal(file.read_mask(1, part), whole.mask[part])
        np.testing.assert_array_equal(file.read_instances(1, part), whole.instances[part])
        assert file.read_image(1, part).dtype == np.float32
        assert file.shape == (50, 33, 70)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_an_image_that_is_not_one_is_refused(bad: float) -> None:
    volume = fake_volume(np.random.default_rng(0))
    volume.image[3, 4, 5] = bad
    with pytest.raises(ValueError, match="finite and nowhere negative"):
        encode_row(volume)


def test_a_row_of_another_shape_is_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.h5", RECIPE) as writer:
        with pytest.raises(ValueError, match="does not fit"):
            writer.write(0, encode_row(fake_volume(np.random.default_rng(0), (32, 32, 40))))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write(4, encode_row(fake_volume(np.random.default_rng(0), SHAPE)))
        with pytest.raises(ValueError, match="4 samples are missing"):
            writer.finish()


# --- What plain h5py sees -------------------------------------------------------------------------


def test_plain_h5py_reads_every_dataset(fake_file: Path) -> None:
    expected = fake_volume(sample_rng(0, 1))
    with h5py.File(fake_file) as file:
        assert file["vol_data"].dtype == np.float16
        assert file["vol_labels"].dtype == np.uint8
        assert file["vol_instances"].dtype == np.uint16
        assert file["vol_data"].compression is None
        assert file["vol_labels"].compression == file["vol_instances"].compression == "gzip"
        for name in ("points", "entry_points", "e_r", "e_theta", "e_phi"):
            stored = file[name][1].reshape(-1, 3)
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, getattr(expected, name))
        np.testing.assert_array_equal(file["column_type"][1], expected.column_type)
        pairs = file["lattice_neighbours"][1].reshape(-1, 2)
        np.testing.assert_array_equal(pairs, expected.lattice_neighbours)
        assert file["parameters/spacing"][1] == expected.parameters.spacing
        assert tuple(file["parameters/shift"][1]) == expected.parameters.shift
        assert file.attrs["complete"] and file.attrs["seed"] == 0
        assert file.attrs["num_samples"] == 4
        assert {"configuration", "format_version", "program_version"} <= set(file.attrs)


def test_every_dataset_says_what_it_is(fake_file: Path) -> None:
    with h5py.File(fake_file) as file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name + item.attrs["description"]))
    assert len(found) > len(LAYOUT)


def test_the_usage_in_a_description_works(fake_file: Path) -> None:
    with h5py.File(fake_file) as f:
        usage = f["control_points"].attrs["description"].split("per sample: ")[1]
        assert eval(usage, {"f": f, "sample": 2}).shape == (4, 7, 3)


# --- Interruptions --------------------------------------------------------------------------------


def test_the_order_of_writing_leaves_no_trace(tmp_path: Path) -> None:
    write_rows(tmp_path / "rising.h5", [0, 1, 2, 3], finish=True)
    write_rows(tmp_path / "mixed.h5", [2, 0, 3, 1], finish=True)
    assert (tmp_path / "rising.h5").read_bytes() == (tmp_path / "mixed.h5").read_bytes()


def test_an_interrupted_file_is_picked_up(tmp_path: Path, fake_file: Path) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [2])
    assert not path.exists() and partial_path(path).exists()
    assert write_rows(path, [3, 0]) == [0, 1, 3]
    assert write_rows(path, [1], finish=True) == [1]
    assert path.read_bytes() == fake_file.read_bytes()


@pytest.mark.parametrize("torn", [1, 10, 30, 1000])
def test_a_torn_record_is_written_again(tmp_path: Path, fake_file: Path, torn: int) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [0, 1, 2])
    journal = tmp_path / "a.h5.rows.partial"
    journal.write_bytes(journal.read_bytes()[:-torn])
    assert write_rows(path, [2, 3], finish=True) == [2, 3]
    assert path.read_bytes() == fake_file.read_bytes()


def test_a_damaged_image_is_written_again(tmp_path: Path, fake_file: Path) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [0, 1, 2])
    with partial_path(path).open("r+b") as file:
        file.seek(-3 * 2 * 32**3 + 100, 2)  # inside the image of sample 1
        file.write(b"\xff" * 8)
    assert write_rows(path, [1, 3], finish=True) == [1, 3]
    assert path.read_bytes() == fake_file.read_bytes()


@pytest.mark.parametrize("killed_in", ["_store_record", "os.replace"])
def test_a_kill_while_finishing_is_repaired(
    tmp_path: Path, fake_file: Path, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"utils.storage.writing.{killed_in}", die)
        with pytest.raises(Killed):
            write_rows(path, [0, 1, 2, 3], finish=True)
    with partial_path(path).open("r+b") as file:
        file.write(b"half rewritten")
    assert write_rows(path, [], finish=True) == []
    assert path.read_bytes() == fake_file.read_bytes()


def test_an_unreadable_journal_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [0])
    (tmp_path / "a.h5.rows.partial").write_bytes(b"nonsense")
    with open_writer(path, RECIPE) as writer:
        assert "cannot be read" in writer.restarted_because
        assert writer.missing == [0, 1, 2, 3]


def test_another_recipe_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [0])
    other = Recipe(VolumeConfig(shape=SHAPE, gain_range=(5, 6)), seed=1, num_samples=4)
    with pytest.raises(RecipeMismatchError, match="a.h5.partial: .*gain_range.*seed is 0") as error:
        open_writer(path, other)
    assert {name for name, _, _ in error.value.differences} == {"gain_range", "seed"}
    with open_writer(path, other, restart=True) as writer:
        assert writer.missing == [0, 1, 2, 3]


def test_restart_with_the_same_recipe_picks_up(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.h5", [0])
    with open_writer(tmp_path / "a.h5", RECIPE, restart=True) as writer:
        assert writer.missing == [1, 2, 3]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.h5", RECIPE):
        with pytest.raises(StorageError, match="another process is writing"):
            open_writer(tmp_path / "a.h5", RECIPE)
    with open_writer(tmp_path / "a.h5", RECIPE) as writer:
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_comes_as_another_ends_does_not_use_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened before the other removed it, locked after: what is written there nobody would find."""
    lock = fcntl.flock

    def lock_too_late(fd: int, how: int) -> None:
        (tmp_path / "a.h5.rows.partial").unlink()
        lock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lock_too_late)
        with pytest.raises(StorageError, match="another process"):
            open_writer(tmp_path / "a.h5", RECIPE)
    assert list(tmp_path.iterdir()) == []
    assert write_rows(tmp_path / "a.h5", []) == [0, 1, 2, 3]


def test_a_directory_in_the_way_is_seen_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(StorageError, match="a.h5: a directory, not a file"):
        open_writer(tmp_path / "a.h5", RECIPE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


def test_a_stray_journal_goes_and_a_needed_one_stays(tmp_path: Path) -> None:
    (tmp_path / "done.h5.rows.partial").write_bytes(b"x")
    remove_stray_journal(tmp_path / "done.h5")
    assert list(tmp_path.iterdir()) == []
    write_rows(tmp_path / "a.h5", [0])
    remove_stray_journal(tmp_path / "a.h5")
    assert write_rows(tmp_path / "a.h5", []) == [1, 2, 3]


# --- Full disks -----------------------------------------------------------------------------------


class FileSizeLimit:
    """Lets no file of this process grow beyond so many bytes, as a full disk would."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_no_room_at_the_start_leaves_nothing(tmp_path: Path) -> None:
    with FileSizeLimit(100_000), pytest.raises(StorageError, match="a.h5: cannot be begun: File"):
        open_writer(tmp_path / "a.h5", RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_what_is_written(tmp_path: Path, fake_file: Path) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [0])
    with open_writer(path, RECIPE) as writer:
        row = encode_row(fake_volume(sample_rng(0, 1), SHAPE))
        with FileSizeLimit(100_000):
            with pytest.raises(StorageError, match="File too large; 1 of 4 samples are kept"):
                writer.write(1, row)
    assert write_rows(path, [1, 2, 3], finish=True) == [1, 2, 3]
    assert path.read_bytes() == fake_file.read_bytes()


def test_a_disk_that_fills_up_at_the_end_keeps_all(tmp_path: Path, fake_file: Path) -> None:
    path = tmp_path / "a.h5"
    write_rows(path, [0, 1, 2, 3])
    with open_writer(path, RECIPE) as writer:
        with FileSizeLimit(partial_path(path).stat().st_size + 5000):
            with pytest.raises(StorageError, match="File too large; 4 of 4 samples are kept"):
                writer.finish()
    assert not path.exists()
    assert write_rows(path, [], finish=True) == []
    assert path.read_bytes() == fake_file.read_bytes()


def test_the_estimate_of_space_is_above_what_is_used(fake_file: Path) -> None:
    used = fake_file.stat().st_size
    assert used < disk_space(RECIPE) < 2 * used + (1 << 20)


# --- Reading broken files -------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none.h5: no such file"):
        len(VolumeFile(tmp_path / "none.h5"))
    assert not VolumeFile(tmp_path / "none.h5").complete
    with pytest.raises(StorageError, match="a directory"):
        len(VolumeFile(tmp_path))


@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_a_truncated_file_is_named(tmp_path: Path, fake_file: Path, kept: int) -> None:
    path = tmp_path / "short.h5"
    path.write_bytes(fake_file.read_bytes()[:kept])
    with pytest.raises(StorageError, match="short.h5: truncated or not HDF5"):
        VolumeFile(path).read_image(0)


def test_a_file_that_is_being_made_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.h5", [0])
    with pytest.raises(StorageError, match="a.h5.partial: not complete"):
        VolumeFile(partial_path(tmp_path / "a.h5")).read_image(0)


def test_wrong_keys_are_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "keys.h5"))
    with h5py.File(path, "r+") as file:
        del file["vol_labels"], file["parameters/spacing"], file.attrs["seed"]
    expected = "keys.h5: .*lacks vol_labels, parameters/spacing, attribute seed"
    with pytest.raises(StorageError, match=expected):
        VolumeFile(path).read_image(0)


def test_seeds_from_2_to_the_32_are_refused_but_their_old_files_are_read(
    tmp_path: Path, fake_file: Path, tiny_config: VolumeConfig
) -> None:
    with pytest.raises(UserError, match="seed 4294967296: must be a whole number"):
        Recipe(tiny_config, 2**32, 1)
    path = Path(shutil.copy(fake_file, tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["seed"] = 2**32
    with VolumeFile(path) as file:
        assert file.seed == 2**32 and file.read_image(0).any()
        with pytest.raises(StorageError, match="old.h5: seed 4294967296"):
            _ = file.recipe


def test_another_format_version_is_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "new.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(StorageError, match="new.h5: format version 99"):
        VolumeFile(path).read_image(0)


def test_a_configuration_of_another_version_is_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["configuration"] = '{"viscosity": 1}'
    with VolumeFile(path) as file:
        assert file.read_image(0).shape == SHAPE
        with pytest.raises(StorageError, match="old.h5: its configuration"):
            _ = file.config


def test_a_damaged_chunk_is_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "hurt.h5"))
    with h5py.File(path) as file:
        chunk = file["vol_labels"].id.get_chunk_info(0)
        row = chunk.chunk_offset[0]
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\0" * chunk.size)
    with VolumeFile(path) as file:
        with pytest.raises(StorageError, match=f"hurt.h5: vol_labels of sample {row} cannot"):
            file.read_mask(row)


def test_a_row_that_is_not_there_is_an_index_error(fake_file: Path) -> None:
    with VolumeFile(fake_file) as file:
        for index in (-1, 4):
            with pytest.raises(IndexError, match="outside 0..3"):
                file.read_image(index)


# --- Processes ------------------------------------------------------------------------------------


def _mean_of_first(file: VolumeFile) -> float:
    return float(file.read_image(0).mean())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_file_travels_to_other_processes(fake_file: Path, method: str) -> None:
    with VolumeFile(fake_file) as file:
        expected = _mean_of_first(file)
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            assert pool.submit(_mean_of_first, file).result() == expected
        assert pickle.loads(pickle.dumps(file))._file is None
    assert _mean_of_first(file) == expected  # opened again after closing
    file.close()
