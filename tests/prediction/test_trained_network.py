"""Checkpoints that predict, and those that cannot: one line each that names the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from models import ModelConfig, build_model
from utils.checkpoints.loading import CheckpointError
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.prediction.trained_network import (
    NetworkPredictions,
    PlaneByPlane,
    fused,
    read_network,
    training_file,
)
from utils.stacks import open_stack
from utils.training.experiment import Experiment

MODEL = nn.Conv3d(1, 1, 1)


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint with some entries changed, or left out where they are None."""

    def write(**changes):
        state = {
            "model_config": {"spatial_dims": 3},
            "model_state": MODEL.state_dict(),
            "normalizer": PercentileNormalizer().to_dict(),
            "spacing_voxels": [9.0, 10.0, 11.0],
            "patch_size": 16,
            "epoch": 3,
        }
        state = {k: v for k, v in {**state, **changes}.items() if v is not None}
        experiment = Experiment.create(tmp_path / "log", {}, __file__)
        experiment.save_checkpoint("best.pth", state)
        return experiment.directory

    return write


def test_a_checkpoint_says_what_prediction_needs(checkpoint):
    network = read_network(checkpoint(flags={"objective": "keypoints", "augment": "flips"}))
    assert (network.epoch, network.patch_size, network.spacing) == (3, 16, 10)
    assert network.normalizer == PercentileNormalizer() and network.objective == "keypoints"
    assert network.mirrored
    assert network.parse_config(lambda plain: plain["spatial_dims"]) == 3
    model = network.restore(nn.Conv3d(1, 1, 1), "cpu", 3)
    assert torch.equal(model.weight, MODEL.weight) and not model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_config": None}, "no whole checkpoint: it lacks 'model_config'"),
        ({"normalizer": None}, "it lacks 'normalizer'"),
        ({"spacing_voxels": None}, "it lacks 'spacing_voxels'"),
        ({"epoch": None}, "it lacks 'epoch'"),
        ({"patch_size": "x"}, "no sound checkpoint"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"spacing_voxels": []}, "no sound checkpoint"),
        ({"normalizer": {"low_percent": "a"}}, "no sound checkpoint"),
        ({"normalizer": {"low_percent": 99.0, "high_percent": 1.0}}, "no sound checkpoint"),
        ({"model_config": "x"}, "no sound checkpoint"),
        ({"flags": 7}, "no sound checkpoint"),
        ({"trust": 7}, "no sound checkpoint"),
        ({"trust": {"offset": 0.0, "slope": 1.0}}, "no sound checkpoint"),
        ({"model_state": {"weight": torch.full((3,), torch.nan)}}, "not finite .weight.*diverged"),
    ],
)
def test_what_cannot_predict_is_named(checkpoint, changes, message):
    path = checkpoint(**changes)
    with pytest.raises(UserError, match=message) as caught:
        read_network(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="none does not exist"):
        read_network(tmp_path / "none")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(CheckpointError):
        read_network(tmp_path / "text.pth")


def test_a_network_that_is_not_known_or_another_one_is_refused(checkpoint):
    network = read_network(checkpoint())

    def refuse(plain):
        raise ValueError("arch must be unet")

    with pytest.raises(UserError, match="log: its network cannot be built .arch must be unet"):
        network.parse_config(refuse)
    with pytest.raises(UserError, match="log: the stored weights do not fit"):
        network.restore(nn.Conv3d(1, 2, 1), "cpu", 3)


def test_a_network_predicts_a_volume_as_an_evaluation_asks(checkpoint, tmp_path, small_volume):
    network = read_network(checkpoint())
    model = network.restore(nn.Conv3d(1, 1, 1), "cpu", 3)
    source = NetworkPredictions(tmp_path / "log", network, model, 2, 16, 0.25, 2, None)
    probabilities, spacing = source.predict(0, small_volume)
    low, high = np.percentile(small_volume.image, (1, 99))
    scaled = np.clip((small_volume.image - low) / (high - low), 0, 1)
    weight, bias = MODEL.weight.item(), MODEL.bias.item()
    expected = 1 / (1 + np.exp(-(weight * scaled + bias)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert spacing is None
    mirrored = replace(source, tta=("flips",)).predict(0, small_volume)[0]
    np.testing.assert_allclose(mirrored, expected, atol=1e-5)
    described = source.describe()
    assert described["model"] == {"spatial_dims": 3, "parameters": 2}
    assert described["window"] == 16 and described["device"] == "cpu" and described["epoch"] == 3


def test_a_training_file_is_known_by_its_seed(tmp_path):
    assert training_file(tmp_path, 5) is None
    train = [{"file": "a.h5", "seed": 4}, {"file": "b.h5", "seed": 5}]
    experiment = Experiment.create(tmp_path / "log", {"data": {"train": train}}, __file__)
    assert training_file(experiment.directory, 5) == "b.h5"
    assert training_file(experiment.directory, 6) is None
    record = experiment.directory / "config.json"
    record.write_text(json.dumps({"data": {"train": {"on_the_fly": [], "seed": 5}}}))
    assert training_file(experiment.directory, 5) is None, "volumes on the fly are in no file"
    for foreign in ("[]", "", '{"a":', '{"data": []}', '{"data": {"train": null}}'):
        record.write_text(foreign)
        assert training_file(experiment.directory, 5) is None


@pytest.mark.parametrize(("dims", "rule"), [(3, "robust"), (2, "percentiles")])
def test_a_checkpoint_that_names_no_rule_of_grey_values(checkpoint, dims, rule):
    plain = {"low_percent": 1.0, "high_percent": 99.0}
    older = checkpoint(model_config={"spatial_dims": dims}, normalizer=plain)
    assert read_network(older).normalizer == PercentileNormalizer(rule=rule)
    read_again = read_network(older).normalizer.to_dict()
    assert read_again == {**plain, "rule": rule}


def test_a_labelled_stack_that_was_trained_on_is_known_wherever_one_stands(tmp_path, monkeypatch):
    entries = [{"seed": 3}, {"file": "lab/a.tif", "box": [[0, 9]]}]
    (tmp_path / "config.json").write_text(json.dumps({"data": {"train": entries}}))
    monkeypatch.chdir(tmp_path)
    assert training_file(tmp_path, files=[tmp_path / "lab" / "a.tif"]) == "lab/a.tif"
    assert training_file(tmp_path, files=[tmp_path / "lab" / "b.tif"]) is None
    assert training_file(tmp_path) is None and training_file(tmp_path, 3) is None


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_network_predicts_a_stack_in_its_own_voxels(checkpoint, tmp_path, small_volume, scale):
    network = read_network(checkpoint())
    model = network.restore(nn.Conv3d(1, 1, 1), "cpu", 3)
    given = (tmp_path / "log", network, model, 2, 16, 0.25, 2, None)
    source = NetworkPredictions(*given, scale=scale)
    smooth = replace(small_volume, image=gaussian_filter(small_volume.image, 2))
    np.save(tmp_path / "a.npy", smooth.image.T)
    with open_stack(tmp_path / "a.npy", voxel_size=(1.0, 0.5, 0.5)) as stack:
        found, spacing = source.predict_stack(stack)
    assert spacing == (0.5, 0.5, 1.0) and found.shape == small_volume.image.shape
    expected, _ = source.predict(0, smooth)
    error = np.abs(found - expected).mean()  # resampled there and back, but not moved
    moved = [np.abs(np.roll(found, 1, axis) - expected).mean() for axis in range(3)]
    assert error < 0.2 * min(moved)


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
