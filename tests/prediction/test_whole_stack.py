import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer, measure_limits
from utils.prediction.sliding_window import Windows, predict_volume
from utils.prediction.thresholds import best_threshold, to_levels
from utils.prediction.whole_stack import StackPrediction, write_prediction
from utils.stacks import open_stack

NORMALIZER = PercentileNormalizer()


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


def run(model, stack, shape, edge, first=0, passed=lambda count: None, **options):
    windows = Windows(tuple(min(edge, n) for n in shape), **options)
    percentiles = measure_limits(stack, NORMALIZER)
    prediction = StackPrediction(model, stack, NORMALIZER, percentiles, shape, windows)
    pieces = [(start, slab.copy()) for start, slab in prediction.slabs(first, passed)]
    assert pieces[0][0] == first
    return np.concatenate([slab for _, slab in pieces], axis=-1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_slab_by_slab_is_the_volume_at_once(open_array, dtype, overlap):
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=2, start_channels=2))
    image = noise((21, 18, 33), dtype)
    whole = predict_volume(model, image, NORMALIZER, window=16, overlap=overlap, batch_size=3)
    with open_array(image) as stack:
        options = {"overlap": overlap, "batch_size": 2}
        np.testing.assert_allclose(run(model, stack, image.shape, 16, **options), whole, atol=2e-5)
        for first in (1, 15, 16, 17, 32):
            got = run(model, stack, image.shape, 16, first, **options)
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
        "tta": data.draw(st.sampled_from([(), ("flips",)])),
    }
    with open_stack(folder / "a.npy") as stack:
        if stack.shape != shape:  # one plane only is an image
            assert 1 in shape
            image = image.reshape(stack.shape)
        edge, passed = data.draw(st.integers(1, 12)), []
        first = data.draw(st.integers(0, stack.shape[-1] - 1))
        got = run(Identity(), stack, stack.shape, edge, first, passed.append, **options)
    edges = tuple(min(edge, n) for n in stack.shape)
    assert sum(passed) == Windows(edges, options["overlap"]).count(stack.shape)
    expected = NORMALIZER.apply(image, *NORMALIZER.fit(image))[..., first:]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 0.5])
@pytest.mark.parametrize("first", [0, 7])
def test_resampled_there_and_back(open_array, factor, first):
    grid = np.meshgrid(*[np.linspace(0, 1, n) for n in (24, 20, 30)], indexing="ij")
    image = (100 * sum(grid)).astype(np.float32)
    with open_array(image) as stack:
        shape = tuple(int(n * factor) for n in image.shape)
        got = run(Identity(), stack, shape, 12, first)
    expected = NORMALIZER.apply(image, *NORMALIZER.fit(image))[..., first:]
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(got[inner], expected[inner], atol=0.03)  # rounded where clipped
    assert got.shape == expected.shape


def test_voxels_that_are_not_finite_are_background(open_array):
    image = np.random.default_rng(0).random((9, 8, 12), np.float32)
    bad = np.zeros(image.shape, bool)
    bad[3, 3, 7] = bad[:, :, 11] = True
    image[bad] = np.nan
    image[3, 3, 7] = np.inf
    with open_array(image) as stack:
        limits = measure_limits(stack, NORMALIZER)
        assert limits.missing == bad.sum()
        expected = NORMALIZER.fit(image[~bad])
        np.testing.assert_allclose((limits.low, limits.high), expected)
        for shape in (image.shape, (18, 16, 24)):
            found = run(Identity(), stack, shape, 8)
            assert np.isfinite(found).all() and not found[bad].any()
            assert (found[~bad] > 0).mean() > 0.9


def test_empty_outputs(open_array, tmp_path):
    outputs = {"mask": tmp_path / "m.tif", "probabilities": tmp_path / "p.h5"}
    with open_array(np.zeros((5, 6, 7), np.uint8), (2, 1, 1)) as stack:
        windows = Windows((4, 4, 4))
        limits = measure_limits(stack, NORMALIZER)
        empty = StackPrediction(Identity(), stack, NORMALIZER, limits, stack.shape, windows)
        write_prediction(empty, outputs, 0.5, made_from={})
    for path, dtype in zip(outputs.values(), (np.uint8, np.float32), strict=True):
        with open_stack(path) as stack:
            assert (stack.shape, stack.dtype, stack.spacing) == ((5, 6, 7), dtype, (1, 1, 2))
            assert not stack.read().any()


@pytest.mark.parametrize("kept", [("mask",), ("mask", "probabilities")])
def test_the_best_threshold_is_that_of_the_whole_map(open_array, tmp_path, kept):
    outputs = {name: tmp_path / f"{name}.npy" for name in kept}
    image = noise((11, 12, 13))
    with open_array(image) as stack:
        limits = measure_limits(stack, NORMALIZER)
        windows = Windows((6, 6, 6))
        ready = StackPrediction(Identity(), stack, NORMALIZER, limits, stack.shape, windows)
        found = np.concatenate([slab.copy() for _, slab in ready.slabs()], axis=-1)
        threshold, sections = write_prediction(ready, outputs, None, made_from={}, preview=True)
    assert threshold == best_threshold([to_levels(found)]) < 0.4
    mask = np.load(outputs["mask"]).T
    np.testing.assert_array_equal(mask, found >= threshold)
    assert sections.marked
