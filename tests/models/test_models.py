import dataclasses
import itertools

import pytest
import torch
from torch import nn

from models import (
    ARCHITECTURES,
    ModelConfig,
    StackedUNet,
    UNet,
    UNetBody,
    build_model,
    count_parameters,
)
from models.layers import (
    ConvBlock,
    ResidualBlock,
    crop_to,
    depth_to_space,
    pad_to_multiple,
    space_to_depth,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [
    # spatial_dims, in, out, arguments, space
    (2, 1, 1, {}, (32, 32)),
    (2, 3, 2, {"depth": 3}, (17, 30)),
    (2, 1, 1, {"depth": 1}, (5, 7)),
    (2, 1, 1, {"depth": 5, "start_channels": 2}, (3, 70)),
    (2, 1, 4, {"conv_kernel_size": 5, "residual": True}, (20, 12)),
    (3, 1, 1, {}, (16, 16, 16)),
    (3, 1, 1, {"depth": 3}, (9, 16, 5)),
    (3, 2, 3, {"depth": 2, "start_channels": 3, "residual": True}, (7, 8, 9)),
    (3, 1, 1, {"conv_kernel_size": 1, "depth": 2}, (4, 4, 4)),
    (2, 2, 3, {"stem_stride": 3, "depth": 2}, (13, 18)),
    (3, 1, 1, {"stem_stride": 2, "depth": 2}, (9, 8, 5)),
]


@pytest.mark.parametrize(("dims", "inputs", "outputs", "arguments", "space"), SHAPES)
def test_shapes(dims, inputs, outputs, arguments, space):
    x = rand(2, inputs, *space)
    expected = (2, outputs, *space)
    config = ModelConfig("unet", dims, inputs, outputs, num_stacks=3, **arguments)
    assert UNet(config)(x).shape == expected
    scores = StackedUNet(config)(x)
    assert [s.shape for s in scores] == [expected] * 3


BAD = [
    ({"arch": "vnet"}, "arch"),
    ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, not 4"),
    ({"depth": 0}, "depth"),
    ({"depth": 2.0}, "depth"),
    ({"start_channels": 0}, "start_channels"),
    ({"start_channels": True}, "start_channels"),
    ({"in_channels": 0}, "in_channels"),
    ({"out_channels": -1}, "out_channels"),
    ({"num_stacks": 0}, "num_stacks"),
    ({"conv_kernel_size": 4}, "conv_kernel_size must be odd"),
    ({"conv_kernel_size": 0}, "conv_kernel_size"),
    ({"stem_stride": 0}, "stem_stride must be a whole number of at least 1, not 0"),
    ({"stem_stride": 10**7}, r"2\^60 weights: .*stem_stride 10000000"),
    ({"start_channels": 10**11}, r"2\^60 weights: .*start_channels 100000000000"),
    ({"conv_kernel_size": 10**9 + 1}, r"2\^60 weights: .*conv_kernel_size 1000000001"),
    ({"depth": 10**6}, r"2\^60 weights: depth 1000000"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_configurations(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelConfig(**values)
    assert "\n" not in str(caught.value)


def test_config_round_trip():
    config = ModelConfig("stacked_unet", 2, 3, 2, 3, 5, 4, 5, True, 2)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="deepness"):
        ModelConfig.from_dict({"deepness": 3})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 2


def block_parameters(dims, inputs, outputs, kernel, residual):
    count = kernel**dims * (inputs * outputs + outputs**2) + 4 * outputs
    return count + (inputs * outputs if residual and inputs != outputs else 0)


def body_parameters(config, inputs):
    dims, kernel, residual = config.spatial_dims, config.conv_kernel_size, config.residual
    widths = [config.start_channels * 2**level for level in range(config.depth)]
    down = sum(
        block_parameters(dims, a, b, kernel, residual)
        for a, b in zip([inputs, *widths], widths, strict=False)
    )
    up = sum(
        2**dims * 2 * w * w + block_parameters(dims, 2 * w, w, kernel, residual)
        for w in widths[:-1]
    )
    return down + up


def parameters(config):
    block = config.stem_stride**config.spatial_dims
    c, i, o = config.start_channels, config.in_channels * block, config.out_channels * block
    kernel = config.conv_kernel_size**config.spatial_dims
    if config.arch == "unet":
        return body_parameters(config, i) + (1 if block == 1 else kernel) * c * o + o
    stem = kernel * i * c + 2 * c
    stack = body_parameters(config, c) + c * c + 2 * c + c * o + o
    return stem + config.num_stacks * stack + (config.num_stacks - 1) * (c * c + o * c)


CONFIGS = [
    ModelConfig(),
    ModelConfig(arch="stacked_unet"),
    ModelConfig(arch="stacked_unet", num_stacks=3, out_channels=2, residual=True),
    ModelConfig(spatial_dims=2, depth=3, start_channels=6, conv_kernel_size=5, residual=True),
    ModelConfig(spatial_dims=2, depth=1, in_channels=2),
    ModelConfig(stem_stride=2, depth=2),
    ModelConfig(arch="stacked_unet", num_stacks=2, spatial_dims=2, depth=2, stem_stride=3),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameter_count_follows_the_closed_form(config):
    assert count_parameters(build_model(config)) == parameters(config)


def test_reference_configuration_has_88k_parameters():
    kernels_down = 4 + 4**2 + 4 * 8 + 8**2 + 8 * 16 + 16**2 + 16 * 32 + 32**2
    kernels_up = 3 * (16**2 + 8**2 + 4**2)
    up_convolutions = 8 * 2 * (16**2 + 8**2 + 4**2)
    norms = 4 * (4 + 8 + 16 + 32) + 4 * (16 + 8 + 4)
    expected = 27 * (kernels_down + kernels_up) + up_convolutions + norms + 4 + 1
    assert count_parameters(build_model(ModelConfig())) == expected == 87921


GRADIENTS = [
    ModelConfig(arch=arch, spatial_dims=dims, depth=3, num_stacks=2, residual=residual)
    for arch in ("unet", "stacked_unet")
    for dims in (2, 3)
    for residual in (False, True)
] + [ModelConfig(arch=arch, depth=2, num_stacks=2, stem_stride=2) for arch in ARCHITECTURES]


def summed_loss(model, x, target):
    logits = model(x)
    return sum(
        nn.functional.binary_cross_entropy_with_logits(score, target)
        for score in (logits if isinstance(logits, list) else [logits])
    )


@pytest.mark.parametrize("config", GRADIENTS)
def test_every_parameter_trains(config):
    model = build_model(config).double()
    space = (12,) * config.spatial_dims
    x, target = rand(2, 1, *space).double(), rand(2, 1, *space, seed=1).round().double()
    summed_loss(model, x, target).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not part of the computation"
        # A bias in front of a batch normalisation would show 1e-17 here.
        assert parameter.grad.abs().max() > 1e-9, f"no gradient reaches {name}"


def test_earlier_stacks_learn_from_the_last_score_alone():
    model = StackedUNet(ModelConfig(spatial_dims=2, num_stacks=2, depth=2))
    model(rand(2, 1, 8, 8))[-1].sum().backward()
    gradient = model.stacks[0].score.weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_stack_follows_its_formula():
    model = StackedUNet(ModelConfig(spatial_dims=2, num_stacks=2, depth=2)).eval()
    x = rand(1, 1, 8, 8)
    first, second = model.stacks
    z = model.stem(x)
    y = first.features(first.body(z))
    score = first.score(y)
    bridge = model.re_entries[0]
    z = z + bridge.features(y) + bridge.score(score)
    expected = [score, second.score(second.features(second.body(z)))]
    for got, want in zip(model(x), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_stacks_do_not_share_weights():
    first, second = StackedUNet(ModelConfig(spatial_dims=2, num_stacks=2)).stacks
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_counts_levels(depth):
    body = UNetBody(ModelConfig(spatial_dims=2, depth=depth), 1)
    sizes = []
    body.encoder[-1].register_forward_hook(lambda _, inputs, out: sizes.append(out.shape))
    features = body(rand(2, 1, 16, 16))
    assert features.shape == (2, 4, 16, 16)
    edge, width = 16 // 2 ** (depth - 1), 4 * 2 ** (depth - 1)
    assert sizes == [(2, width, edge, edge)]


def test_skips_carry_fine_detail():
    """What the poolings wipe out reaches the output: the top level sees it through its skip."""
    model = UNet(ModelConfig(spatial_dims=2, depth=3)).eval()
    x = rand(1, 1, 16, 16)
    for up in model.body.ups:
        nn.init.zeros_(up.weight)
    assert (model(x) - model(x.flip(-1))).abs().max() > 0


def test_residual_block_adds_its_input():
    block = ResidualBlock(2, 3, 3, 3).eval()
    nn.init.zeros_(block.layers[-1].weight)
    x = rand(1, 3, 6, 6) - 0.5
    torch.testing.assert_close(block(x), torch.relu(x))
    assert count_parameters(ResidualBlock(2, 3, 3, 3)) == count_parameters(ConvBlock(2, 3, 3, 3))


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_output_moves_with_the_input(arch):
    """A shift by the pooling grid shifts the output, away from the borders that padding reaches."""
    model = build_model(ModelConfig(arch=arch, spatial_dims=2, depth=2)).eval()
    scene = rand(1, 1, 64, 64)
    with torch.inference_mode():
        outputs = [model(scene[..., s : s + 56, s : s + 56]) for s in (0, 4)]
    here, there = (o[-1] if isinstance(o, list) else o for o in outputs)
    torch.testing.assert_close(here[..., 16:40, 16:40], there[..., 12:36, 12:36])


def test_padding_repeats_the_border_at_the_end_and_crops_back():
    x = rand(1, 2, 3, 5, 8)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 2, 4, 8, 8)
    torch.testing.assert_close(padded[:, :, 3, :5], x[:, :, 2])
    torch.testing.assert_close(padded[:, :, :3, 7], x[:, :, :, 4])
    torch.testing.assert_close(crop_to(padded, (3, 5, 8)), x)
    assert pad_to_multiple(x, 1) is x


@pytest.mark.parametrize(("space", "factor"), [((6, 9), 3), ((4, 2, 6), 2), ((5, 3), 1)])
def test_blocks_of_voxels_become_channels_and_back(space, factor):
    x = rand(2, 3, *space)
    deep = space_to_depth(x, factor)
    assert deep.shape == (2, 3 * factor ** len(space), *(n // factor for n in space))
    torch.testing.assert_close(depth_to_space(deep, factor), x, rtol=0, atol=0)
    # The first block's voxels are the first coarse voxel's channels, in the order of the axes.
    first = x[(0, 0, *(slice(factor),) * len(space))].flatten()
    torch.testing.assert_close(deep[(0, slice(len(first)), *(0,) * len(space))], first)
    if len(space) == 2:
        torch.testing.assert_close(deep, nn.functional.pixel_unshuffle(x, factor))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_strided_stem_sees_every_voxel_and_answers_for_every_voxel(arch):
    model = build_model(ModelConfig(arch=arch, spatial_dims=2, depth=1, stem_stride=2)).double()
    x = rand(1, 1, 8, 8).double().requires_grad_()
    logits = model.eval()(x)
    logits = logits[-1] if isinstance(logits, list) else logits
    assert len(logits.unique()) == 64
    logits.sum().backward()
    assert (x.grad != 0).all()


def test_inside_of_a_padded_input_is_that_of_a_larger_one():
    """Far from the padded end the answer does not depend on where the input ends."""
    model = UNet(ModelConfig(spatial_dims=2, depth=2)).eval()
    x = rand(1, 1, 40, 40)
    with torch.inference_mode():
        whole, part = model(x), model(x[..., :33, :35])
    torch.testing.assert_close(part[..., :20, :20], whole[..., :20, :20])


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_evaluation_is_deterministic_and_leaves_the_state_alone(arch):
    model = build_model(ModelConfig(arch=arch, depth=2, num_stacks=2)).eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = rand(2, 1, 6, 6, 6)
    first, second, alone = model(x), model(x), model(x[:1])
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for batch, one in zip(
        first if arch != "unet" else [first], alone if arch != "unet" else [alone], strict=True
    ):
        torch.testing.assert_close(batch[:1], one)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("config", CONFIGS)
def test_state_round_trip(config, tmp_path):
    model = build_model(config)
    torch.save({"config": config.to_dict(), "state": model.state_dict()}, tmp_path / "m.pth")
    stored = torch.load(tmp_path / "m.pth", weights_only=True)
    twin = build_model(ModelConfig.from_dict(stored["config"]))
    twin.load_state_dict(stored["state"])
    x = rand(1, config.in_channels, *(8,) * config.spatial_dims)
    torch.testing.assert_close(model.eval()(x), twin.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)]
)
@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_channels_last_and_bfloat16(dims, layout, arch):
    model = build_model(ModelConfig(arch=arch, spatial_dims=dims, depth=2)).eval()
    x = rand(1, 1, *(9,) * dims)
    plain = model(x)
    swapped = model.to(memory_format=layout)(x.to(memory_format=layout))
    torch.testing.assert_close(plain, swapped, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    low, plain = (out[-1] if isinstance(out, list) else out for out in (low, plain))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), plain, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_a_few_steps_lower_the_loss(arch):
    model = build_model(ModelConfig(arch=arch, spatial_dims=2, depth=2, num_stacks=2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = rand(4, 1, 16, 16)
    target = (x > 0.5).float()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = summed_loss(model, x, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("training", [False, True])
def test_graph_can_be_captured_whole(training: bool):
    """torch.compile finds no graph break in either network (traced without a compiler)."""
    for arch, stride in itertools.product(ARCHITECTURES, (1, 2)):
        config = ModelConfig(arch, spatial_dims=2, depth=2, num_stacks=2, stem_stride=stride)
        model = build_model(config).train(training).to(memory_format=torch.channels_last)
        x = rand(2, 1, 9, 8).contiguous(memory_format=torch.channels_last)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_the_encoder_is_all_that_comes_before_the_way_up(arch: str, stem_stride: int) -> None:
    model = build_model(ModelConfig(arch=arch, depth=2, num_stacks=2, stem_stride=stem_stride))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    encoder = {names[id(parameter)] for parameter in model.encoder.parameters()}
    others = set(names.values()) - encoder
    assert all(name.startswith("stem.") or ".encoder." in name for name in encoder)
    assert not any(name.startswith("stem.") or ".encoder." in name for name in others)
    assert encoder and others and not any(name.startswith("encoder") for name in model.state_dict())
