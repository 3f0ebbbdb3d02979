import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.prediction.out_of_core import (
    available_memory,
    estimate_memory,
    make_plan,
    measure_percentiles,
    open_staging,
    predict_stack,
    values_alive,
    write_empty,
)
from utils.prediction.sliding_window import Windows, predict_volume
from utils.stacks import StackLayout, open_stack, write_stack

NORMALIZER = PercentileNormalizer()
ROOT = Path(__file__).resolve().parents[2]


class Identity(nn.Module):
    """Answers with its input: logits whose probabilities are the normalised intensities."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.logit(x.clamp(1e-6, 1 - 1e-6))


@pytest.fixture
def open_array(tmp_path):
    def run(array, voxel_size=None):
        np.save(tmp_path / "a.npy", array.T)
        return open_stack(tmp_path / "a.npy", voxel_size=voxel_size)

    return run


def noise(shape, dtype=np.float32):
    return np.random.default_rng(0).gamma(2.0, 20.0, shape).astype(dtype)


def plan_for(stack, shape, edge, tmp_path, **options):
    windows = Windows((edge,) * len(shape), **options)
    outputs = {"mask": tmp_path / "mask.tif"}
    return make_plan(stack, shape, windows, values=28, outputs=outputs, present=10**8, limit=10**12)


def run(model, stack, plan, first=0, **options):
    percentiles = measure_percentiles(stack, NORMALIZER)
    slabs = predict_stack(model, stack, NORMALIZER, percentiles, plan, first=first, **options)
    pieces = [(start, slab.copy()) for start, slab in slabs]
    assert pieces[0][0] == first
    return np.concatenate([slab for _, slab in pieces], axis=-1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_slab_by_slab_is_the_volume_at_once(open_array, tmp_path, dtype, overlap):
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=2, start_channels=2))
    image = noise((21, 18, 33), dtype)
    whole = predict_volume(model, image, NORMALIZER, window=16, overlap=overlap, batch_size=3)
    with open_array(image) as stack:
        plan = plan_for(stack, image.shape, 16, tmp_path, overlap=overlap, batch_size=2)
        np.testing.assert_allclose(run(model, stack, plan), whole, atol=2e-5)
        for first in (1, 15, 16, 17, 32):
            got = run(model, stack, plan, first)
            np.testing.assert_allclose(got, whole[..., first:], atol=2e-5)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_the_identity_network_returns_its_input(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=3).map(tuple))
    image = noise(shape)
    folder = tmp_path_factory.mktemp("identity")
    np.save(folder / "a.npy", image.T)
    options = {
        "overlap": data.draw(st.floats(0, 0.9)),
        "batch_size": data.draw(st.integers(1, 5)),
        "flips": data.draw(st.booleans()),
    }
    with open_stack(folder / "a.npy") as stack:
        if stack.shape != shape:  # one plane only is an image
            assert 1 in shape
            image = image.reshape(stack.shape)
        plan = plan_for(stack, stack.shape, data.draw(st.integers(1, 12)), folder, **options)
        first = data.draw(st.integers(0, stack.shape[-1] - 1))
        passed = []
        got = run(Identity(), stack, plan, first, passed=passed.append)
    assert sum(passed) == plan.windows.count(plan.shape)
    expected = NORMALIZER.apply(image, *NORMALIZER.fit(image))[..., first:]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 0.5])
@pytest.mark.parametrize("first", [0, 7])
def test_resampled_there_and_back(open_array, tmp_path, factor, first):
    grid = np.meshgrid(*[np.linspace(0, 1, n) for n in (24, 20, 30)], indexing="ij")
    image = (100 * sum(grid)).astype(np.float32)
    with open_array(image) as stack:
        shape = tuple(int(n * factor) for n in image.shape)
        plan = plan_for(stack, shape, 12, tmp_path)
        got = run(Identity(), stack, plan, first)
    expected = NORMALIZER.apply(image, *NORMALIZER.fit(image))[..., first:]
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(got[inner], expected[inner], atol=0.03)  # rounded where clipped
    assert got.shape == expected.shape


def test_nan_is_refused(open_array):
    image = noise((8, 8, 8))
    image[3, 3, 7] = np.nan
    with open_array(image) as stack, pytest.raises(UserError, match=r"a\.npy: .*not finite"):
        measure_percentiles(stack, NORMALIZER)


def test_plans_fit_into_the_memory_allowed(open_array, tmp_path):
    outputs = {"mask": tmp_path / "mask.tif"}
    with open_array(np.zeros((256, 256, 80), np.uint16)) as stack:
        windows = Windows((64, 64, 64), batch_size=4)

        def plan(limit, **options):
            return make_plan(
                stack,
                stack.shape,
                windows,
                values=80,
                outputs=outputs,
                present=10**8,
                limit=limit,
                **options,
            )

        large = plan(10**12)
        assert large.windows == windows
        assert large.memory == 10**8 + estimate_memory(stack, stack.shape, windows, 80, outputs)
        smaller = plan(large.memory - 10**7)
        assert smaller.windows.batch_size < 4 and smaller.windows.edges == windows.edges
        fixed = plan(large.memory - 10**7, fixed_batch=True)
        assert fixed.windows.batch_size == 4 and fixed.windows.edges == (64, 64, 32)
        assert fixed.memory <= large.memory - 10**7
        with pytest.raises(UserError, match=r"GB are allowed; raise --memory"):
            plan(10**6)
        heavy = {"mask": tmp_path / "mask.tif", "probabilities": tmp_path / "map.nrrd"}
        long = replace(stack, shape=(256, 256, 4000))
        needs = estimate_memory(long, long.shape, windows, 80, heavy)
        assert needs >= 2 * 4 * np.prod(long.shape)
        assert needs > 2 * estimate_memory(long, long.shape, windows, 80, outputs)
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_work_that_was_interrupted_is_picked_up(tmp_path):
    output = tmp_path / "mask.tif"
    arguments = (output, (4, 3, 6), ("mask", "probabilities"))
    values = np.random.default_rng(0).random((4, 3, 6)).astype(np.float32)
    with pytest.raises(KeyboardInterrupt), open_staging(*arguments, {"seed": 1}) as staging:
        assert (staging.resumed, staging.done) == (False, 0)
        staging.write(0, values[..., :4], 0.5)
        raise KeyboardInterrupt
    with open_staging(*arguments, {"seed": 1}) as staging:
        assert (staging.resumed, staging.done) == (True, 4)
        with pytest.raises(UserError, match="another process"), open_staging(*arguments, {}):
            pass
        staging.write(4, values[..., 4:], 0.5)
        assert staging.done == 6
        got = np.concatenate(list(staging.slabs("probabilities")), axis=-1)
        np.testing.assert_array_equal(got, values)
        mask = np.concatenate(list(staging.slabs("mask")), axis=-1)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, values >= 0.5)
    assert not list(tmp_path.iterdir())


def test_another_recipe_starts_anew(tmp_path):
    output = tmp_path / "mask.tif"
    with pytest.raises(RuntimeError), open_staging(output, (2, 2), ("mask",), {"a": 1}) as staging:
        staging.write(0, np.ones((2, 1), np.float32), 0.5)
        raise RuntimeError
    with open_staging(output, (2, 2), ("mask",), {"a": 2}) as staging:
        assert (staging.resumed, staging.done) == (False, 0)
        assert not next(staging.slabs("mask")).any()
        assert json.loads((staging.folder / "recipe.json").read_text())["a"] == 2


def test_a_disk_without_room_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"mask.tif: needs up to .* GB of disk"),
        open_staging(tmp_path / "mask.tif", (10**5,) * 3, ("mask",), {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_empty_outputs(open_array, tmp_path):
    outputs = {"mask": tmp_path / "m.tif", "probabilities": tmp_path / "p.h5"}
    with open_array(np.zeros((5, 6, 7), np.uint8), (2, 1, 1)) as stack:
        write_empty(stack, outputs)
    for path, dtype in zip(outputs.values(), (np.uint8, np.float32), strict=True):
        with open_stack(path) as stack:
            assert (stack.shape, stack.dtype, stack.spacing) == ((5, 6, 7), dtype, (1, 1, 2))
            assert not stack.read().any()


def test_networks_on_blocks_of_voxels_hold_less():
    full = values_alive(8, stem_stride=1, dims=3, stacks=1)
    assert values_alive(16, stem_stride=1, dims=3, stacks=1) == 2 * full
    assert values_alive(8, stem_stride=2, dims=3, stacks=1) < full / 4
    assert values_alive(8, stem_stride=1, dims=3, stacks=2) > full


MEASURED = """
import sys
from pathlib import Path
import numpy as np, torch
from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.stacks import open_stack
from utils.prediction.out_of_core import (
    make_plan, measure_percentiles, predict_files, resident_memory, values_alive)
from utils.prediction.sliding_window import Windows

torch.set_num_threads(1)
model = build_model(ModelConfig(depth=1, start_channels=1, conv_kernel_size=1)).eval()
source, *targets = map(Path, sys.argv[1:])
outputs = dict(zip(("mask", "probabilities"), targets))
with open_stack(source) as stack:
    shape = tuple(int(n * SCALE) for n in stack.shape)
    values = values_alive(1, stem_stride=1, dims=3, stacks=1)
    plan = make_plan(stack, shape, Windows((96, 96, 48)), values=values, outputs=outputs,
                     present=resident_memory(), limit=10**12)
    percentiles = measure_percentiles(stack, PercentileNormalizer())
    predict_files(model, stack, PercentileNormalizer(), percentiles, plan, outputs,
                  threshold=0.5, recipe={})
status = Path("/proc/self/status").read_text().split()
print(plan.memory, 1024 * int(status[status.index("VmHWM:") + 1]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts the peak")
@pytest.mark.parametrize(
    ("source", "target", "scale"),
    [("a.tif", "m.tif", 1), ("a.nrrd", "m.nrrd", 1), ("a.nii.gz", "m.ome.zarr", 0.5)],
)
def test_the_estimated_memory_is_kept_and_close(tmp_path, source, target, scale):
    image = np.random.default_rng(0).integers(0, 4000, (384, 352, 96), np.uint16)
    write_stack(tmp_path / source, [image], StackLayout(image.shape, image.dtype))
    code = MEASURED.replace("SCALE", str(scale))
    targets = [str(tmp_path / name) for name in (target, f"map_{target}")]
    command = [sys.executable, "-c", code, str(tmp_path / source), *targets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    estimate, peak = map(int, ended.stdout.split())
    assert peak <= estimate <= 1.25 * peak, (estimate / 1e6, peak / 1e6)
