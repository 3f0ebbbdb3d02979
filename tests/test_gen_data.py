"""gen_data.sh: the five calls, the environment it uses, and where it stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.storage import VolumeFile

SCRIPT = Path(__file__).parents[1] / "gen_data.sh"
CALLS = [
    ("vol_train_set1.h5", 512, 0),
    ("vol_train_set2.h5", 512, 512),
    ("vol_train_set3.h5", 512, 1024),
    ("vol_train_set4.h5", 512, 1536),
    ("vol_val_set.h5", 64, 9999),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with a blank in its name that holds the script alone."""
    directory = tmp_path / "check out"
    directory.mkdir()
    shutil.copy(SCRIPT, directory)
    return directory


def make_environment(
    directory: Path, log: Path, *, fails_at: str = "never", status: int = 0
) -> Path:
    """Make an environment whose python only notes how it was called."""
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        f'{{ echo {directory.name}; printf "%s\\n" "$@"; echo end; }} >> "{log}"\n'
        f'case "$*" in *{fails_at}*) exit {status} ;; esac\n'
    )
    python.chmod(0o755)
    return directory


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run from another directory, with no environment active but the ones given."""
    rest = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    return subprocess.run(
        [str(script), *arguments],
        env={**rest, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=240,
    )


def calls(log: Path) -> list[list[str]]:
    return [call.split("\n") for call in log.read_text().split("\nend\n")[:-1]]


def test_it_makes_five_files_of_the_right_sizes_and_seeds(checkout: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = make_environment(tmp_path / "active", log)
    assert run(checkout / "gen_data.sh", VIRTUAL_ENV=str(environment)).returncode == 0
    place = ["active", f"{checkout}/generate_3d_data.py", "--directory", f"{checkout}/vol_data"]
    assert calls(log) == [
        [*place, "--filename", name, "--L", str(samples), "--random_state", str(seed)]
        for name, samples, seed in CALLS
    ]


def test_arguments_go_on_to_each_call(checkout: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "active", tmp_path / "log")
    run(checkout / "gen_data.sh", "--directory", "my data", VIRTUAL_ENV=str(environment))
    assert all(call[-2:] == ["--directory", "my data"] for call in calls(tmp_path / "log"))


@pytest.mark.parametrize(
    ("active", "used"),
    [
        (["VIRTUAL_ENV", "CONDA_PREFIX"], "VIRTUAL_ENV"),
        (["CONDA_PREFIX"], "CONDA_PREFIX"),
        ([], ".venv"),
    ],
)
def test_the_active_environment_goes_before_the_checkouts(
    checkout: Path, tmp_path: Path, active: list[str], used: str
) -> None:
    make_environment(checkout / ".venv", tmp_path / "log")
    environments = {n: str(make_environment(tmp_path / n, tmp_path / "log")) for n in active}
    assert run(checkout / "gen_data.sh", **environments).returncode == 0
    assert {call[0] for call in calls(tmp_path / "log")} == {used}


def test_without_an_environment_it_says_what_to_do(checkout: Path) -> None:
    stopped = run(checkout / "gen_data.sh")
    assert stopped.returncode == 2
    assert stopped.stderr.count("\n") == 1 and "requirements.txt" in stopped.stderr


@pytest.mark.parametrize("status", [1, 2, 130])
def test_it_stops_at_the_first_failure_with_its_status(
    checkout: Path, tmp_path: Path, status: int
) -> None:
    log = tmp_path / "log"
    environment = make_environment(tmp_path / "e", log, fails_at="train_set2", status=status)
    assert run(checkout / "gen_data.sh", VIRTUAL_ENV=str(environment)).returncode == status
    assert len(calls(log)) == 2


def test_the_real_files_are_made_elsewhere(tmp_path: Path) -> None:
    flags = "--L 1 --L_xy 24 --L_z 24 --lattice_low 4 --lattice_high 4 --min_columns 5 --NF_size 2"
    made = run(
        SCRIPT, *flags.split(), "--directory", str(tmp_path), VIRTUAL_ENV=str(Path(sys.prefix))
    )
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name, _, _ in CALLS]
    for name, _, seed in CALLS:
        with VolumeFile(tmp_path / name) as file:
            assert (len(file), file.seed, file.shape) == (1, seed, (24, 24, 24))
