from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer, measure_limits
from utils.prediction import whole_stack
from utils.prediction.sliding_window import Windows, predict_volume
from utils.prediction.whole_stack import (
    HIGHEST,
    LEVELS,
    LOWEST,
    StackPrediction,
    best_threshold,
    cut,
    middle_of,
    to_levels,
    write_prediction,
)
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


LENGTHS = st.integers(1, 9)


def slabs(whole: np.ndarray, depth: int) -> Iterator[np.ndarray]:
    for start in range(0, whole.shape[-1], depth):
        yield whole[..., start : start + depth]


@given(st.tuples(LENGTHS, LENGTHS, LENGTHS), LENGTHS, st.integers(1, 9), st.data())
def test_planes_of_a_stack_are_its_slices(
    shape: tuple[int, ...], depth: int, most: int, data: st.DataObject
) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape)
    x, y, z = (data.draw(st.integers(0, n - 1)) for n in shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_stack, "MOST_PIXELS", most)
        found = cut(slabs(whole, depth), shape, (x, y, z))
    a, b, c = (-(-n // most) for n in shape)
    expected = [whole[::a, ::b, z], whole[::a, y, ::c], whole[x, ::b, ::c]]
    assert all(max(plane.shape) <= most for plane in found)
    for plane, twin in zip(found, expected, strict=True):
        np.testing.assert_array_equal(plane, twin)


def test_an_image_is_its_own_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_stack, "MOST_PIXELS", 6)
    whole = np.arange(13 * 20).reshape(13, 20)
    (plane,) = cut(slabs(whole, 3), whole.shape, (6, 10))
    np.testing.assert_array_equal(plane, whole[::3, ::4])


@given(st.integers(0, 1000), st.sampled_from([(7, 5, 9), (6, 8)]), LENGTHS)
def test_each_plane_through_the_middle_meets_the_mask(
    seed: int, shape: tuple[int, ...], depth: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < rng.choice([0.02, 0.3])).astype(np.uint8)
    middle, marked = middle_of(slabs(mask, depth), shape)
    assert marked == mask.sum()
    for axis, (place, length) in enumerate(zip(middle, shape, strict=True)):
        if marked:
            assert mask.take(place, axis).any()
            twin = np.sort(np.nonzero(mask)[axis])[(marked - 1) // 2]
            assert place == twin
        else:
            assert place == length // 2


def expected_iou(probabilities: np.ndarray, threshold: float) -> float:
    """Return the expected IoU by its definition, voxel by voxel, of probabilities from 0.05 on."""
    chances = (np.floor(probabilities * LEVELS) + 0.5) / LEVELS
    chances[chances < 0.05] = 0
    called = probabilities >= threshold
    hits = chances[called].sum()
    return hits / (called.sum() + chances.sum() - hits)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 999), a=st.floats(0.05, 3), b=st.floats(0.05, 3))
def test_no_other_threshold_has_a_higher_expected_iou(seed, a, b):
    probabilities = np.random.default_rng(seed).beta(a, b, (6, 7, 30)).astype(np.float32)
    probabilities *= 0.99
    threshold = best_threshold(to_levels(part) for part in np.array_split(probabilities, 3, axis=2))
    others = np.arange(round(LOWEST * LEVELS), round(HIGHEST * LEVELS) + 1) / LEVELS
    best = max(expected_iou(probabilities, other) for other in others)
    assert LOWEST - 1 / LEVELS <= threshold <= HIGHEST
    assert expected_iou(probabilities, threshold) == pytest.approx(best, abs=1e-6)


def test_probabilities_that_come_true_are_cut_where_the_true_iou_is_highest():
    rng = np.random.default_rng(0)
    chance = rng.beta(0.6, 1.6, 200_000).astype(np.float32)  # unsure everywhere: 0.27 on average
    truth = rng.random(chance.size) < chance

    def iou(threshold):
        mask = chance >= threshold
        return (mask & truth).sum() / (mask | truth).sum()

    threshold = best_threshold([to_levels(chance)])
    best = max(map(iou, np.arange(0.05, 0.95, 0.01)))
    assert iou(threshold) > best - 0.002 and iou(0.5) < best - 0.03
    # Half of the best Dice coefficient, as theory has it.
    assert threshold == pytest.approx(best / (1 + best), abs=0.02)


def test_more_empty_space_changes_nothing():
    rng = np.random.default_rng(1)
    levels = to_levels(rng.beta(0.7, 1.2, 5_000).astype(np.float32))
    dim = to_levels(np.full(500_000, 0.04, np.float32))
    assert best_threshold([levels, dim]) == best_threshold([levels])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.04])
def test_where_nothing_is_to_choose_it_is_a_half(value):
    assert best_threshold([to_levels(np.full((3, 4, 5), value, np.float32))]) == 0.5
    mask = np.random.default_rng(2).integers(0, 2, (5, 5, 5)).astype(np.uint8)
    assert best_threshold([to_levels(mask)]) == 0.5


def test_levels_round_down():
    assert to_levels(np.array([0, 1 / 257, 0.5, 0.4999, 1.0], np.float32)).tolist() == [
        *(0, 0, 128, 127, 255)
    ]
