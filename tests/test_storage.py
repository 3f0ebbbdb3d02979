"""The HDF5 file: what plain h5py sees, round trips, cut files, full disks, broken files."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.conftest import fake_volume, write_fake_file
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.simulation.volume import (
    SimulatedVolume,
    VolumeConfig,
    WideConfig,
    sample_rng,
    simulate_volume,
)
from utils.storage import (
    VolumeFile,
    VolumeSet,
    disk_space,
    encode_row,
    write_simulated_file,
)
from utils.storage.files import new_hdf5_file
from utils.storage.volumes import RAGGED, VOXELS, EncodedRow

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (32, 32, 32)
VOLUMES = VolumeSet(VolumeConfig(shape=SHAPE), seed=0, num_samples=4)


def rows_of(count: int) -> Iterator[EncodedRow]:
    """Yield the first rows of VOLUMES."""
    for index in range(count):
        yield encode_row(fake_volume(sample_rng(0, index), SHAPE))


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def assert_same_volume(stored: SimulatedVolume, simulated: SimulatedVolume) -> None:
    assert type(stored) is type(simulated)
    for field in dataclasses.fields(simulated):
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
    volume_set = VolumeSet(VolumeConfig(shape=made[0].image.shape), seed=3, num_samples=len(made))
    write_simulated_file(path, volume_set, map(encode_row, made))
    with VolumeFile(path) as file:
        assert (len(file), file.volume_set) == (len(made), volume_set)
        for index, volume in enumerate(made):
            assert_same_volume(file.read_volume(index), volume)
            np.testing.assert_array_equal(file.read_mask(index), volume.instances > 0)
            np.testing.assert_allclose(
                file.percentiles(index),
                PercentileNormalizer().fit(file.read_image(index)),
                rtol=1e-6,
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
    with pytest.raises(UserError, match="finite and nowhere negative"):
        encode_row(volume)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = encode_row(fake_volume(np.random.default_rng(0), (32, 32, 40)))
    with pytest.raises(TypeError, match=r"broadcast .*\(32, 32, 40\) -> \(32, 32, 32\)"):
        write_simulated_file(tmp_path / "a.h5", VOLUMES, [*rows_of(1), other])
    with pytest.raises(IndexError, match=r"\(4\) out of range for \(0-3\)"):
        write_simulated_file(tmp_path / "a.h5", VOLUMES, rows_of(5))
    with pytest.raises(ValueError, match="3 of 4 samples were written"):
        write_simulated_file(tmp_path / "a.h5", VOLUMES, rows_of(3))
    assert names(tmp_path) == []


def test_simulated_volumes_are_written(tmp_path: Path, tiny_config: VolumeConfig) -> None:
    write_simulated_file(tmp_path / "a.h5", VolumeSet(tiny_config, 5, 2))
    with VolumeFile(tmp_path / "a.h5") as file:
        assert file.volume_set == VolumeSet(tiny_config, 5, 2)
        assert_same_volume(file.read_volume(1), simulate_volume(tiny_config, sample_rng(5, 1)))


def test_wide_volumes_come_back_with_their_paths_and_what_was_drawn(
    tmp_path: Path, tiny_wide: WideConfig
) -> None:
    path, volume_set = tmp_path / "a.h5", VolumeSet(tiny_wide, 5, 2)
    write_simulated_file(path, volume_set)
    with VolumeFile(path) as file:
        assert file.volume_set == volume_set
        for index in range(2):
            simulated = simulate_volume(tiny_wide, sample_rng(5, index))
            stored = file.read_volume(index)
            assert_same_volume(stored, simulated)
            np.testing.assert_array_equal(stored.sheet, simulated.sheet)
    assert path.stat().st_size < disk_space(volume_set)
    with h5py.File(path) as f:
        found: list[str] = []
        f.visititems(lambda name, item: found.append(name + item.attrs["description"]))
        nodes = eval(
            f["paths"].attrs["description"].split("per sample: ")[1], {"f": f, "sample": 1}
        )
        n = f["entry_points"][1].size // 3
        np.testing.assert_array_equal(nodes.reshape(n, -1, 3), stored.paths)
        drawn = json.loads(f["parameters/drawn"][1])
        assert {"geometry", "stain", "microscope"} == set(drawn)
    with h5py.File(path, "r+") as f:
        del f["path_spacing"]
    with pytest.raises(UserError, match="not a file of simulated volumes: lacks path_spacing"):
        VolumeFile(path).read_volume(0)


def test_sets_of_other_presets_and_parts_differ(tiny_wide: WideConfig) -> None:
    wide, reference = VolumeSet(tiny_wide, 0, 2), VolumeSet(VolumeConfig(), 1, 2)
    assert wide.differences(reference) == [("preset", "wide", "reference")]
    narrower = dataclasses.replace(tiny_wide.sheet, bend=(0.0, 0.1))
    other = dataclasses.replace(wide, config=dataclasses.replace(tiny_wide, sheet=narrower))
    assert wide.differences(other) == [("sheet.bend", list(tiny_wide.sheet.bend), [0.0, 0.1])]
    assert wide.differences(wide) == []


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
    assert len(found) > len(VOXELS) + len(RAGGED) + 3


def test_the_usage_in_a_description_works(fake_file: Path) -> None:
    with h5py.File(fake_file) as f:
        usage = f["control_points"].attrs["description"].split("per sample: ")[1]
        assert eval(usage, {"f": f, "sample": 2}).shape == (4, 7, 3)


# --- One file at a time ---------------------------------------------------------------------------


def test_equal_contents_give_equal_bytes(tmp_path: Path, fake_file: Path) -> None:
    write_simulated_file(tmp_path / "a.h5", VOLUMES, rows_of(4))
    assert (tmp_path / "a.h5").read_bytes() == fake_file.read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_cut_leaves_nothing_and_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.h5"
    path.write_text("the old one")

    def rows() -> Iterator[EncodedRow]:
        yield from rows_of(2)
        assert path.read_text() == "the old one"
        raise error

    with pytest.raises(error):
        write_simulated_file(path, VOLUMES, rows())
    assert names(tmp_path) == ["a.h5"] and path.read_text() == "the old one"


def test_a_killed_process_leaves_what_the_next_one_replaces(
    tmp_path: Path, fake_file: Path
) -> None:
    kill = "import os, signal; rows = iter(lambda: os.kill(os.getpid(), signal.SIGKILL), 0);"
    code = (
        "from pathlib import Path; from utils.simulation import VolumeConfig;"
        "from utils.storage import VolumeSet, write_simulated_file;"
        f"volumes = VolumeSet(VolumeConfig(shape={SHAPE}, min_columns=9), 7, 9); {kill}"
        f"write_simulated_file(Path({str(tmp_path / 'a.h5')!r}), volumes, rows)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert killed.returncode == -9 and len(names(tmp_path)) == 1
    write_simulated_file(tmp_path / "a.h5", VOLUMES, rows_of(4))
    assert names(tmp_path) == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == fake_file.read_bytes()


def test_two_writers_do_not_meet(tmp_path: Path, fake_file: Path) -> None:
    path = tmp_path / "a.h5"

    def rows() -> Iterator[EncodedRow]:
        first, second, *others = rows_of(4)
        yield from (first, second)
        with pytest.raises(UserError, match="a.h5: another process is writing this file"):
            write_simulated_file(path, VOLUMES)
        yield from others

    write_simulated_file(path, VOLUMES, rows())
    assert path.read_bytes() == fake_file.read_bytes()


def test_a_folder_in_the_way_is_seen_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.h5").mkdir()
    with pytest.raises(UserError, match="a.h5: is a folder"):
        write_simulated_file(tmp_path / "a.h5", VOLUMES)
    with pytest.raises(UserError, match="the folder .*none does not exist"):
        write_simulated_file(tmp_path / "none" / "a.h5", VOLUMES)
    assert names(tmp_path) == ["a.h5"]


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


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_no_room_is_told_before_the_first_row(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "macos":
        monkeypatch.delattr(os, "posix_fallocate")
    with FileSizeLimit(1_500_000):
        with pytest.raises(UserError, match=r"a.h5: cannot be written \(File too large\)"):
            write_simulated_file(tmp_path / "a.h5", VOLUMES)
    assert names(tmp_path) == []


def test_claiming_room_changes_no_byte(
    tmp_path: Path, fake_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")

    def rows() -> Iterator[EncodedRow]:
        assert (tmp_path / ".a.partial.h5").stat().st_size >= disk_space(VOLUMES)
        yield from rows_of(4)

    write_simulated_file(tmp_path / "a.h5", VOLUMES, rows())
    assert (tmp_path / "a.h5").read_bytes() == fake_file.read_bytes()


def test_a_disk_that_fails_while_writing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Can't write data (file write failed: time = now\n, errno = 5, error message = 'gone')"

    def fail(*_: object) -> None:
        raise OSError(text)

    def rows() -> Iterator[EncodedRow]:
        yield from rows_of(1)
        monkeypatch.setattr("h5py.Dataset.__setitem__", fail)
        yield from rows_of(1)

    with pytest.raises(UserError, match="a.h5: cannot be written: Input/output error"):
        write_simulated_file(tmp_path / "a.h5", VOLUMES, rows())
    assert names(tmp_path) == []


def test_a_small_disk_is_named_with_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**10, 0, 10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="a.h5: about 2 MB are needed, 1 MB are free"):
        write_simulated_file(tmp_path / "a.h5", VOLUMES)
    assert names(tmp_path) == []


def test_the_estimate_of_space_is_above_what_is_used(fake_file: Path) -> None:
    used = fake_file.stat().st_size
    assert used < disk_space(VOLUMES) < 2 * used + (1 << 20)


# --- Reading broken files -------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.h5: no such file"):
        len(VolumeFile(tmp_path / "none.h5"))
    assert not VolumeFile(tmp_path / "none.h5").complete
    with pytest.raises(UserError, match="a directory"):
        len(VolumeFile(tmp_path))


@pytest.mark.parametrize("kept", [0, 100, 200_000])
def test_a_truncated_file_is_named(tmp_path: Path, fake_file: Path, kept: int) -> None:
    path = tmp_path / "short.h5"
    path.write_bytes(fake_file.read_bytes()[:kept])
    with pytest.raises(UserError, match="short.h5: truncated or not HDF5"):
        VolumeFile(path).read_image(0)


def test_a_file_that_is_not_complete_is_named(
    tmp_path: Path, fake_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    @contextmanager
    def recording(*arguments: Any) -> Iterator[h5py.File]:
        with new_hdf5_file(*arguments) as file:
            opened.append(file)
            yield file

    def rows() -> Iterator[EncodedRow]:
        assert not opened[0].attrs["complete"]
        yield from rows_of(4)

    monkeypatch.setattr("utils.storage.volumes.new_hdf5_file", recording)

    write_simulated_file(tmp_path / "a.h5", VOLUMES, rows())
    path = Path(shutil.copy(fake_file, tmp_path / "begun.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = False
    with pytest.raises(UserError, match="begun.h5: not complete: .* makes it anew"):
        VolumeFile(path).read_image(0)


def test_wrong_keys_are_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "keys.h5"))
    with h5py.File(path, "r+") as file:
        del file["vol_labels"], file["parameters/spacing"], file.attrs["seed"]
    expected = "keys.h5: .*lacks vol_labels, parameters/spacing, attribute seed"
    with pytest.raises(UserError, match=expected):
        VolumeFile(path).read_image(0)


def test_seeds_from_2_to_the_32_are_refused_but_their_old_files_are_read(
    tmp_path: Path, fake_file: Path, tiny_config: VolumeConfig
) -> None:
    with pytest.raises(UserError, match="seed 4294967296: must be a whole number"):
        VolumeSet(tiny_config, 2**32, 1)
    path = Path(shutil.copy(fake_file, tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["seed"] = 2**32
    with VolumeFile(path) as file:
        assert file.seed == 2**32 and file.read_image(0).any()
        with pytest.raises(UserError, match="old.h5: seed 4294967296"):
            _ = file.volume_set


def test_another_format_version_is_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "new.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(UserError, match="new.h5: format version 99"):
        VolumeFile(path).read_image(0)


def test_a_configuration_of_another_version_is_named(tmp_path: Path, fake_file: Path) -> None:
    path = Path(shutil.copy(fake_file, tmp_path / "old.h5"))
    with h5py.File(path, "r+") as file:
        file.attrs["configuration"] = '{"viscosity": 1}'
    with VolumeFile(path) as file:
        assert file.read_image(0).shape == SHAPE
        with pytest.raises(UserError, match="old.h5: its configuration"):
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
        with pytest.raises(UserError, match=f"hurt.h5: vol_labels of sample {row} cannot"):
            file.read_mask(row)


def test_damaged_tables_are_named(tmp_path: Path, fake_file: Path) -> None:
    """A byte changed anywhere in a table of HDF5, whose check sums notice it."""
    whole, damaged = fake_file.read_bytes(), set()
    heads = [found.start() for found in re.finditer(b"OHDR|OCHK|FRHP|FHDB|GCOL", whole)]
    for place in heads:
        path = tmp_path / "hurt.h5"
        path.write_bytes(whole[: place + 6] + b"\xee" * 4 + whole[place + 10 :])
        try:
            with VolumeFile(path) as file:
                assert file.volume_set == VOLUMES
                file.read_volume(3)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            damaged.add(place)
    assert len(damaged) > len(heads) / 2


def test_a_wrong_call_is_not_called_damage(fake_file: Path) -> None:
    with VolumeFile(fake_file) as file, pytest.raises(ValueError) as raised:
        file.read_image(0, (slice(0, 1),) * 9)
    assert not isinstance(raised.value, UserError)


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
