"""Stacks in blocks: the same columns as in the whole, and none of them cut."""

import math
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

import find_columns
from tests.columns.test_finding import write
from tests.columns.test_instances import STEPS, rods
from utils.columns import blocks, finding
from utils.columns.blocks import Room, slabs
from utils.columns.finding import columns_of
from utils.errors import UserError
from utils.prediction.memory import OVERHEAD, Memory
from utils.stacks import open_stack


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Room for blocks of 16^3 with a margin of 8, which is too little for rods 20 long."""
    monkeypatch.setattr(blocks, "MARGIN", 8)
    monkeypatch.setattr(blocks, "VOXELS", 0)
    return Room(tmp_path, 48**3)


def test_cores_fill_the_stack_once(small):
    count = np.zeros((50, 16, 33), int)
    cores = list(small.cores(count.shape))
    for core in cores:
        count[core] += 1
    assert (count == 1).all() and len(cores) == 4 * 1 * 3
    assert list(Room().cores((5, 6, 7))) == [(slice(0, 5), slice(0, 6), slice(0, 7))]


@pytest.mark.parametrize("radius", [3.2, 5.0])
def test_blocks_find_what_the_whole_shows(small, radius):
    height, _ = rods(radius=radius)
    whole, parts = columns_of(height, STEPS), columns_of(height, STEPS, room=small)
    assert isinstance(parts.labels, np.memmap) and not any("cut" in note for note in parts.notes)
    both = np.unique(np.stack([whole.labels.ravel(), parts.labels.ravel()]), axis=1)
    if radius < 4:  # rods apart: the very same voxels
        assert both.shape[1] == 26
    assert parts.labels.max() == 25 == len(np.unique(parts.labels)) - 1
    np.testing.assert_allclose(
        np.sort(parts.measured.centre, axis=0), np.sort(whole.measured.centre, axis=0), atol=0.5
    )
    np.testing.assert_allclose(parts.measured.length, 20, rtol=0.1)


def test_a_column_too_long_for_any_block_is_told(small):
    height = np.zeros((8, 8, 200), np.float32)
    height[2:6, 2:6] = 0.9
    height[3:5, 3:5] = 1.0
    found = columns_of(height, STEPS, room=Room(small.folder, 8 * 8 * 60))
    assert "may be cut: too long for the memory; raise --memory" in found.notes[-1]
    assert "may be cut" not in columns_of(height, STEPS).notes[-1]


def test_arrays_of_a_disk_that_is_too_small_are_refused(small, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(blocks.shutil, "disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(UserError, match="of disk, and 0.0 GB are free"):
        small.array((10, 10, 10), np.int32)


@pytest.mark.parametrize(
    ("voxels", "starts"), [(0, [0, 16, 32]), (6 * 20, [0, 20]), (6 * 37, [0]), (2**24, [0])]
)
def test_slabs_are_the_whole(monkeypatch, voxels, starts):
    monkeypatch.setattr(blocks, "VOXELS", voxels)
    volume = np.arange(2 * 3 * 37).reshape(2, 3, 37)
    parts = list(slabs(volume))
    assert [start for start, _ in parts] == starts
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in parts], axis=2), volume)


def test_the_script_works_off_a_stack_in_blocks(small, tmp_path, monkeypatch):
    height, _ = rods()
    source, tables = write(tmp_path / "lobe.tif", height), []
    flags = ["--input", str(source), "--measure", "0", "--no-preview", "--overwrite"]
    for room in (Room(), small):
        monkeypatch.setattr(finding, "make_room", lambda *args, room=room: room)
        assert find_columns.main(flags) == 0
        table = pd.read_csv(tmp_path / "lobe_columns.csv")
        tables.append(table.sort_values(["vox_x", "vox_y"]).reset_index())
    for name in ("vox_z", "length", "n_voxels", "score", "mean_0", "peak_0"):
        np.testing.assert_allclose(tables[1][name], tables[0][name], rtol=1e-5)


def test_a_stack_is_worked_off_on_the_disk_where_it_does_not_fit(tmp_path):
    with open_stack(write(tmp_path / "lobe.npy", rods()[0])) as stack:
        needed = math.prod(stack.shape) * (4 + 4 + finding.BLOCK_BYTES)
        for spare, folder in ((0, None), (-1, tmp_path)):
            memory = Memory(0, OVERHEAD + needed + spare)
            assert finding.make_room(stack, 0, memory, tmp_path).folder == folder
        with pytest.raises(UserError, match="--memory, or take a part with --crop"):
            finding.make_room(stack, 0, Memory(0, OVERHEAD), tmp_path)
