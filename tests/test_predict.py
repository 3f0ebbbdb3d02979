import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import predict
from models import ModelConfig, build_model
from utils.checkpoints.loading import load_checkpoint, pack
from utils.data.normalize import PercentileNormalizer
from utils.prediction import network_voxels
from utils.prediction.network_voxels import SpacingEstimate
from utils.prediction.sliding_window import predict_volume
from utils.prediction.staging import Staging
from utils.prediction.thresholds import best_threshold, to_levels
from utils.prediction.trained_network import PlaneByPlane
from utils.prediction.trust import Agreement
from utils.stacks import StackLayout, open_stack, write_stack
from utils.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
SPACING = (0.5, 0.5, 0.5)


def make_log(directory, config, without=(), **changes):
    torch.manual_seed(0)
    experiment = Experiment.create(directory, {}, __file__)
    state = {
        "model_config": config.to_dict(),
        "model_state": build_model(config).state_dict(),
        "normalizer": PercentileNormalizer().to_dict(),
        "spacing_voxels": [9.0] * config.spatial_dims,
        "patch_size": 16,
        "epoch": 3,
        "metrics": {},
    }
    state = {name: value for name, value in {**state, **changes}.items() if name not in without}
    experiment.save_checkpoint("best.pth", state)
    return directory


def make_image(shape, seed=0):
    return np.random.default_rng(seed).poisson(30, shape).astype(np.uint16)


def save(path, image, spacing=SPACING, parents=False):
    path.parent.mkdir(parents=parents, exist_ok=True)
    layout = StackLayout(image.shape, image.dtype, spacing and spacing[: image.ndim])
    write_stack(path, [image], layout)
    return path


def read(path):
    with open_stack(path) as stack:
        return stack.read(), stack.spacing


@pytest.fixture
def log(tmp_path):
    return make_log(tmp_path / "log", ModelConfig(depth=2, start_channels=2))


@pytest.fixture
def brain(tmp_path):
    return save(tmp_path / "brain.tif", make_image((20, 18, 24)))


def run(log, source, output, *flags):
    base = ["--checkpoint", str(log), "--input", str(source), "--output", str(output)]
    return predict.main([*base, "--precision", "32", "--no-preview", *flags])


def expected_map(log, image, window=16, **options):
    state = torch.load(log / "checkpoints" / "best.pth", weights_only=True)
    model = build_model(ModelConfig.from_dict(state["model_config"]))
    model.load_state_dict(state["model_state"])
    return predict_volume(model, image, PercentileNormalizer(), window=window, **options)


@pytest.mark.parametrize("ending", [".tif", ".h5", ".nrrd", ".nii.gz", ".ome.zarr"])
def test_a_stack_becomes_a_mask_and_a_map(log, brain, tmp_path, ending, capsys):
    output = tmp_path / f"mask{ending}"
    expected = expected_map(log, make_image((20, 18, 24)))
    threshold = float(np.median(expected))
    assert run(log, brain, output, "--probabilities", "--threshold", str(threshold)) == 0
    probabilities, spacing = read(tmp_path / f"mask_probabilities{ending}")
    np.testing.assert_allclose(probabilities, expected, atol=2e-5)
    mask, mask_spacing = read(output)
    assert mask.dtype == np.uint8 and 0 < mask.mean() < 1
    np.testing.assert_array_equal(mask, probabilities >= threshold)
    assert spacing == mask_spacing == pytest.approx(SPACING)
    printed = capsys.readouterr()
    assert "20 x 18 x 24 (x x y x z), uint16, voxels of 0.5 x 0.5 x 0.5 um" in printed.out
    assert re.search(r"estimated peak memory \d+\.\d\d GB", printed.out)
    assert f"wrote {output}" in printed.out
    assert "window" in printed.err
    names = {"log", "brain.tif", f"mask{ending}", f"mask_probabilities{ending}"}
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_the_threshold_is_the_best_for_the_map_unless_it_is_given(log, brain, tmp_path, capsys):
    assert run(log, brain, tmp_path / "m.npy", "--probabilities") == 0
    found = np.load(tmp_path / "m_probabilities.npy")
    threshold = best_threshold([to_levels(found)])
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), found >= threshold)
    assert f"threshold: {threshold:.2f} (auto" in capsys.readouterr().out
    assert run(log, brain, tmp_path / "n.npy", "--threshold", "0.5") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "n.npy"), found >= 0.5)
    assert "threshold:" not in capsys.readouterr().out


def test_flips_and_windows(log, brain, tmp_path):
    flags = ["--probabilities", str(tmp_path / "map.npy"), "--tta", "--window", "12"]
    assert run(log, brain, tmp_path / "a.tif", *flags, "--overlap", "0.5") == 0
    options = {"window": 12, "overlap": 0.5, "tta": ("flips",)}
    expected = expected_map(log, make_image((20, 18, 24)), **options)
    np.testing.assert_allclose(read(tmp_path / "map.npy")[0], expected, atol=2e-5)


def test_views_are_averaged_as_told(log, brain, tmp_path, capsys):
    for kinds in ("scales", "flips,scales"):
        flags = ["--probabilities", str(tmp_path / "map.npy"), "--tta", kinds, "--overwrite"]
        assert run(log, brain, tmp_path / "a.tif", *flags) == 0
        expected = expected_map(log, make_image((20, 18, 24)), tta=tuple(kinds.split(",")))
        np.testing.assert_allclose(read(tmp_path / "map.npy")[0], expected, atol=2e-5)
        assert f"averaged over {kinds.replace(',', ', ')}" in capsys.readouterr().out


@pytest.mark.parametrize("kinds", ["flips", "scales", "flips,scales"])
@pytest.mark.parametrize("augment", ["none", "flips", None])
def test_a_network_that_saw_no_mirror_images_is_told(tmp_path, brain, kinds, augment, capsys):
    log = make_log(tmp_path / "log", ModelConfig(depth=2, start_channels=2))
    state = torch.load(log / "checkpoints" / "best.pth", weights_only=True)
    state["flags"] = {} if augment is None else {"augment": augment}  # None: an earlier network
    (tmp_path / "net.pth").write_bytes(pack(state, torch.bfloat16))
    assert run(tmp_path / "net.pth", brain, tmp_path / "a.tif", "--tta", kinds) == 0
    warned = "the network saw none" in capsys.readouterr().out
    assert warned == (augment == "none" and "flips" in kinds)


@pytest.mark.parametrize("kinds", ["turns", "", "flips,", "scales,scales", "inverted"])
def test_views_that_are_none_are_refused(log, brain, tmp_path, kinds, capsys):
    with pytest.raises(SystemExit) as ended:
        run(log, brain, tmp_path / "a.tif", "--tta", kinds)
    assert ended.value.code == 2 and "'flips', 'scales', 'flips,scales'" in capsys.readouterr().err


CALIBRATION = {"offset": 0.0, "slope": 1.0, "low": -0.5, "high": 0.5}


def make_bright_log(directory, **changes):
    """Write a network that calls what is bright column, and so agrees with its mirror image."""
    config = ModelConfig(depth=1, start_channels=1)
    weights = build_model(config).state_dict()
    for name, value in weights.items():
        value.zero_()
        if name.endswith("weight") and value.ndim == 5:
            value[(0, 0, *(n // 2 for n in value.shape[2:]))] = 1.0
        elif name.endswith(("running_var", "weight")):
            value += 1.0
    weights["head.bias"] -= 0.5
    return make_log(directory, config, model_state=weights, **changes)


def test_a_prediction_ends_with_how_far_it_is_to_be_trusted(tmp_path, brain, capsys):
    log = make_bright_log(tmp_path / "bright", trust=CALIBRATION)
    assert run(log, brain, tmp_path / "a.tif", "--scale", "1") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    pattern = r"trust: (0\.\d\d) .*: IoU expected about (0\.\d\d) \(0\.\d\d to 0\.\d\d\)"
    found = re.fullmatch(pattern, last)
    assert found and found[1] == found[2]
    assert run(log, brain, tmp_path / "b.tif", "--scale", "1", "--no-trust") == 0
    assert "trust" not in capsys.readouterr().out
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], read(tmp_path / "b.tif")[0])


def test_trust_is_told_as_unknown_or_low(tmp_path, brain, capsys):
    log = make_bright_log(tmp_path / "bright")
    assert run(log, brain, tmp_path / "a.tif") == 0
    assert "this network is not calibrated" in capsys.readouterr().out.splitlines()[-1]
    log = make_bright_log(tmp_path / "low", trust={**CALIBRATION, "offset": -9.0})
    assert run(log, brain, tmp_path / "b.tif", "--scale", "1") == 0
    assert "warning: not to be trusted" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("offset", "enlarged"), [(0.0, True), (-9.0, False)])
def test_auto_scale_takes_the_most_consistent_one_if_it_is_to_be_trusted(
    tmp_path, brain, offset, enlarged, monkeypatch, capsys
):
    log = make_bright_log(tmp_path / "bright", trust={**CALIBRATION, "offset": offset})
    tried = []

    def measure(ready, *_):
        tried.append(ready.shape)
        value = 0.9 if ready.shape == (25, 22, 30) else 0.6
        return Agreement(value, 1, 1)

    monkeypatch.setattr("utils.prediction.trust.measure_agreement", measure)
    monkeypatch.setattr(network_voxels, "estimate_spacing", lambda stack: None)
    assert run(log, brain, tmp_path / "m.tif", "--no-trust") == 0
    said = capsys.readouterr().out
    assert len(set(tried)) == len(network_voxels.TRIED_SCALES)
    assert ("enlarged 1.25 times, where masks agree best" in said) == enlarged
    assert ("column spacing is seen: voxels as they are; if" in said) != enlarged


@pytest.mark.parametrize(
    ("spacing", "at", "offset", "enlarged"),
    [
        (6.0, (30, 27, 36), 0.0, True),  # agreed on
        (6.0, (20, 18, 24), 0.0, False),  # masks of voxels as they are agree more
        (6.0, (20, 18, 24), -9.0, True),  # the network makes nothing of either: the spacing counts
        (7.0, (26, 23, 31), 0.0, False),  # a spacing that it knows as well
    ],
)
def test_auto_scale_asks_masks_about_a_certain_spacing(
    tmp_path, spacing, at, offset, enlarged, monkeypatch, capsys
):
    log = make_bright_log(tmp_path / "bright", trust={**CALIBRATION, "offset": offset})
    source = save(tmp_path / "a.tif", make_image((20, 18, 24)))

    def measure(ready, *_):
        return Agreement(0.9 if ready.shape == at else 0.6, 1, 1)

    monkeypatch.setattr("utils.prediction.trust.measure_agreement", measure)
    found = SpacingEstimate(spacing, spacing, spacing, 3.0, 9)
    monkeypatch.setattr(network_voxels, "estimate_spacing", lambda stack: found)
    assert run(log, source, tmp_path / "m.tif", "--no-trust") == 0
    said = capsys.readouterr().out
    assert f"columns {spacing} voxels apart" in said
    assert ("resampled to 30 x 27 x 36" in said) == enlarged
    assert ("voxels as they are" in said) != enlarged
    asked = spacing == 6.0 and offset == 0
    assert ("masks agree best with those of mirrored windows" in said) == asked


def test_one_channel_of_several(log, tmp_path):
    images = np.stack([make_image((20, 18, 24), seed) for seed in range(2)])
    metadata = {"axes": "ZCYX"}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, images.transpose(3, 0, 2, 1), imagej=True, metadata=metadata)
    flags = ["--channel", "1", "--voxel_size", "2,2,2", "--probabilities", str(tmp_path / "p.h5")]
    assert run(log, path, tmp_path / "m.tif", *flags) == 0
    probabilities, spacing = read(tmp_path / "p.h5")
    assert spacing == (2, 2, 2)
    np.testing.assert_allclose(probabilities, expected_map(log, images[1]), atol=2e-5)


def test_one_series_of_several(log, tmp_path, capsys):
    images = [make_image((20, 18, n), n) for n in (22, 24)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for image in images:
            writer.write(image.T, photometric="minisblack")
    flags = ["--probabilities", str(tmp_path / "p.npy"), "--overwrite"]
    for chosen, number in ([], 1), (["--series", "0"], 0):
        assert run(log, tmp_path / "a.tif", tmp_path / "m.tif", *flags, *chosen) == 0
        found = read(tmp_path / "p.npy")[0]
        np.testing.assert_allclose(found, expected_map(log, images[number]), atol=2e-5)
        said = "largest of 2 series is read, number 1" in capsys.readouterr().out
        assert said == (not chosen)


def test_the_ratio_of_sizes_without_a_unit_is_used(log, tmp_path, capsys):
    options = {"imagej": True, "resolution": (2, 2), "metadata": {"axes": "ZYX", "spacing": 1}}
    tifffile.imwrite(tmp_path / "a.tif", make_image((20, 18, 12)).T, **options)
    assert run(log, tmp_path / "a.tif", tmp_path / "m.tif", "--scale", "1") == 0
    printed = capsys.readouterr().out
    assert "resampled to 20 x 18 x 24 and back" in printed and "has no unit" in printed
    assert "--voxel_size" in printed and "taken for cubes" not in printed
    with open_stack(tmp_path / "m.tif") as stack:
        assert stack.spacing is None and stack.place.sizes == pytest.approx((0.5, 0.5, 1))


def test_what_an_output_cannot_hold_is_said(log, tmp_path, capsys):
    affine = np.diag([-0.5, -0.5, 0.5, 1.0])
    affine[:3, 3] = 100, 120, 30
    image = nibabel.Nifti1Image(make_image((20, 18, 24)), affine)
    nibabel.save(image, tmp_path / "a.nii.gz")
    flags = ["--voxel_size", "0.5,0.5,0.5", "--probabilities", str(tmp_path / "p.h5")]
    assert run(log, tmp_path / "a.nii.gz", tmp_path / "m.nii.gz", *flags) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "does not hold" in line]
    (note,) = notes
    assert note.startswith("note: ") and note.endswith(
        "p.h5: this format does not hold the place and directions"
    )
    np.testing.assert_allclose(nibabel.load(tmp_path / "m.nii.gz").affine, affine)


def test_flat_voxels_are_resampled_to_cubes_and_back(log, tmp_path, capsys):
    source = save(tmp_path / "a.tif", make_image((20, 18, 12)), (0.5, 0.5, 1.0))
    assert run(log, source, tmp_path / "m.tif", "--scale", "0.8") == 0
    assert "resampled to 16 x 14 x 19 and back" in capsys.readouterr().out
    mask, spacing = read(tmp_path / "m.tif")
    assert mask.shape == (20, 18, 12) and spacing == pytest.approx((0.5, 0.5, 1.0))


def test_a_box_is_predicted_as_if_it_were_the_stack(log, brain, tmp_path, capsys):
    flags = ["--crop", "2:20,:,3:15", "--probabilities", str(tmp_path / "p.tif")]
    assert run(log, brain, tmp_path / "m.tif", *flags) == 0
    probabilities, spacing = read(tmp_path / "p.tif")
    expected = expected_map(log, make_image((20, 18, 24))[3:15, :, 2:20])
    np.testing.assert_allclose(probabilities, expected, atol=2e-5)
    assert spacing == pytest.approx(SPACING)
    assert "12 x 18 x 18 (x x y x z)" in capsys.readouterr().out


def test_an_image_goes_through_a_2d_network(tmp_path):
    log = make_log(tmp_path / "flat", ModelConfig(spatial_dims=2, depth=2, start_channels=2))
    image = make_image((40, 30))
    source = save(tmp_path / "image.tif", image)
    assert run(log, source, tmp_path / "m.tif", "--probabilities", str(tmp_path / "p.tif")) == 0
    probabilities, spacing = read(tmp_path / "p.tif")
    np.testing.assert_allclose(probabilities, expected_map(log, image), atol=2e-5)
    assert spacing == pytest.approx(SPACING[:2])


def test_a_2d_network_takes_a_stack_plane_by_plane(tmp_path, capsys):
    log = make_log(tmp_path / "flat", ModelConfig(spatial_dims=2, depth=2, start_channels=2))
    image = make_image((20, 18, 5))
    source = save(tmp_path / "brain.tif", image, (0.5, 0.5, 1.0))
    flags = ["--probabilities", str(tmp_path / "p.tif"), "--scale", "1.2"]
    assert run(log, source, tmp_path / "m.tif", *flags) == 0
    assert "resampled to 24 x 22 x 5 and back" in capsys.readouterr().out
    assert run(log, source, tmp_path / "m.tif", *flags[:2], "--tta", "--overwrite") == 0
    assert "each plane along z is predicted by itself" in capsys.readouterr().out
    probabilities, spacing = read(tmp_path / "p.tif")
    state = torch.load(log / "checkpoints" / "best.pth", weights_only=True)
    model = build_model(ModelConfig.from_dict(state["model_config"]))
    model.load_state_dict(state["model_state"])
    options = {"window": (16, 16, 1), "tta": ("flips",)}
    expected = predict_volume(PlaneByPlane(model), image, PercentileNormalizer(), **options)
    np.testing.assert_allclose(probabilities, expected, atol=2e-5)
    assert spacing == pytest.approx((0.5, 0.5, 1.0))


def test_a_network_for_centres_is_told_apart(tmp_path, capsys):
    config = ModelConfig(spatial_dims=2, depth=2, start_channels=2)
    log = make_log(tmp_path / "log", config, flags={"objective": "keypoints"})
    source = save(tmp_path / "image.tif", make_image((40, 30)))
    assert run(log, source, tmp_path / "m.tif") == 2
    error = capsys.readouterr().err
    assert "--objective keypoints" in error and error.count("\n") == 1
    assert not (tmp_path / "m.tif").exists()


@pytest.mark.parametrize("value", [0, 7])
def test_an_even_stack_gives_an_empty_mask_and_a_warning(log, tmp_path, value, capsys):
    source = save(tmp_path / "a.tif", np.full((9, 8, 7), value, np.uint8))
    assert run(log, source, tmp_path / "m.tif", "--probabilities") == 0
    mask, spacing = read(tmp_path / "m.tif")
    assert not mask.any() and mask.shape == (9, 8, 7) and spacing == pytest.approx(SPACING)
    assert not read(tmp_path / "m_probabilities.tif")[0].any()
    assert f"are both {value}; the mask is empty" in capsys.readouterr().out


def test_interrupted_work_goes_on(log, brain, tmp_path, monkeypatch, capsys):
    calls = []
    append = Staging.append

    def interrupted(self, slab):
        if calls:
            raise KeyboardInterrupt
        calls.append(slab.shape)
        append(self, slab)

    output = tmp_path / "m.tif"
    monkeypatch.setattr(Staging, "append", interrupted)
    assert run(log, brain, output, "--probabilities") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not output.exists()
    folder = tmp_path / "m.tif.partial"
    assert (folder / "planes.raw").stat().st_size == 8 * 20 * 18 * 4
    monkeypatch.setattr(Staging, "append", append)
    assert run(log, brain, output, "--probabilities") == 0
    assert "going on after 8 of 24 planes" in capsys.readouterr().out
    expected = expected_map(log, make_image((20, 18, 24)))
    np.testing.assert_allclose(read(tmp_path / "m_probabilities.tif")[0], expected, atol=2e-5)
    assert not folder.exists()


FORKED = """
import json, os, signal, sys
from pathlib import Path
import torch
import predict
from tests.training.forked_trainings import in_child
from utils.prediction import trained_network

def run(arguments, syncs):
    forced, fsync = [], os.fsync

    def kill(descriptor):
        fsync(descriptor)
        forced.append(descriptor)
        if len(forced) == syncs:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = kill
    return predict.main(arguments)

torch.set_num_threads(1)
for arguments, syncs in json.loads(sys.argv[1]):
    status, output = in_child(lambda: run(arguments, syncs)), Path(arguments[-1])
    staged = output.with_name(output.name + ".partial") / "planes.raw"
    size = staged.stat().st_size if staged.exists() else 0
    print("ended", status, size, output.exists(), flush=True)
"""


def test_killed_work_goes_on_to_the_same_bits(log, tmp_path):
    """Killed as soon as the disk has a slab; without resampling and with it."""
    source = save(tmp_path / "brain.tif", make_image((20, 18, 60)))
    base = ["--checkpoint", str(log), "--input", str(source), "--probabilities"]
    base += ["--precision", "32", "--batch_size", "2"]
    calls = []
    for scale, syncs in (("1", 5), ("1.3", 6)):
        killed, straight = (
            [*base, "--scale", scale, "--output", str(tmp_path / f"{name}{scale}.h5")]
            for name in ("m", "straight")
        )
        calls += [(killed, syncs), (killed, 0), (straight, 0)]
    # Each in a process of its own: what ran before in one may change a last digit.
    command = [sys.executable, "-c", FORKED, json.dumps(calls)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    ends = re.findall(r"ended (\S+) (\d+) (\w+)\n", ended.stdout)
    assert [status for status, *_ in ends] == ["-9", "0", "0"] * 2, ended.stderr
    said = re.split("ended .*\n", ended.stdout)
    for scale, (_, size, done), resumed in (("1", ends[0], said[1]), ("1.3", ends[3], said[4])):
        planes = int(size) // (4 * 20 * 18)
        assert done == "False" and 0 < planes < 60
        assert f"going on after {planes} of 60 planes" in resumed
        for name in ("", "_probabilities"):
            first, second = (read(tmp_path / f"{n}{scale}{name}.h5") for n in ("m", "straight"))
            np.testing.assert_array_equal(first[0], second[0])
    assert not list(tmp_path.glob("*.partial"))


def test_without_an_output_the_mask_stands_beside_the_input(log, brain, tmp_path, capsys):
    base = ["--checkpoint", str(log), "--input", str(brain), "--precision", "32"]
    assert predict.main([*base, "--probabilities"]) == 0
    assert read(tmp_path / "brain_mask.tif")[0].shape == (20, 18, 24)
    assert read(tmp_path / "brain_mask_probabilities.tif")[0].shape == (20, 18, 24)
    assert f"wrote {tmp_path / 'brain_mask_preview.png'}" in capsys.readouterr().out
    assert predict.main(base) == 2
    assert "brain_mask.tif: exists already" in capsys.readouterr().err


def test_an_input_alone_is_enough(brain, tmp_path, capsys):
    assert predict.main(["--input", str(brain)]) == 0
    said = capsys.readouterr().out
    assert f"network: unet, 3D, epoch {load_checkpoint('columns3d')['epoch']}" in said
    assert "scale: no certain column spacing is seen" in said and "voxels as they are" in said
    names = {"brain.tif", "brain_mask.tif", "brain_mask_preview.png"}
    assert {entry.name for entry in tmp_path.iterdir()} == names
    with Image.open(tmp_path / "brain_mask_preview.png") as picture:
        assert min(picture.size) > 300


def test_a_preview_is_only_replaced_on_request(log, brain, tmp_path, capsys):
    base = ["--checkpoint", str(log), "--input", str(brain)]
    base += ["--output", str(tmp_path / "m.ome.zarr")]
    preview = tmp_path / "m_preview.png"
    preview.write_text("kept")
    assert predict.main(base) == 2
    captured = capsys.readouterr()
    assert "m_preview.png: exists already; --overwrite" in captured.err and not captured.out
    assert preview.read_text() == "kept" and not (tmp_path / "m.ome.zarr").exists()
    assert predict.main([*base, "--overwrite"]) == 0
    with Image.open(preview) as picture:
        picture.verify()


def test_the_preview_is_of_what_was_read_and_found(log, brain, tmp_path, monkeypatch):
    drawn = []

    def keep(sections, path, name):
        drawn.append(sections)
        return path

    monkeypatch.setattr("utils.figures.stacks.save_preview", keep)
    box = make_image((20, 18, 24))[3:, :17, 2:]
    threshold = str(float(np.median(expected_map(log, box))))
    for flags in ([], ["--probabilities"]):
        base = ["--checkpoint", str(log), "--input", str(brain), "--crop", "2:,:17,3:"]
        output = tmp_path / f"m{len(flags)}.h5"
        base += ["--output", str(output), "--threshold", threshold, "--precision", "32"]
        assert predict.main([*base, *flags]) == 0
        sections, mask = drawn[-1], read(output)[0]
        assert 0.1 < mask.mean() < 0.9
        x, y, z = sections.middle
        assert sections.origin == (3, 0, 2) and sections.marked == mask.sum()
        planes = [(slice(None), slice(None), z), (slice(None), y), (x,)]
        for seen, found, where in zip(sections.images, sections.masks, planes, strict=True):
            np.testing.assert_array_equal(found, mask[where])
            assert seen.min() >= 0 and seen.max() <= 1
            inner = (seen > 0) & (seen < 1)
            assert np.corrcoef(seen[inner], box[where][inner])[0, 1] > 0.999


def test_outputs_that_exist_are_skipped_on_request(log, brain, tmp_path, capsys):
    output = tmp_path / "m.tif"
    assert run(log, brain, output, "--skip_existing") == 0
    before = output.stat().st_mtime_ns
    capsys.readouterr()
    assert run(log, brain, output, "--skip_existing") == 0
    assert capsys.readouterr().out == f"{output}: exists already, skipped\n"
    assert output.stat().st_mtime_ns == before
    assert run(log, brain, output, "--skip_existing", "--probabilities") == 2
    said = capsys.readouterr().err
    assert "m_probabilities.tif: is not there, though m.tif is; --overwrite in place" in said
    assert said.count("\n") == 1
    output.unlink()
    assert run(log, brain, output, "--skip_existing") == 0
    assert output.exists()
    assert run(log, brain.with_name("gone.tif"), output, "--skip_existing") == 2
    assert "gone.tif: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(log, brain, output, "--skip_existing", "--overwrite")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_preview_without_its_mask_is_made_again(log, brain, tmp_path):
    flags = ["--checkpoint", str(log), "--input", str(brain), "--output", str(tmp_path / "m.tif")]
    flags += ["--precision", "32", "--skip_existing"]
    assert predict.main(flags) == 0
    (tmp_path / "m.tif").unlink()
    (tmp_path / "m_preview.png").write_bytes(b"of another mask")
    assert predict.main(flags) == 0
    assert (tmp_path / "m.tif").exists()
    Image.open(tmp_path / "m_preview.png").verify()


def test_what_is_in_a_file_is_listed(tmp_path, capsys):
    path = tmp_path / "a.tif"
    stack = np.zeros((2, 5, 3, 7, 8), np.uint16)
    sizes = {"axes": "TZCYX", "spacing": 2.0, "unit": "um"}
    resolution = (4, 4)
    tifffile.imwrite(path, stack, imagej=True, metadata=sizes, resolution=resolution)
    assert predict.main(["--list", str(path)]) == 0
    title, head, row = capsys.readouterr().out.splitlines()
    assert title == f"{path}:"
    assert head.index("axes") == row.index("TZCYX") and head.index("read") == row.index("yes")
    assert "2 x 5 x 3 x 7 x 8  TZCYX  uint16  z 2, y 0.25, x 0.25" in row
    assert row.endswith("yes --index 0..1 --channel 0..2")
    np.save(tmp_path / "b.npy", stack[0, 0])
    assert predict.main(["--list", str(tmp_path / "b.npy")]) == 0
    assert "3 x 7 x 8  unnamed  uint16  unknown" in capsys.readouterr().out
    np.save(tmp_path / "c.npy", np.zeros((5, 6, 7, 8)))
    assert predict.main(["--list", str(tmp_path / "c.npy")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("with --axes, such as --axes ZCYX")
    tifffile.imwrite(tmp_path / "d.tif", stack[0, :, 0], imagej=True, metadata={"spacing": 3.0})
    assert predict.main(["--list", str(tmp_path / "d.tif")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("note: the voxel size in the file")
    assert predict.main(["--list", str(tmp_path / "none.tif")]) == 2
    assert "none.tif: no such file" in capsys.readouterr().err


def test_without_an_input_the_flag_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        predict.main([])
    error = capsys.readouterr().err
    assert "--input FILE is needed" in error and error.count("\n") == 1


def test_an_input_is_never_replaced(log, tmp_path, capsys):
    source = save(tmp_path / "a.ome.zarr", make_image((20, 18, 24)))
    assert run(log, source, source, "--overwrite") == 2
    assert "a.ome.zarr: is the input itself" in capsys.readouterr().err
    inner = save(tmp_path / "outer.zarr" / "in.tif", make_image((20, 18, 24)), parents=True)
    assert run(log, inner, tmp_path / "outer.zarr", "--overwrite") == 2
    assert "in.tif: lies within" in capsys.readouterr().err
    assert read(source)[0].shape == read(inner)[0].shape == (20, 18, 24)


def test_chunks_that_are_absent_are_counted(log, tmp_path, capsys):
    source = save(tmp_path / "a.ome.zarr", make_image((20, 18, 24)))
    (source / "0" / "1" / "0" / "0").unlink()
    assert run(log, source, tmp_path / "m.tif") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 2 and "lies near the noise" in warnings[1]  # it is noise
    assert "a.ome.zarr: chunks absent from its array 0: 1 of 2" in warnings[0]
    assert run(log, source, tmp_path / "n.tif", "--crop", ":16,:,:") == 0
    assert "absent" in capsys.readouterr().out


def test_auto_times_long_work_and_goes_on_in_its_precision(
    log, brain, tmp_path, monkeypatch, capsys
):
    """bfloat16 is taken where it is quicker, and kept by an attempt that would choose otherwise."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    seconds = {"32-true": 2.0, "bf16-mixed": 1.0}
    monkeypatch.setattr("utils.devices.time_step", lambda model, shape, name: seconds[name])
    assert run(log, brain, tmp_path / "short.tif", "--precision", "auto") == 0
    assert "in 32 (auto: too little to do to time bfloat16)" in capsys.readouterr().out
    monkeypatch.setattr(predict, "WORTH_TIMING", 0.0)
    append = Staging.append

    def interrupted(self, slab):
        append(self, slab)
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "append", interrupted)
    assert run(log, brain, tmp_path / "m.tif", "--precision", "auto") == 130
    assert "in bf16 (auto: here a step in bfloat16 is 2.00 times" in capsys.readouterr().out
    monkeypatch.setattr(Staging, "append", append)
    seconds["bf16-mixed"] = 3.0
    assert run(log, brain, tmp_path / "m.tif", "--precision", "auto") == 0
    out = capsys.readouterr().out
    assert "in bf16 (auto: as before)" in out and "going on after 8 of 24 planes" in out
    assert run(log, brain, tmp_path / "n.tif", "--precision", "auto") == 0
    assert "in 32 (auto: here a step in bfloat16 is 0.67 times" in capsys.readouterr().out


def test_work_begun_on_an_incomplete_copy_starts_again(log, tmp_path, monkeypatch, capsys):
    """The folder's own size and time stay as they are when a chunk deep inside arrives."""
    source = save(tmp_path / "a.ome.zarr", make_image((20, 18, 24)))
    chunk = source / "0" / "1" / "0" / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    append = Staging.append

    def interrupted(self, *arguments):
        append(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "append", interrupted)
    assert run(log, source, tmp_path / "m.tif") == 130
    monkeypatch.setattr(Staging, "append", append)
    chunk.write_bytes(content)
    assert run(log, source, tmp_path / "m.tif") == 0
    assert "going on after" not in capsys.readouterr().out
    assert run(log, source, tmp_path / "n.tif") == 0
    np.testing.assert_array_equal(read(tmp_path / "m.tif")[0], read(tmp_path / "n.tif")[0])


def test_nothing_is_announced_before_a_refusal(log, brain, tmp_path, capsys):
    for flags in (["--memory", "0.001"], ["--memory", "0.2", "--probabilities"]):
        assert run(log, brain, tmp_path / "m.nrrd", *flags) == 2
        shown = capsys.readouterr()
        assert "GB are allowed; raise --memory" in shown.err and shown.err.count("\n") == 1
        assert shown.out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--voxel_size", "1e-9,1,1"], "voxels of 1e-09 x 1 x 1 um (z x y x x) .* 1e+09 times"),
        (["--voxel_size", "1,1,1e5"], "voxels of 1 x 1 x 100000 um (z x y x x)"),
        (["--voxel_size", "15,1,1", "--scale", "20"], "would be enlarged 300 times, 200 at most"),
    ],
)
def test_an_implausible_voxel_size_is_named_before_any_work(
    log, brain, tmp_path, flags, message, capsys, monkeypatch
):
    def restore(*_):
        pytest.fail("went on")

    monkeypatch.setattr("utils.prediction.trained_network.TrainedNetwork.restore", restore)
    assert run(log, brain, tmp_path / "m.tif", *flags) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    pattern = re.escape(message).replace(re.escape(" .* "), " .* ")
    assert re.search(pattern, shown.err), shown.err


def test_an_implausible_measured_scale_is_named(log, tmp_path, monkeypatch, capsys):
    source = save(tmp_path / "a.tif", make_image((20, 18, 24)), (0.5, 0.5, 75.0))
    found = SpacingEstimate(4.5, 4.3, 4.7, 3.0, 9)
    monkeypatch.setattr(network_voxels, "estimate_spacing", lambda stack: found)
    assert run(log, source, tmp_path / "m.tif", "--scale", "auto") == 2
    assert "300 times" in capsys.readouterr().err


def test_auto_scale_says_what_it_found(log, tmp_path, monkeypatch, capsys):
    source = save(tmp_path / "a.tif", make_image((20, 18, 24)))
    found = SpacingEstimate(6.0, 5.8, 6.1, 3.0, 9)
    monkeypatch.setattr(network_voxels, "estimate_spacing", lambda stack: found)
    assert run(log, source, tmp_path / "m.tif", "--scale", "auto") == 0
    out = capsys.readouterr().out
    assert "columns 6.0 voxels apart (68 % between 5.8 and 6.1" in out
    assert "the network knows 9.0: enlarged 1.50 times" in out
    assert "resampled to 30 x 27 x 36" in out


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (SpacingEstimate(6.0, 3.8, 9.1, 0.5, 9), "no certain column spacing is seen (best guess"),
        (None, "seen: voxels as they are; if you know it, give --scale 9.0 divided by"),
        (SpacingEstimate(8.0, 7.9, 8.1, 3.0, 9), "the network knows 9.0: near enough"),
    ],
)
def test_auto_scale_leaves_voxels_where_it_is_not_certain(
    log, brain, tmp_path, found, words, monkeypatch, capsys
):
    monkeypatch.setattr(network_voxels, "estimate_spacing", lambda stack: found)
    outputs = [tmp_path / "default.h5", tmp_path / "auto.h5", tmp_path / "one.h5"]
    for output, flags in zip(outputs, ([], ["--scale", "auto"], ["--scale", "1"]), strict=True):
        assert run(log, brain, output, *flags) == 0
        said = capsys.readouterr().out
        assert (words in said and "voxels as they are" in said) != ("1" in flags)
        assert "resampled" not in said
        np.testing.assert_array_equal(read(output)[0], read(outputs[0])[0])


def test_auto_scale_measures_nothing_for_planes_one_by_one(tmp_path, monkeypatch, capsys):
    log = make_log(tmp_path / "flat", ModelConfig(spatial_dims=2, depth=2, start_channels=2))
    source = save(tmp_path / "brain.tif", make_image((20, 18, 5)))
    monkeypatch.setattr(network_voxels, "estimate_spacing", lambda stack: pytest.fail("measured"))
    assert run(log, source, tmp_path / "m.tif") == 0
    assert "spacings are not measured for planes one by one" in capsys.readouterr().out


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """A network and a stack, and all that is wrong with others; not to be changed."""
    place = tmp_path_factory.mktemp("mistakes")
    small = ModelConfig(depth=1, start_channels=1)
    make_log(place / "log", small)
    torch.save({"format": 1, "model_state": Bomb()}, place / "bomb.pth")
    make_log(place / "wide", ModelConfig(depth=1, start_channels=1, in_channels=2))
    make_log(place / "unknown", small, model_config={**small.to_dict(), "arch": "vit"})
    make_log(place / "lacking", small, without=("patch_size",))
    broken = {name: value * np.nan for name, value in build_model(small).state_dict().items()}
    make_log(place / "diverged", small, model_state=broken)
    folder = place / "inputs"
    brain = save(place / "brain.tif", make_image((20, 18, 24)))
    folder.mkdir()
    stack = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    save(folder / "rgb.npy", np.zeros((3, 20, 20), np.uint8))
    stack[2, 3, 4] = np.nan
    save(folder / "nan.tif", stack)
    save(folder / "flat.tif", make_image((9, 8)))
    whole = brain.read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.csv").write_text("no stack")
    (folder / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    sizes = b"NRRD0004\ntype: uint16\ndimension: 3\nsizes: 90000 90000 90000\nendian: little\n"
    (folder / "huge.nrrd").write_bytes(sizes + b"encoding: gzip\n\n")
    os.mkfifo(folder / "pipe.tif")
    save(folder / "a.zarr", make_image((9, 8, 7)))
    np.save(folder / "bomb.npy", np.array([[Bomb()]], object), allow_pickle=True)
    return place


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "none.tif"], "no such file"),
        (["--input", "cut.tif"], "cut"),
        (["--input", "rgb.npy"], "3 channels; name one with --channel 0..2"),
        (["--input", "nan.tif", "--nan", "error"], "voxels are not finite"),
        (["--input", "bomb.npy"], "bomb.npy"),
        (["--input", "notes.csv"], "unknown ending; the known ones are .tif"),
        (["--input", "damaged.h5"], "damaged, cut or not of its ending's format"),
        (["--input", "huge.nrrd"], "read as a whole, which needs about .* GB are allowed"),
        (["--input", "flat.tif"], "3D network, but .* is an image of 2 axes"),
        (["--channel", "4"], "no channels to choose from"),
        (["--crop", "0:4,0:4,10:21"], "10:21 along x: must lie within 0:20"),
        (["--output", "out.png"], "unknown ending"),
        (["--output", "none/out.tif"], "does not exist"),
        (["--output", "inputs"], "unknown ending"),
        (["--probabilities", "out.tif"], "different files"),
        (["--checkpoint", "nowhere"], "does not exist"),
        (["--checkpoint", "brain.tif"], "no readable checkpoint"),
        (["--checkpoint", "bomb.pth"], "no readable checkpoint"),
        (["--checkpoint", "wide"], "2 input and 1 output channels"),
        (["--window", "0"], "--window 0"),
        (["--batch_size", "-1"], "--batch_size -1"),
        (["--overlap", "1"], "--overlap 1"),
        (["--threshold", "2"], "--threshold 2.0: must be auto or lie above 0"),
        (["--scale", "0"], "--scale 0"),
        (["--memory", "0.001"], "GB are allowed; raise --memory"),
        (["--memory", "nan"], "--memory nan"),
        (["--memory", "inf"], "--memory inf: must be larger than 0 and finite"),
        (["--voxel_size", "1e-300,1e-300,1e-300"], "1e-300 x 1e-300 x 1e-300 um .* 0.0001..100000"),
        (["--voxel_size", "1e6,1e6,1e6"], "voxels of 1e\\+06 .* give the right --voxel_size"),
        (["--input", "pipe.tif"], "no regular file"),
        (["--output", ""], "unknown ending"),
        (["--output", "inputs/a.zarr/m.tif"], "a.zarr/m.tif: lies within .*a.zarr"),
        (["--checkpoint", "lacking"], "no whole checkpoint: it lacks 'patch_size'"),
        (["--checkpoint", "diverged"], "weights are not finite"),
        (["--checkpoint", "unknown"], "unknown: its network cannot be built .arch must be one of"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_a_users_mistake_is_one_line(mistakes, flags, message, capsys, monkeypatch):
    if "cuda" in flags:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    base = {"--checkpoint": "log", "--input": "brain.tif", "--output": "out.tif"}
    base = {name: mistakes / value for name, value in base.items()}
    if flags[1] == "inputs/a.zarr/m.tif":
        base["--input"] = mistakes / "inputs" / "a.zarr"
    name, value, *more = flags
    if name == "--input":
        value = mistakes / "inputs" / value
    elif name in ("--output", "--checkpoint", "--probabilities") and value:
        value = mistakes / value
    base[name] = value
    before = sorted(mistakes.rglob("*"))
    assert predict.main([*(str(part) for pair in base.items() for part in pair), *more]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("predict.py: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err)
    assert sorted(mistakes.rglob("*")) == before


def test_an_output_is_only_replaced_on_request(log, brain, tmp_path, capsys):
    output = tmp_path / "m.tif"
    output.write_text("kept")
    assert run(log, brain, output) == 2
    assert "--overwrite" in capsys.readouterr().err and output.read_text() == "kept"
    assert run(log, brain, output, "--overwrite") == 0
    assert read(output)[0].shape == (20, 18, 24)


def test_a_full_disk_is_one_line(log, brain, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.prediction.staging.os.fsync", full)
    assert run(log, brain, tmp_path / "m.tif") == 2
    assert capsys.readouterr().err.endswith("cannot be written (No space left on device)\n")
    assert not (tmp_path / "m.tif").exists()


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, predict\n"
        "try: predict.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'zarr', 'tifffile', 'nibabel', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert answer.returncode == 0, answer.stderr
    assert "--voxel_size Z,Y,X" in answer.stdout


@pytest.mark.parametrize("given", ["99,1", "1", "-1,99", "a,b", "1,101"])
def test_percentiles_that_are_none_are_refused(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict.parse_flags(["--checkpoint", "a", "--input", "b", f"--percentiles={given}"])
    assert "give two percentiles in order" in capsys.readouterr().err
