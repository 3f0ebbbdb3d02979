import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.prediction.sliding_window import (
    LEAST_WEIGHT,
    View,
    Windows,
    _bell,
    averaged_views,
    predict_slabs,
    predict_volume,
)

NORMALIZER = PercentileNormalizer()


class Pointwise(nn.Module):
    """Logit = weight x value + bias: each voxel's answer is known, whatever its window."""

    def __init__(self, stacked=False):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(4.0))
        self.stacked = stacked
        self.windows = []

    def forward(self, x):
        self.windows.append(tuple(x.shape))
        assert not self.training and torch.is_inference_mode_enabled()
        logits = self.weight * (x - 0.5)
        return [torch.zeros_like(logits), logits] if self.stacked else logits


def volume(*shape):
    return np.random.default_rng(0).gamma(2.0, size=shape).astype(np.float32)


def expected(image):
    low, high = np.percentile(image, (1, 99))
    return 1 / (1 + np.exp(-4 * (np.clip((image - low) / (high - low), 0, 1) - 0.5)))


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((16, 16, 16), 8),
        ((9, 17, 23), 8),
        ((5, 12, 3), 8),
        ((4, 4, 4), 64),
        ((20, 11, 7), (8, 4, 16)),
        ((1, 1, 9), 4),
        ((30, 21), 8),
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_every_voxel_is_answered(shape, window, stacked):
    image = volume(*shape)
    got = predict_volume(Pointwise(stacked), image, NORMALIZER, window=window)
    assert got.shape == shape and got.dtype == np.float32
    np.testing.assert_allclose(got, expected(image), atol=2e-5)


@pytest.mark.parametrize(("overlap", "batch_size"), [(0.0, 2), (0.25, 3), (0.75, 4)])
def test_overlap_and_batches_do_not_change_what_every_window_agrees_on(overlap, batch_size):
    image = volume(13, 16, 10)
    model = Pointwise()
    got = predict_volume(model, image, NORMALIZER, window=8, overlap=overlap, batch_size=batch_size)
    np.testing.assert_allclose(got, expected(image), atol=2e-5)
    assert max(shape[0] for shape in model.windows) == batch_size


def batches(shape, **options):
    """Return the lengths of the batches of windows of 8 voxels without overlap."""
    model = Pointwise()
    predict_volume(model, volume(*shape), NORMALIZER, window=8, overlap=0.0, **options)
    return [found[0] for found in model.windows]


def test_windows_are_spread_evenly_over_batches():
    assert batches((24, 24, 8)) == [3, 3, 3]
    assert batches((40, 8, 16)) == [3, 2, 3, 2]
    assert batches((24, 24, 8), batch_size=9) == [9]


def test_a_lone_window_has_a_copy_for_company_where_that_is_quicker(monkeypatch):
    assert batches((8, 8, 16)) == [2, 2]
    assert batches((24, 8, 8), batch_size=2) == [2, 2]
    assert batches((8, 8, 8), precision="bf16") == [1]
    assert batches((8, 8)) == [1]  # an image
    assert batches((8, 8, 1)) == [1]  # a plane
    monkeypatch.setattr("utils.prediction.sliding_window.SMALL_AREA", 8 * 8 - 1)
    assert batches((8, 8, 8)) == [1]


def test_a_lone_window_is_answered_as_among_others():
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=2, start_channels=2)).eval()
    image = volume(16, 8, 8)
    both = predict_volume(model, image, NORMALIZER, window=8, overlap=0.0)
    low, high = NORMALIZER.fit(image)
    alone = predict_slabs(
        model,
        lambda start, stop: NORMALIZER.apply(image[:8, :, start:stop], low, high),
        (8, 8, 8),
        Windows((8, 8, 8)),
    )
    np.testing.assert_array_equal(next(alone)[1], both[:8])


def test_windows_are_no_longer_than_the_volume():
    model = Pointwise()
    predict_volume(model, volume(5, 12, 3), NORMALIZER, window=8)
    assert {shape[2:] for shape in model.windows} == {(5, 8, 3)}


def test_a_single_window_equals_the_network_itself():
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=2, start_channels=2)).eval()
    image = volume(9, 8, 7)
    scaled = NORMALIZER.apply(image, *NORMALIZER.fit(image))
    with torch.inference_mode():
        direct = torch.sigmoid(model(torch.from_numpy(scaled)[None, None]))[0, 0].numpy()
    got = predict_volume(model, image, NORMALIZER, window=16)
    np.testing.assert_allclose(got, direct, rtol=1e-5, atol=1e-6)


def test_brightness_and_offset_do_not_matter():
    torch.manual_seed(0)
    model = build_model(ModelConfig(arch="stacked_unet", num_stacks=2, depth=2))
    image = volume(12, 12, 12)
    plain = predict_volume(model, image, NORMALIZER, window=8)
    brighter = predict_volume(model, 8 * image + 3, NORMALIZER, window=8)
    np.testing.assert_allclose(plain, brighter, atol=1e-4)


def test_blending_leaves_no_seam():
    """A network that says 1 in the left half of its window and 0 in the right is averaged out."""

    class HalfSure(Pointwise):
        def forward(self, x):
            ramp = torch.linspace(8, -8, x.shape[2]).reshape(1, 1, -1, 1, 1)
            return ramp.expand_as(x)

    got = predict_volume(HalfSure(), volume(32, 4, 4), NORMALIZER, window=8, overlap=0.75)
    steps = np.abs(np.diff(got[8:-8, 0, 0]))
    assert steps.max() < 0.25
    hard = predict_volume(HalfSure(), volume(32, 4, 4), NORMALIZER, window=8, overlap=0.0)
    assert np.abs(np.diff(hard[:, 0, 0])).max() > 0.9


def test_a_network_is_put_into_evaluation_mode():
    model = nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1), nn.Dropout(1.0)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    got = predict_volume(model, volume(8, 8, 8), NORMALIZER, window=8)
    assert np.ptp(got) > 0 and not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_network_of_several_maps_is_refused():
    with pytest.raises(ValueError, match="one channel of logits"):
        predict_volume(nn.Conv3d(1, 2, 1), volume(8, 8, 8), NORMALIZER, window=8)


def test_a_constant_volume_is_predicted():
    got = predict_volume(Pointwise(), np.full((4, 4, 4), 7.0, np.float32), NORMALIZER, window=4)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(2.0)), rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (np.zeros((4, 4, 4, 4)), {}, "2 or 3 axes"),
        (np.zeros((4, 0, 4)), {}, "no empty one"),
        (np.zeros((4, 4, 4)), {"window": 0}, "window"),
        (np.zeros((4, 4, 4)), {"window": (4, 4)}, "3 axes"),
        (np.full((4, 4, 4), np.nan), {}, "finite"),
    ],
)
def test_bad_arguments(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_volume(Pointwise(), image, NORMALIZER, **{"window": 4, **arguments})


def blending_weights(edges):
    return functools.reduce(np.multiply.outer, [_bell(edge, len(edges)) for edge in edges])


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_windows_and_blending_are_those_of_monai(data):
    """MONAI's sliding window is the oracle, where the overlap asked for fits the length.

    Elsewhere MONAI moves the last window alone; here all of them spread.
    """
    dims = data.draw(st.integers(2, 3))
    overlap = data.draw(st.floats(0, 0.8))
    edges = tuple(data.draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims)))
    steps = [max(1, int(edge * (1 - overlap))) for edge in edges]
    shape = tuple(e + s * data.draw(st.integers(0, 3)) for e, s in zip(edges, steps, strict=True))
    torch.manual_seed(0)
    model = build_model(ModelConfig(spatial_dims=dims, depth=1, start_channels=2)).eval()
    image = volume(*shape)
    got = predict_volume(model, image, NORMALIZER, window=edges, overlap=overlap, batch_size=2)
    scaled = torch.from_numpy(NORMALIZER.apply(image, *NORMALIZER.fit(image)))[None, None]
    with torch.inference_mode():
        expected = sliding_window_inference(
            scaled,
            edges,
            2,
            lambda x: torch.sigmoid(model(x)),
            overlap=overlap,
            roi_weight_map=torch.from_numpy(blending_weights(edges)),
        )
    np.testing.assert_allclose(got, expected[0, 0].numpy(), atol=1e-5)


def test_tiled_equals_whole_where_no_window_ends():
    """A convolution answers alike in each window that holds the voxel and its neighbours."""
    torch.manual_seed(0)
    model = nn.Conv3d(1, 1, 3, padding=1)
    image = volume(25, 18, 21)
    whole = predict_volume(model, image, NORMALIZER, window=25)
    tiled = predict_volume(model, image, NORMALIZER, window=8)
    starts = Windows((8, 8, 8)).starts(image.shape)
    inner = []
    for length, begins in zip(image.shape, starts, strict=True):
        rims = {begin for begin in begins if begin} | {begin + 7 for begin in begins[:-1]}
        inner.append([k for k in range(length) if k not in rims])
    where = np.ix_(*inner)
    np.testing.assert_allclose(tiled[where], whole[where], atol=1e-6)
    assert np.abs(tiled - whole).max() > 1e-3


def test_weights_are_largest_in_the_middle_and_nowhere_lost():
    weights = blending_weights((9, 8, 17))
    assert weights[4, 3, 8] == weights.max() and weights.max() == pytest.approx(1, abs=0.15)
    assert weights.min() == pytest.approx(LEAST_WEIGHT, rel=1e-5)
    np.testing.assert_array_equal(weights, weights[::-1, ::-1, ::-1])


@pytest.mark.parametrize("dims", [2, 3])
def test_flips_average_over_mirror_images(dims):
    torch.manual_seed(0)
    model = build_model(ModelConfig(spatial_dims=dims, depth=2, start_channels=2))
    image = volume(*(8,) * dims)
    got = predict_volume(model, image, NORMALIZER, window=8, tta=("flips",))
    answers = []
    for axes in [(), (0,), (1,), (0, 1)] if dims == 2 else [(), (0,), (1, 2), (0, 1, 2)]:
        mirrored = np.ascontiguousarray(np.flip(image, axes))
        answers.append(np.flip(predict_volume(model, mirrored, NORMALIZER, window=8), axes))
    np.testing.assert_allclose(got, np.mean(answers, axis=0), atol=1e-6)


def test_bf16_is_close():
    torch.manual_seed(0)
    model = build_model(ModelConfig(depth=2))
    image = volume(12, 12, 12)
    exact = predict_volume(model, image, NORMALIZER, window=8)
    rough = predict_volume(model, image, NORMALIZER, window=8, precision="bf16")
    assert 0 < np.abs(exact - rough).max() < 0.05
    assert rough.dtype == np.float32


@given(length=st.integers(1, 300), edge=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_windows_are_as_few_as_the_overlap_asks_for_and_evenly_spread(length, edge, overlap):
    edge = min(edge, length)
    (starts,) = Windows((edge,), overlap).starts((length,))
    step = max(1, int(edge * (1 - overlap)))
    gaps = np.diff(starts)
    assert starts[0] == 0 and starts[-1] == length - edge
    assert len(starts) == -(-(length - edge) // step) + 1
    assert all(gaps <= step) and all(gaps > 0) and (len(gaps) == 0 or np.ptp(gaps) <= 1)


def windows(*space):
    return torch.rand((2, 1, *space), generator=torch.Generator().manual_seed(0))


def same(x):
    return x


@pytest.mark.parametrize("space", [(4, 6), (4, 6, 5)])
def test_mirror_images_are_put_back(space):
    inputs, seen = windows(*space), []
    ramp = torch.arange(space[0]).view(-1, *[1] * (len(space) - 1)) * torch.ones(space)

    def predict(x):
        seen.append(x)
        return x + ramp  # knows where it is, unlike a convolution

    answers = View(flipped=(0,)).answer(predict, inputs)
    assert torch.equal(seen[0], inputs.flip(2))
    torch.testing.assert_close(answers, inputs + ramp.flip(0))


def test_grey_values_change_as_told():
    inputs = windows(3, 3, 3)
    torch.testing.assert_close(View(power=2.0).answer(same, inputs), inputs * inputs)


def test_noise_has_its_spread_and_comes_from_the_generator():
    inputs = torch.full((1, 1, 40, 40, 40), 0.5)
    noise = [
        View(noise=0.1).answer(same, inputs, torch.Generator().manual_seed(seed)) - 0.5
        for seed in (1, 1, 2)
    ]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert float(noise[0].std()) == pytest.approx(0.1, rel=0.02)
    assert View(noise=5.0).answer(same, inputs).aminmax() == (0, 1)


@pytest.mark.parametrize(("scale", "edges"), [(0.8, (8, 16, 1)), (1.25, (12, 25, 1))])
def test_scaled_windows_have_their_edges_and_answers_those_of_before(scale, edges):
    inputs = torch.linspace(0, 1, 20).view(1, 1, 1, 20, 1).expand(1, 1, 10, 20, 1)
    seen = []

    def predict(x):
        seen.append(tuple(x.shape[2:]))
        return x

    answers = View(scale=scale).answer(predict, inputs)
    assert seen == [edges] and answers.shape == inputs.shape
    inner = (..., slice(2, -2), 0)
    torch.testing.assert_close(answers[inner], inputs[inner], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_views_that_are_averaged(dims):
    assert averaged_views((), dims) == (View(),)
    flips = averaged_views(("flips",), dims)
    mirrored = np.array([[axis in view.flipped for axis in range(dims)] for view in flips])
    assert len(set(flips)) == 4 and mirrored.sum(0).tolist() == [2] * dims  # each axis in half
    pairs = itertools.product(mirrored, repeat=2)  # one after the other is one of them again
    assert all((mirrored == (a ^ b)).all(1).any() for a, b in pairs)
    everything = averaged_views(("scales", "flips"), dims)
    assert everything[0] == View() and len(set(everything)) == 6
    assert [view.scale for view in averaged_views(("scales",), dims)] == [1, 0.8, 1.25]
