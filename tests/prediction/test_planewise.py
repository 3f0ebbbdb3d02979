"""A network for images on a stack answers each plane as it would answer the image."""

from __future__ import annotations

import pytest
import torch

from models import ModelConfig, build_model
from utils.prediction.planewise import PlaneByPlane


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_a_plane_is_answered_like_an_image(arch: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, spatial_dims=2, depth=2, start_channels=2, num_stacks=2)
    network = build_model(config).eval()
    windows = torch.rand(3, 1, 12, 10, 1)
    expected = network(windows[..., 0])
    expected = expected[-1] if arch == "stacked_unet" else expected
    assert torch.equal(PlaneByPlane(network)(windows)[..., 0], expected)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 2), (1, 1, 8, 8)])
def test_deeper_windows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one plane deep"):
        PlaneByPlane(torch.nn.Identity())(torch.rand(shape))
