"""Tiny volumes and files that several tests share."""

from __future__ import annotations

import gc
import logging
import resource
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.process_state import differences, left_running, process_state, running
from utils.figures import canvas
from utils.simulation.sheet import SheetConfig
from utils.simulation.volume import (
    SimulatedVolume,
    VolumeConfig,
    VolumeParameters,
    WideConfig,
    sample_rng,
    simulate_volume,
)
from utils.storage import VolumeSet, encode_row, write_simulated_file
from utils.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]

# The same examples in each run, however slow or busy the machine.
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

# A loader that the garbage collector finds has lost the pipes to its processes: it waits so many
# seconds for each of them, and then ends it.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1


def pytest_collection_finish() -> None:
    """Take what the imports have left out of each later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Begin with the same random numbers; fail a test that leaves the process changed."""
    torch.manual_seed(0)
    before, ran = process_state(), running()
    yield
    left = [*differences(before, process_state()), *left_running(ran)]
    assert not left, "the test leaves behind: " + "; ".join(left)


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Take back what a script that ran in this process has set for its log."""
    logger = logging.getLogger("utils.training")
    before = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the rendering of pictures, which takes longer than all else of a tiny run."""

    def touch(figure: object, path: Path, dpi: int = 110) -> Path:
        path.write_bytes(b"picture")
        return path

    monkeypatch.setattr(canvas, "save_figure", touch)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of trainings alone."""
    monkeypatch.setattr(Experiment, "draw", lambda self, history, examples: None)


def fake_parameters(rng: np.random.Generator) -> VolumeParameters:
    """Return parameters of the right types, whatever the fields are."""
    values = {}
    for name, hint in typing.get_type_hints(VolumeParameters).items():
        items = typing.get_args(hint)
        if hint is int:
            values[name] = int(rng.integers(1, 100))
        else:
            values[name] = tuple(rng.random(len(items)).tolist()) if items else float(rng.random())
    return VolumeParameters(**values)


def fake_volume(
    rng: np.random.Generator, shape: tuple[int, int, int] = (32, 32, 32), n: int = 7
) -> SimulatedVolume:
    """Return a volume in the form of a simulated one: noise and upright boxes as columns."""
    instances = np.zeros(shape, np.uint16)
    for column in range(n):
        corner = [int(rng.integers(0, max(1, edge - 4))) for edge in shape]
        box = tuple(slice(a, a + 4 + 6 * axis) for axis, a in enumerate(corner))
        instances[box] = column + 1
    image = rng.gamma(2.0, 1.5, shape).astype(np.float32) + 8 * (instances > 0)
    pairs = np.array([(k, k + 1) for k in range(n - 1)], np.int32).reshape(-1, 2)
    frames = {
        name: rng.normal(size=(n, 3)).astype(np.float32)
        for name in ("entry_points", "e_r", "e_theta", "e_phi")
    }
    return SimulatedVolume(
        image=image.astype(np.float32),
        instances=instances,
        column_type=rng.integers(0, 4, n).astype(np.uint8),
        control_points=rng.normal(size=(4, n, 3)).astype(np.float32),
        lattice_coordinates=rng.integers(0, 20, (n, 3)).astype(np.int32),
        lattice_neighbours=pairs,
        parameters=fake_parameters(rng),
        **frames,
    )


def write_fake_file(
    path: Path, *, seed: int = 0, num_samples: int = 4, shape: tuple[int, int, int] = (32, 32, 32)
) -> Path:
    """Write a complete file of fake volumes; return its path."""
    rngs = (sample_rng(seed, index) for index in range(num_samples))
    rows = (encode_row(fake_volume(rng, shape)) for rng in rngs)
    write_simulated_file(path, VolumeSet(VolumeConfig(shape=shape), seed, num_samples), rows)
    return path


def run_and_time(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command in the checkout; return how it ended and the seconds of processor time it took.

    Unlike the time on the clock these do not grow when the machine is busy.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="session")
def tiny_config() -> VolumeConfig:
    """A configuration with few, large columns in few voxels, quick to simulate."""
    return VolumeConfig(shape=(32, 32, 32), lattice_intervals=(4, 5), min_columns=5)


@pytest.fixture(scope="session")
def tiny_wide() -> WideConfig:
    """The same of preset wide."""
    sheet = SheetConfig(spacing=(5.0, 7.0), min_columns=4)
    return WideConfig(shape=(32, 32, 32), sheet=sheet, min_visibility=0.3)


@pytest.fixture(scope="session")
def small_volume() -> SimulatedVolume:
    """A simulated volume of three different edges with all column types; not to be changed."""
    config = VolumeConfig(shape=(32, 28, 24), lattice_intervals=(4, 6), min_columns=20)
    return simulate_volume(config, sample_rng(0, 1))


@pytest.fixture(scope="session")
def fake_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete file of four fake volumes of 32 voxels an edge; not to be changed."""
    return write_fake_file(tmp_path_factory.mktemp("fake") / "fake.h5")


@pytest.fixture(scope="session")
def fake_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two complete files, of three and two fake volumes; not to be changed."""
    directory = tmp_path_factory.mktemp("fakes")
    return [
        write_fake_file(directory / "a.h5", seed=1, num_samples=3),
        write_fake_file(directory / "b.h5", seed=2, num_samples=2),
    ]
