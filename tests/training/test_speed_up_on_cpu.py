"""Networks made quick for few channels beside torch's own layers in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import ModelConfig, build_model
from utils.training import speed_up_on_cpu as module
from utils.training.speed_up_on_cpu import speed_up_on_cpu

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
TORCH = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def quick_norm(dims: int, channels: int, **options: float) -> nn.Module:
    """Return torch's batch normalisation, made quick."""
    return speed_up_on_cpu(TORCH[dims](channels, **options))


def plain_norm(dims: int, channels: int) -> nn.Module:
    """Return torch's batch normalisation as it is."""
    return TORCH[dims](channels)


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return channels-last values with mean 3 and deviation 2."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3
    return values.to(dtype).contiguous(memory_format=LAST[len(shape) - 2])


def twins(dims: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return the quick layer and torch's in float64, with the same parameters and buffers."""
    quick, slow = quick_norm(dims, channels), TORCH[dims](channels).double()
    nn.init.uniform_(quick.weight, 0.5, 2)
    nn.init.uniform_(quick.bias, -1, 1)
    slow.load_state_dict({name: value.double() for name, value in quick.state_dict().items()})
    return quick, slow


def is_quick(y: torch.Tensor) -> bool:
    """Return whether ``y`` comes from the quick path."""
    return type(y.grad_fn).__name__ == "_NormaliseBackward"


def largest_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference in units of the largest expected value."""
    got, expected = got.detach().double(), expected.detach()
    return float((got - expected).abs().max() / expected.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    dims=st.sampled_from([2, 3]),
    batch=st.integers(1, 3),
    channels=st.integers(1, module.FEW - 1),
    edges=st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_normalisation_equals_torchs_in_float64(dims, batch, channels, edges, dtype, seed):
    torch.manual_seed(seed)
    quick, slow = twins(dims, channels)
    x = draw((batch, channels, *edges[:dims]), dtype, seed).requires_grad_()
    gradient = draw(tuple(x.shape), dtype, seed + 1)
    twin = x.detach().double().requires_grad_()
    assert module.is_slow_in_torch(x)
    y, expected = quick(x), slow(twin)
    assert is_quick(y)
    y.backward(gradient)
    expected.backward(gradient.double())
    assert y.dtype == dtype and x.grad.dtype == dtype
    assert x.grad.is_contiguous(memory_format=LAST[dims])
    rounding = 1e-4 if dtype == torch.float32 else 2e-2
    assert largest_error(y, expected) < rounding
    assert largest_error(x.grad, twin.grad) < 2 * rounding
    for got, wanted in zip(
        [quick.weight.grad, quick.bias.grad, quick.running_mean, quick.running_var],
        [slow.weight.grad, slow.bias.grad, slow.running_mean, slow.running_var],
        strict=True,
    ):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=2e-3)
    assert quick.num_batches_tracked == 1


def test_statistics_are_exact_far_from_zero():
    x = (draw((1, 4, 32, 32, 32), torch.float32, 0) + 1000).contiguous(memory_format=LAST[3])
    quick = quick_norm(3, 4, momentum=1.0)
    quick(x)
    torch.testing.assert_close(
        quick.running_mean, x.double().mean((0, 2, 3, 4)).float(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        quick.running_var, x.double().var((0, 2, 3, 4)).float(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("x", "training"),
    [
        (draw((2, 4, 4, 4, 4), torch.float32, 0), False),
        (draw((2, 4, 4, 4, 4), torch.float32, 0).contiguous(), True),
        (draw((2, 16, 4, 4, 4), torch.float32, 0), True),
        (draw((2, 4, 4, 4, 4), torch.float64, 0), True),
    ],
    ids=["evaluation", "channels-first", "many-channels", "float64"],
)
def test_elsewhere_torchs_own_layer_answers(x, training):
    channels = x.shape[1]
    layers = [kind(3, channels).to(x.dtype).train(training) for kind in (quick_norm, plain_norm)]
    got, expected = (layer(x) for layer in layers)
    assert not is_quick(got)
    assert torch.equal(got, expected)
    assert torch.equal(layers[0].running_var, layers[1].running_var)


def test_a_single_value_cannot_be_normalised():
    with pytest.raises(ValueError, match="more than 1 value"):
        quick_norm(3, 2)(torch.ones(1, 2, 1, 1, 1))


def test_in_autocast_and_without_gradients_as_with_them():
    x = draw((2, 4, 6, 6, 6), torch.bfloat16, 0)
    layers = [quick_norm(3, 4) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        first = layers[0](x)
    with torch.no_grad():
        second = layers[1](x)
    third = layers[2](x)
    assert is_quick(first) and torch.equal(first, third) and torch.equal(second, third)
    assert torch.equal(layers[1].running_var, layers[2].running_var)


def test_a_copy_goes_on_as_the_original():
    quick = quick_norm(3, 4)
    quick(draw((2, 4, 6, 6, 6), torch.float32, 0))
    twin, slow = copy.deepcopy(quick), nn.BatchNorm3d(4)
    slow.load_state_dict(quick.state_dict())
    x = draw((2, 4, 6, 6, 6), torch.float32, 1)
    assert torch.equal(quick(x), twin(x))
    torch.testing.assert_close(quick(x), slow(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["bfloat16", "no statistics", "wrong channels"])
def test_unusual_layers_are_left_to_torch(change):
    layers = [kind(3, 4) for kind in (quick_norm, plain_norm)]
    x = draw((2, 4, 6, 6, 6), torch.float32, 0)
    if change == "wrong channels":
        for layer in layers:
            with pytest.raises(RuntimeError, match="running_mean"):
                layer(x[:, :3].contiguous(memory_format=LAST[3]))
        return
    for layer in layers:
        if change == "bfloat16":
            layer.bfloat16()
        else:
            layer.track_running_stats = False
    x = x.bfloat16() if change == "bfloat16" else x
    got, expected = (layer(x) for layer in layers)
    assert torch.equal(got, expected)
    assert torch.equal(layers[0].running_mean, layers[1].running_mean)


def test_wrong_dimensions_are_named():
    with pytest.raises(ValueError, match="expected 5D input"):
        quick_norm(3, 4)(draw((2, 4, 8, 8), torch.float32, 0))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_networks_have_the_gradients_of_the_channels_first_order(dims, residual, arch):
    torch.manual_seed(0)
    config = ModelConfig(
        arch=arch, spatial_dims=dims, depth=3, start_channels=4, residual=residual, num_stacks=2
    )
    first = build_model(config).double()
    last = build_model(config)
    last.load_state_dict(first.state_dict())
    names = set(last.state_dict())
    last = speed_up_on_cpu(last.to(memory_format=LAST[dims]))
    assert set(last.state_dict()) == names
    x = torch.randn(2, 1, *(16,) * dims)
    for model, batch in ((first, x.double()), (last, x.contiguous(memory_format=LAST[dims]))):
        logits = model(batch)
        sum(one.square().mean() for one in (logits if arch != "unet" else [logits])).backward()
    for (name, twin), weight in zip(first.named_parameters(), last.parameters(), strict=True):
        difference = (weight.grad.double() - twin.grad).norm() / twin.grad.norm()
        assert difference < 0.03, name  # 1e-5, but for a ReLU whose sign rounding has turned


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_evaluation_is_torchs_own_to_the_second_derivative(arch):
    torch.manual_seed(0)
    plain = build_model(ModelConfig(arch=arch, spatial_dims=2, depth=2, num_stacks=2)).eval()
    quick = speed_up_on_cpu(copy.deepcopy(plain))
    image = torch.randn(1, 1, 8, 8).contiguous(memory_format=LAST[2])

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        logits = model(x)
        return (logits if arch == "unet" else logits[-1]).sigmoid().square().sum()

    slopes = [torch.func.grad(lambda x, m=model: loss(m, x))(image) for model in (plain, quick)]
    assert torch.equal(*slopes)
    for model in (plain, quick):
        x = image.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(model, x), x, create_graph=True)
        slope.square().sum().backward()
        assert x.grad.isfinite().all()


def test_once_made_quick_is_enough():
    model = speed_up_on_cpu(build_model(ModelConfig(depth=2)))
    kinds = [type(part) for part in model.modules()]
    speed_up_on_cpu(model)
    assert [type(part) for part in model.modules()] == kinds


@pytest.mark.parametrize(("kernel", "edge"), [(3, 2), (3, 1), (5, 3), (3, 4), (1, 2)])
def test_few_planes_have_right_gradients_in_bfloat16(kernel, edge):
    """In memory full of NaN, which torch's own convolution sums up where planes are few."""
    torch.manual_seed(0)
    slow = nn.Conv3d(16, 8, kernel, padding=kernel // 2, dtype=torch.float64)
    quick = speed_up_on_cpu(nn.Conv3d(16, 8, kernel, padding=kernel // 2))
    quick.load_state_dict(slow.state_dict())
    x = draw((2, 16, edge, edge, edge), torch.float32, 1)
    slow(x.double()).square().sum().backward()
    spoilt = [torch.full((1 << n,), torch.nan) for n in (12, 14, 16, 18, 20)]
    del spoilt
    with torch.autocast("cpu", torch.bfloat16):
        y = quick(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert largest_error(quick.weight.grad, slow.weight.grad) < 0.03
