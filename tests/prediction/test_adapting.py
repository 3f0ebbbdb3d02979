import pytest
import torch
from torch import nn

from models import ModelConfig, build_model
from utils.prediction.adapting import PlaneByPlane, fused


def unlike_initial(model):
    """Give the normalisations statistics and factors as training would."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.uniform_(module.bias, 0, 1)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(depth=3, start_channels=4),
        ModelConfig(depth=2, start_channels=3, residual=True),
        ModelConfig(arch="stacked_unet", depth=2, start_channels=2, num_stacks=2),
        ModelConfig(spatial_dims=2, depth=3, start_channels=4),
    ],
)
def test_the_answers_are_the_same(config):
    torch.manual_seed(0)
    model = unlike_initial(build_model(config))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 1, *(8,) * config.spatial_dims)
    with torch.inference_mode():
        pairs = [model(x), fused(model)(x)]
    outputs = [pair if isinstance(pair, list) else [pair] for pair in pairs]
    for expected, got in zip(*outputs, strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_normalisation_of_a_unet_goes():
    model = build_model(ModelConfig(depth=3, residual=True)).train()
    left = [m for m in fused(model).modules() if isinstance(m, nn.BatchNorm3d)]
    assert not left and model.training


def test_what_does_not_follow_a_convolution_stays():
    model = unlike_initial(nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.BatchNorm3d(2)))
    x = torch.randn(1, 1, 4, 4, 4)
    got = fused(model)
    assert isinstance(got[2], nn.BatchNorm3d)
    torch.testing.assert_close(got(x), model(x))


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_a_plane_is_answered_like_an_image(arch: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, spatial_dims=2, depth=2, start_channels=2, num_stacks=2)
    network = build_model(config).eval()
    windows = torch.rand(3, 1, 12, 10, 1)
    expected = network(windows[..., 0])
    expected = expected[-1] if arch == "stacked_unet" else expected
    assert torch.equal(PlaneByPlane(network)(windows)[..., 0], expected)
