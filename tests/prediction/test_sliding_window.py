import numpy as np
import pytest
import torch
from torch import nn

from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.prediction.sliding_window import predict_volume

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


@pytest.mark.parametrize(("overlap", "batch_size"), [(0.0, 1), (0.25, 3), (0.75, 4)])
def test_overlap_and_batches_do_not_change_what_every_window_agrees_on(overlap, batch_size):
    image = volume(13, 16, 10)
    model = Pointwise()
    got = predict_volume(model, image, NORMALIZER, window=8, overlap=overlap, batch_size=batch_size)
    np.testing.assert_allclose(got, expected(image), atol=2e-5)
    assert max(shape[0] for shape in model.windows) == batch_size


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


def test_the_modes_of_all_modules_come_back():
    model = build_model(ModelConfig(depth=2)).train()
    model.body.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    predict_volume(model, volume(8, 8, 8), NORMALIZER, window=8)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="one channel"):
        predict_volume(
            torch.nn.Sequential(nn.Conv3d(1, 2, 1)), volume(8, 8, 8), NORMALIZER, window=8
        )
    assert model.training and not model.body.encoder.training


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
        (np.zeros((4, 4, 4)), {"overlap": 1.0}, "overlap"),
        (np.zeros((4, 4, 4)), {"batch_size": 0}, "batch_size"),
        (np.full((4, 4, 4), np.nan), {}, "finite"),
    ],
)
def test_bad_arguments(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_volume(Pointwise(), image, NORMALIZER, **{"window": 4, **arguments})
