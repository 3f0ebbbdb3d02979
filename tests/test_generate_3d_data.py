"""The generator script, run as a user runs it: flags, interruptions, existing files, clusters."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import h5py
import numpy as np
import pytest
from distributed import LocalCluster

import generate_3d_data
from tests.conftest import run_and_time
from utils.errors import UserError
from utils.simulation.sheet import SheetConfig
from utils.simulation.volume import VolumeConfig, WideConfig, sample_rng, simulate_volume
from utils.storage import VolumeFile, VolumeSet

SCRIPT = Path(generate_3d_data.__file__)
TINY = ["--L_xy", "32", "--L_z", "24", "--lattice_low", "4", "--lattice_high", "5"]
TINY += ["--min_columns", "5", "--NF_size", "3"]
NUM_SAMPLES = 60
MANY = 5000
"""Samples that are not done before a run is stopped."""
PATIENCE = 240
"""Seconds after which a process hangs, however slow and busy the machine."""


def command(directory: Path, *flags: str, samples: int = NUM_SAMPLES) -> list[str]:
    place = ["--directory", str(directory), "--filename", "a.h5", "--L", str(samples)]
    return [sys.executable, str(SCRIPT), *place, *TINY, *flags]


def run(directory: Path, *flags: str, samples: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(directory, *flags, samples=samples),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def start(directory: Path, *flags: str, samples: int = MANY) -> subprocess.Popen[str]:
    """Start the script with Ctrl-C at work, also where the tests run in a shell's background."""
    return subprocess.Popen(
        command(directory, "--workers", "2", *flags, samples=samples),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rows(process: subprocess.Popen[str]) -> str:
    """Wait until the bar says that some volumes are written; return what was read of it."""
    shown = ""
    while not re.search(r"\b[1-9]\d*/\d+ ", shown):
        character = process.stderr.read(1)
        assert character, f"no row was written: {shown}"
        shown += character
    return shown


def wait_for_the_end_of(workers: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(lives(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    """Return whether a process runs: one that nobody has buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def identity(path: Path) -> tuple[int, int, int]:
    """Return what writing to a file or replacing it changes, and reading it does not."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def error_line(stderr: str) -> str:
    """Return the one line of the error; what tqdm draws is cut off."""
    lines = [line.rsplit("\r", 1)[-1] for line in stderr.splitlines() if "generate_3d" in line]
    assert len(lines) == 1 and "Traceback" not in stderr, stderr
    return lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the file of an uninterrupted run with one worker; not to be changed."""
    directory = tmp_path_factory.mktemp("whole")
    made = run(directory, "--workers", "1", samples=NUM_SAMPLES)
    assert made.returncode == 0, made.stderr
    return directory


# --- Flags ----------------------------------------------------------------------------------------


def test_help_comes_quickly_and_names_every_flag() -> None:
    shown, seconds = run_and_time([sys.executable, str(SCRIPT), "--help"])
    assert seconds < 1 and shown.returncode == 0
    flags = ["--directory", "--filename", "--L ", "--random_state", "--NF_size", "--L_xy", "--L_z"]
    flags += ["--cube_kernel_size", "--simplify_factor", "--baseline_intensity", "--v_std"]
    flags += ["--std_intensity_range_low", "--std_intensity_range_high", "--workers"]
    flags += ["--dask-scheduler", "--overwrite", "--lattice_low", "--lattice_high"]
    flags += ["--min_columns", "--max_tries", "--gain_low", "--gain_high", "--contrast_low"]
    flags += ["--contrast_high", "--axis_scale_low", "--axis_scale_high"]
    flags += ["--background_low", "--background_high"]
    assert [flag for flag in flags if flag not in shown.stdout] == []
    assert "None" not in shown.stdout and "False" not in shown.stdout


def asked(*flags: str) -> VolumeSet:
    return generate_3d_data.volume_set_from_flags(generate_3d_data.make_parser().parse_args(flags))


def test_the_defaults_are_the_configurations() -> None:
    assert asked() == VolumeSet(VolumeConfig(), seed=0, num_samples=512)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--L 7", "num_samples", 7),
        ("--random_state 9999", "seed", 9999),
        ("--L_xy 64", "shape", [64, 64, 128]),
        ("--L_z 64", "shape", [128, 128, 64]),
        ("--NF_size 5", "background_sigma", 5.0),
        ("--cube_kernel_size 3", "cube_kernel_size", 3),
        ("--simplify_factor 2", "simplify_factor", 2.0),
        ("--baseline_intensity 60", "baseline_intensity", 60.0),
        ("--v_std 2", "v_std", 2.0),
        ("--std_intensity_range_low .4", "std_intensity_range", [0.4, 1.2]),
        ("--std_intensity_range_high .4", "std_intensity_range", [0.3, 0.4]),
        ("--lattice_low 9", "lattice_intervals", [9, 15]),
        ("--lattice_high 9", "lattice_intervals", [8, 9]),
        ("--min_columns 9", "min_columns", 9),
        ("--max_tries 9", "max_tries", 9),
        ("--gain_low 12", "gain_range", [12, 29]),
        ("--gain_high 12", "gain_range", [10, 12]),
        ("--contrast_low .9", "contrast_range", [0.9, 1.0]),
        ("--contrast_high .9", "contrast_range", [0.7, 0.9]),
        ("--axis_scale_low 1", "axis_scales", [1.0, 1.5]),
        ("--axis_scale_high 1", "axis_scales", [0.7, 1.0]),
        ("--background_low .001", "background_range", [0.001, 0.0025]),
        ("--background_high .001", "background_range", [0.0005, 0.001]),
    ],
)
def test_each_flag_sets_its_field(flags: str, name: str, value: object) -> None:
    expected = {**asked().to_dict(), name: value}
    assert asked(*flags.split()).to_dict() == expected


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--L 0", "--L 0: must be at least 1"),
        ("--random_state -1", "--random_state -1: must be a whole number of at least 0"),
        ("--random_state 4294967296", "--random_state 4294967296: must be a whole number"),
        ("--workers 0", "--workers 0: must be at least 1"),
        ("--gain_low 40", "--gain_low, --gain_high"),
        ("--gain_high 1000000", "--gain_low, --gain_high (10, 1000000): must be at most 15000"),
        ("--L_xy 0", "--L_xy, --L_z"),
        ("--NF_size -1", "--NF_size"),
        ("--min_columns 0", "--min_columns"),
        ("--cube_kernel_size 0", "--cube_kernel_size"),
    ],
)
def test_a_bad_value_is_one_line_and_leaves_nothing(
    tmp_path: Path, flags: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate_3d_data.main(["--directory", str(tmp_path), *flags.split()]) == 2
    assert named in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", ["--L many", "--gain_low 1.5", "--what 3", "--over"])
def test_a_flag_that_cannot_be_read_is_one_line(
    flags: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        generate_3d_data.main(flags.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert flags.split()[0] in error and error.count("\n") == 1


# --- Presets --------------------------------------------------------------------------------------

TINY_WIDE = "min_visibility = 0.3\n[sheet]\nspacing = [5, 7]\nmin_columns = 4\n"


@pytest.fixture
def wide_flags(tmp_path: Path) -> list[str]:
    (tmp_path / "wide.toml").write_text(TINY_WIDE)
    place = ["--directory", str(tmp_path), "--filename", "wide.h5", "--L", "3"]
    small = ["--L_xy", "32", "--L_z", "24", "--config", str(tmp_path / "wide.toml")]
    return [*place, *small, "--preset", "wide"]


def test_wide_volumes_are_those_of_their_configuration_however_many_workers(
    wide_flags: list[str], tmp_path: Path
) -> None:
    expected = WideConfig((32, 32, 24), 0.3, sheet=SheetConfig(spacing=(5.0, 7.0), min_columns=4))
    assert asked(*wide_flags) == VolumeSet(expected, 0, 3)
    for workers in ("1", "3"):
        more = ["--filename", f"{workers}.h5", "--workers", workers]
        assert generate_3d_data.main([*wide_flags, *more]) == 0
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "3.h5").read_bytes()
    with VolumeFile(tmp_path / "1.h5") as file:
        simulated = simulate_volume(expected, sample_rng(0, 2))
        np.testing.assert_array_equal(file.read_instances(2), simulated.instances)
        assert file.parameters(2) == simulated.parameters


def test_a_file_of_another_preset_is_in_the_way(
    wide_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate_3d_data.main(wide_flags) == 0
    assert generate_3d_data.main(wide_flags) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert generate_3d_data.main(wide_flags[:6]) == 2
    assert "--preset: wide in the file, reference asked for" in error_line(capsys.readouterr().err)
    (tmp_path / "wide.toml").write_text(TINY_WIDE.replace("min_columns = 4", "min_columns = 5"))
    assert generate_3d_data.main(wide_flags) == 2
    differs = "sheet.min_columns: 4 in the file, 5 asked for"
    assert differs in error_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["reference", "wide"])
def test_what_is_shown_can_be_given_back(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shown.toml"
    assert generate_3d_data.main(["--preset", name, "--show_config"]) == 0
    path.write_text(capsys.readouterr().out)
    assert asked("--config", str(path)) == asked("--preset", name)
    assert names(tmp_path) == ["shown.toml"]


def test_flags_win_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("preset = 'reference'\ngain_range = [3, 7]\nv_std = 2\n")
    found = asked("--config", str(path), "--gain_high", "9", "--L_z", "64").config
    assert found == VolumeConfig(shape=(128, 128, 64), gain_range=(3, 9), v_std=2.0)


def test_measured_columns_are_kept_by_name_and_hash(
    wide_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "square.csv"
    ends = ",".join(f"{end}_{axis}" for end in ("proximal", "distal") for axis in "xyz")
    sites = [f"{p},{q},{8 * p},{8 * q},0,{8 * p},{8 * q},40" for p in range(8) for q in range(8)]
    table.write_text("\n".join([f"p,q,{ends}", *sites]))
    flags = [*wide_flags, "--columns_table", str(table)]
    for _ in range(2):
        assert generate_3d_data.main([*flags, "--workers", "2"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    with VolumeFile(tmp_path / "wide.h5") as file:
        name, digest = file.config.to_dict()["table"]
        assert name == "square.csv" and len(digest) == 64
        volume = file.read_volume(1)
    lengths = np.linalg.norm(volume.paths[:, -1] - volume.paths[:, 0], axis=1)
    np.testing.assert_allclose(lengths, 5 * volume.path_spacing[:, 0], rtol=1e-4)
    assert generate_3d_data.main(wide_flags) == 2
    assert "--columns_table: ['square.csv'," in error_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--preset wide --gain_low 10", "--gain_low: is of preset reference"),
        ("--preset wide --NF_size 3", "--NF_size: is of preset reference"),
        ("--columns_table a.csv", "--columns_table: is for --preset wide"),
        ("--preset wide --columns_paths a.csv", "--columns_paths: are the paths of"),
        ("--preset wide --columns_table none.csv", "none.csv: cannot be read"),
        ("--config none.toml", "none.toml: cannot be read"),
        ("--preset wide --L_z 1", "--L_xy, --L_z (128, 128, 1): every value"),
    ],
)
def test_mistakes_about_presets_are_one_line(
    tmp_path: Path, flags: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate_3d_data.main(["--directory", str(tmp_path), *flags.split()]) == 2
    assert named in error_line(capsys.readouterr().err)
    assert names(tmp_path) == []


# --- Contents -------------------------------------------------------------------------------------


def test_each_sample_is_that_of_its_seed_and_index(whole: Path) -> None:
    config = asked(*TINY).config
    with VolumeFile(whole / "a.h5") as file:
        assert file.volume_set == VolumeSet(config, seed=0, num_samples=NUM_SAMPLES)
        for index in (0, 7, NUM_SAMPLES - 1):
            stored = file.read_volume(index)
            simulated = simulate_volume(config, sample_rng(0, index))
            np.testing.assert_array_equal(stored.image, simulated.image.astype(np.float16))
            np.testing.assert_array_equal(stored.instances, simulated.instances)
            assert stored.parameters == simulated.parameters
    assert [entry.name for entry in whole.iterdir()] == ["a.h5"]


def test_the_number_of_workers_changes_no_byte(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate_3d_data.main(command(tmp_path, "--workers", "3")[2:]) == 0
    assert f"{NUM_SAMPLES} volumes, seed 0" in capsys.readouterr().out
    assert (tmp_path / "a.h5").read_bytes() == (whole / "a.h5").read_bytes()


def work_with(
    monkeypatch: pytest.MonkeyPatch,
    submit: Callable[[int], Future[Any]],
    unpack: Callable[[int, Any], Any] = lambda index, row: row,
) -> None:
    """Have the script in this process use other workers, four samples under way."""

    def rows(_: object, volume_set: VolumeSet) -> AbstractContextManager[Any]:
        return nullcontext(generate_3d_data.rows_in_order(volume_set, 4, submit, unpack))

    monkeypatch.setattr(generate_3d_data, "simulated_rows", rows)


def test_a_bounded_number_of_samples_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, seen = 0, []
    task = generate_3d_data.task_of(asked(*TINY))

    def submit(index: int) -> Future[Any]:
        nonlocal under_way
        under_way += 1
        seen.append(under_way)
        return threads.submit(generate_3d_data.simulate_row, *task, index)

    def unpack(index: int, row: Any) -> Any:
        nonlocal under_way
        under_way -= 1
        return row

    with ThreadPoolExecutor(2) as threads:
        work_with(monkeypatch, submit, unpack)
        assert generate_3d_data.main(command(tmp_path, samples=12)[2:]) == 0
    assert len(seen) == 12 and max(seen) == 4


# --- Interruptions --------------------------------------------------------------------------------


def test_kills_at_random_moments_change_no_byte(tmp_path: Path, whole: Path) -> None:
    moments = random.Random(time.time_ns())
    for _ in range(3):
        process = start(tmp_path)
        wait_for_rows(process)
        time.sleep(moments.uniform(0, 0.4))
        workers = children(process.pid)
        process.kill()
        process.communicate()
        wait_for_the_end_of(workers)
        assert names(tmp_path) == [".a.partial.h5"]
    finished = run(tmp_path, samples=NUM_SAMPLES)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "a.h5").read_bytes() == (whole / "a.h5").read_bytes()
    assert names(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_is_one_line_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path)
    wait_for_rows(process)
    workers = children(process.pid)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert error_line(stderr) == "generate_3d_data.py: interrupted"
    assert names(tmp_path) == [] and len(workers) == 2
    assert not any(lives(worker) for worker in workers)


def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    first = start(tmp_path, samples=300)
    wait_for_rows(first)
    first.send_signal(signal.SIGSTOP)
    second = run(tmp_path, samples=300)
    first.send_signal(signal.SIGCONT)
    _, stderr = first.communicate(timeout=PATIENCE)
    assert second.returncode == 2
    assert "a.h5: another process is writing this file" in error_line(second.stderr)
    assert first.returncode == 0, stderr
    assert names(tmp_path) == ["a.h5"] and VolumeFile(tmp_path / "a.h5").complete


def test_the_signal_handlers_of_a_caller_stay_as_they_were(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "file").touch()
    assert generate_3d_data.main(["--directory", str(tmp_path / "file")]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_rows(process)
    workers = children(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "a worker died" in error_line(stderr)
    assert names(tmp_path) == []
    assert not any(lives(worker) for worker in workers)


@pytest.mark.parametrize("busy", ["simulating", "sending"])
def test_workers_killed_at_random_moments_never_hang_the_run(
    busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume_set = replace(asked(*TINY), num_samples=10**6)
    if busy == "sending":
        volume_set = replace(volume_set, config=VolumeConfig())
        monkeypatch.setattr(generate_3d_data, "simulate_row", lambda *_: bytes(5_000_000))
    moments = random.Random(time.time_ns())
    for _ in range(20):
        with pytest.raises(UserError, match="a worker died"):
            with generate_3d_data.local_rows(volume_set, 3) as rows:
                worker = moments.choice(multiprocessing.active_children())
                killing = Timer(moments.uniform(0, 0.1), os.kill, (worker.pid, signal.SIGKILL))
                killing.start()
                for _ in rows:
                    pass
        killing.join()
        assert multiprocessing.active_children() == []


def test_what_goes_through_the_shared_pipe_is_written_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    order = generate_3d_data.rows_in_order

    def rows(*args: Any) -> Any:
        *rest, unpack = args
        return order(*rest, lambda index, result: results.append(result) or unpack(index, result))

    monkeypatch.setattr(generate_3d_data, "rows_in_order", rows)
    with generate_3d_data.local_rows(asked("--L", "2", *TINY), 1) as made:
        assert len(list(made)) == 2
    assert len(results) == 2 and len(pickle.dumps(results)) < select.PIPE_BUF / 2


# --- Mistakes and bugs ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, TypeError, OSError])
def test_a_bug_of_ours_in_a_worker_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    parent, real = os.getpid(), simulate_volume

    def planted(*arguments: Any) -> Any:
        if os.getpid() == parent:  # where the kernels are compiled
            return real(*arguments)
        raise error("operands could not be broadcast together")

    monkeypatch.setattr("utils.simulation.simulate_volume", planted)
    with pytest.raises(error, match="^operands could not be broadcast together$") as raised:
        generate_3d_data.main(command(tmp_path, samples=2)[2:])
    assert "in planted" in "".join(traceback.format_exception(raised.value))
    assert names(tmp_path) == []


def test_too_little_memory_is_one_line_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(_: object) -> Future[Any]:
        failed: Future[Any] = Future()
        failed.set_exception(MemoryError())
        return failed

    work_with(monkeypatch, run_out)
    assert generate_3d_data.main(["--directory", str(tmp_path)]) == 2
    assert "out of memory: fewer --workers" in error_line(capsys.readouterr().err)
    assert names(tmp_path) == []


def test_an_impossible_request_says_what_was_tried_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--min_columns", "3000", "--max_tries", "3"]
    assert generate_3d_data.main(command(tmp_path, *flags, samples=2)[2:]) == 2
    line = error_line(capsys.readouterr().err)
    assert "3000 columns" in line and "3 tries" in line and "sample 0 of seed 0" in line
    assert list(tmp_path.iterdir()) == []


# --- Disks ----------------------------------------------------------------------------------------


def test_too_small_a_disk_is_seen_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")(10**10, 0, 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert generate_3d_data.main(["--directory", str(tmp_path)]) == 2
    assert "about 2.4 GB are needed, 1.0 GB are free" in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    limit = 1_000_000
    made = subprocess.run(
        command(tmp_path, samples=4),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert made.returncode == 2
    assert "a.h5: cannot be written (File too large)" in error_line(made.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_directory_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert generate_3d_data.main(["--directory", str(tmp_path / "file" / "vol_data")]) == 2
    assert "file" in error_line(capsys.readouterr().err)


# --- Existing files -------------------------------------------------------------------------------


def test_a_complete_file_is_left_alone(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes((whole / "a.h5").read_bytes())
    before = identity(path)
    assert generate_3d_data.main(command(tmp_path)[2:]) == 0
    assert "is complete and has these parameters" in capsys.readouterr().out
    assert identity(path) == before


def test_a_complete_file_with_other_parameters_is_refused(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = identity(whole / "a.h5")
    assert generate_3d_data.main(command(whole, "--random_state", "5", "--gain_low", "11")[2:]) == 2
    line = error_line(capsys.readouterr().err)
    assert "--random_state: 0 in the file, 5 asked for" in line
    assert "--gain_low, --gain_high: [10, 29] in the file, [11, 29] asked for" in line
    assert "--overwrite" in line and "--L:" not in line
    assert identity(whole / "a.h5") == before


def test_a_complete_file_of_another_version_is_left_alone_and_named(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes((whole / "a.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["program_version"] = "0.9.0"
    assert generate_3d_data.main(command(tmp_path)[2:]) == 0
    shown = capsys.readouterr()
    assert "nothing to do" in shown.out
    assert "version 0.9.0" in shown.err and "--overwrite" in shown.err


def test_a_directory_in_the_way_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in ([], ["--overwrite"]):
        assert generate_3d_data.main(["--directory", str(tmp_path), "--filename", "", *flags]) == 2
        line = error_line(capsys.readouterr().err)
        assert "is a directory: name a file with --filename" in line
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.h5").write_text("my thesis")
    assert generate_3d_data.main(command(tmp_path)[2:]) == 2
    assert "--overwrite replaces it" in error_line(capsys.readouterr().err)
    assert (tmp_path / "a.h5").read_text() == "my thesis"


def test_overwriting_keeps_the_old_file_until_the_new_one_is_whole(
    tmp_path: Path, whole: Path
) -> None:
    (tmp_path / "a.h5").write_text("the old one")
    process = start(tmp_path, "--overwrite")
    wait_for_rows(process)
    assert (tmp_path / "a.h5").read_text() == "the old one"
    process.kill()
    process.communicate()
    assert (tmp_path / "a.h5").read_text() == "the old one"
    finished = run(tmp_path, "--overwrite", samples=NUM_SAMPLES)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "a.h5").read_bytes() == (whole / "a.h5").read_bytes()


# --- Dask -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> LocalCluster:
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=0,  # the workers are threads of this process, which holds more than theirs
    ) as cluster:
        yield cluster


def test_dask_changes_no_byte(tmp_path: Path, whole: Path, cluster: LocalCluster) -> None:
    made = run(tmp_path, "--dask-scheduler", cluster.scheduler_address, samples=NUM_SAMPLES)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "a.h5").read_bytes() == (whole / "a.h5").read_bytes()


def test_an_impossible_request_to_dask_is_one_line(tmp_path: Path, cluster: LocalCluster) -> None:
    flags = ["--min_columns", "3000", "--max_tries", "3"]
    made = run(tmp_path, "--dask-scheduler", cluster.scheduler_address, *flags)
    assert made.returncode == 2
    assert "3000 columns" in error_line(made.stderr)


def test_workers_without_this_checkout_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(_: int) -> Future[Any]:
        failed: Future[Any] = Future()
        failed.set_exception(ModuleNotFoundError("No module named 'utils'", name="utils"))
        return failed

    work_with(monkeypatch, lacking)
    assert generate_3d_data.main(command(tmp_path, samples=4)[2:]) == 2
    line = error_line(capsys.readouterr().err)
    assert "the workers find no utils" in line and str(SCRIPT.parent) in line
    assert names(tmp_path) == []


def test_no_scheduler_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_3d_data, "DASK_TIMEOUT", "0.3s")
    flags = ["--dask-scheduler", "tcp://127.0.0.1:1"]
    assert generate_3d_data.main(command(tmp_path, *flags)[2:]) == 2
    assert "tcp://127.0.0.1:1: no scheduler answers" in error_line(capsys.readouterr().err)


def test_missing_dask_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    flags = ["--dask-scheduler", "tcp://127.0.0.1:1"]
    assert generate_3d_data.main(command(tmp_path, *flags)[2:]) == 2
    assert "pip install -r requirements-dask.txt" in error_line(capsys.readouterr().err)
