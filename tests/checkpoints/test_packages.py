"""ONNX files and packages of bioimage.io: run by other programs, they answer as torch does."""

from __future__ import annotations

import gc
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import ModelConfig, build_model
from utils.checkpoints import packages
from utils.checkpoints.loading import PACKAGED, CheckpointError, load_checkpoint
from utils.checkpoints.packages import TOLERANCE, halo, save_onnx, save_package
from utils.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime")
core = pytest.importorskip("bioimageio.core")

# bioimageio leaves the files of a package open until it is forgotten
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

CONFIG = ModelConfig(depth=2, start_channels=2, stem_stride=2, residual=True)
STEP, HALO = 4, 2
SAMPLE = np.random.default_rng(3).poisson(20, (8, 12, 16)).astype(np.float32)


@pytest.fixture(autouse=True, scope="module")
def _forget_packages() -> Iterator[None]:
    yield
    gc.collect()


def make(config: ModelConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network whose answers differ from voxel to voxel, and its checkpoint."""
    torch.manual_seed(1)
    model = build_model(config).train()
    with torch.no_grad():
        for _ in range(20):  # statistics of the batch normalisations
            model(torch.rand(2, 1, *(16,) * config.spatial_dims))
        for name, weight in model.named_parameters():
            if "score" in name or "head" in name:
                weight *= 4
    state = {
        "format": 1,
        "model_config": config.to_dict(),
        "model_state": model.eval().state_dict(),
        "normalizer": {"low_percent": 2.0, "high_percent": 98.0, "rule": "robust"},
        "spacing_voxels": [9.0, 10.0, 11.0][: config.spatial_dims],
        "patch_size": 16,
        "epoch": 3,
        "metrics": {"valid_iou": 0.5},
        "optimizer_state": {"large": torch.zeros(9)},
    }
    return model, state


def torch_answer(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Return probabilities of scaled (batch, 1, z, y, x), by the network as training knows it."""
    order = (0, 1, *range(image.ndim - 1, 1, -1))
    with torch.inference_mode():
        logits = model(torch.from_numpy(np.ascontiguousarray(image.transpose(order))))
    logits = logits[-1] if isinstance(logits, list) else logits
    return torch.sigmoid(logits).numpy().transpose(order)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, dict[str, Any]]:
    return make(CONFIG)


@pytest.fixture(scope="module")
def package(network, tmp_path_factory) -> Path:
    """A package of a 3D network; not to be changed."""
    folder = tmp_path_factory.mktemp("package")
    Image.new("RGB", (200, 100), "teal").save(folder / "picture.png")
    save_onnx(*network, folder / "net.onnx")
    save_package(
        *network,
        folder / "net.zip",
        onnx=folder / "net.onnx",
        name="net/1.5",
        card="# net\n\nA card.\n",
        sample=SAMPLE,
        cover=folder / "picture.png",
        authors=["Jane Doe"],
        license="CC-BY-4.0",
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "net.onnx",
        "net.zip",
        "picture.png",
    ]
    return folder / "net.zip"


def runtime(onnx: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def assert_same(session: Any, model: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    for shape in shapes:
        image = rng.random(shape, np.float32)
        (answer,) = session.run(["probability"], {"image": image})
        expected = torch_answer(model, image)
        assert expected.std() > 100 * TOLERANCE
        np.testing.assert_allclose(answer, expected, rtol=0, atol=TOLERANCE)


def test_onnx_runtime_answers_as_torch_does_for_any_multiple_of_the_step(network, package) -> None:
    model, _ = network
    assert model.size_multiple == STEP
    with zipfile.ZipFile(package) as files:
        session = runtime(files.read("network.onnx"))
    shapes = [(1, 1, 4, 4, 4), (3, 1, 8, 4, 12), (2, 1, 4, 20, 8), (1, 1, 16, 16, 16)]
    assert_same(session, model, shapes)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["normalizer"])["low_percent"] == 2
    assert (about["step"], about["patch_size"]) == ("4", "16")
    assert json.loads(about["spacing_voxels"]) == [9, 10, 11]


def test_a_stacked_network_for_images_becomes_onnx_too(tmp_path: Path) -> None:
    config = ModelConfig(
        arch="stacked_unet", spatial_dims=2, num_stacks=2, depth=1, start_channels=6
    )
    model, state = make(config)
    save_onnx(model, state, tmp_path / "net.onnx")
    session = runtime((tmp_path / "net.onnx").read_bytes())
    assert_same(session, model, [(1, 1, 2, 3), (3, 1, 5, 10), (1, 1, 16, 6)])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_checker_of_bioimage_io_passes_the_package(package) -> None:
    summary = core.test_model(package)
    assert summary.status == "passed", summary.format()
    ran = [detail.name for detail in summary.details if "inference" in detail.name]
    assert len(ran) == 6  # of 1 and 2 at once, in three sizes


def test_a_package_explains_itself(network, package) -> None:
    description = core.load_description(package)
    assert description.name == "Columns of the fly brain - net_1_5"
    assert description.license == "CC-BY-4.0" and description.authors[0].name == "Jane Doe"
    image, probability = description.inputs[0], description.outputs[0]
    assert [axis.id for axis in image.axes] == ["batch", "channel", "z", "y", "x"]
    assert {(a.size.min, a.size.step) for a in image.axes[2:]} == {(2 * HALO + STEP, STEP)}
    assert {axis.halo for axis in probability.axes[2:]} == {HALO}
    assert image.pad.mode == "edge"
    steps = [step.id for step in image.preprocessing]
    assert steps == ["ensure_dtype", "scale_range", "clip", "ensure_dtype"]
    scale = image.preprocessing[1].kwargs
    assert (scale.min_percentile, scale.max_percentile) == (2, 98)
    assert description.config.columns == {"spacing_voxels": [9, 10, 11]}
    with zipfile.ZipFile(package) as files:
        text = " ".join(files.read("README.md").decode().split())
        with Image.open(io.BytesIO(files.read("cover.png"))) as cover:
            assert cover.size == (200, 100)
    for words in (
        "# net A card.",
        "columns about 10.0 voxels apart",
        "Each length is a multiple of 4; blocks of 16 voxels",
        "Percentiles 2 and 98 of the whole stack",
        "2 voxels at each side of a block",
        "## Validation",
    ):
        assert words in text, words


def test_bioimageio_core_answers_as_torch_does_on_grey_values(network, package) -> None:
    from bioimageio.core.digest_spec import create_sample_for_model

    raw = np.random.default_rng(1).poisson(30, (1, 1, 8, 12, 20)).astype(np.uint16)
    description = core.load_description(package)
    edges = [(0, 0), (0, 0), *[(HALO, HALO)] * 3]
    padded = np.pad(raw, edges, mode="edge")  # as it is told to continue a stack
    inside = (..., *[slice(HALO, -HALO)] * 3)
    with core.create_prediction_pipeline(description) as pipeline:
        for given, options, cut in (
            (raw, {"skip_input_padding": True, "skip_output_cropping": True}, ...),
            (padded, {}, inside),
        ):
            sample = create_sample_for_model(description, inputs=raw)
            answer = pipeline.predict_sample_without_blocking(sample, **options)
            low, high = np.percentile(given, (2, 98))
            scaled = np.clip((given - low) / (high - low), 0, 1).astype(np.float32)
            expected = torch_answer(network[0], scaled)[cut]
            found = answer.members["probability"].data.to_numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_package_is_read_back_to_the_bit(network, package) -> None:
    _, state = network
    back = load_checkpoint(package)
    kept = ("model_config", "normalizer", "spacing_voxels", "patch_size", "epoch", "metrics")
    assert {name: back[name] for name in kept} == {name: state[name] for name in kept}
    assert "optimizer_state" not in back
    assert back["model_state"].keys() == state["model_state"].keys()
    for name, weight in back["model_state"].items():
        assert torch.equal(weight, state["model_state"][name])


def damaged(package: Path) -> bytes:
    """Return a package in which a byte of the checkpoint is another one."""
    content = bytearray(package.read_bytes())
    with zipfile.ZipFile(package) as files:
        member = files.getinfo(PACKAGED)
    content[member.header_offset + 1000] ^= 0xFF
    return bytes(content)


def zipped(*names: str) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as files:
        for name in names:
            files.writestr(name, "x")
    return memory.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda package: zipped("rdf.yaml", "weights.pt"), "of another program.*checkpoint.pth"),
        (lambda package: zipped("bioimageio.yaml"), "of another program.*checkpoint.pth"),
        (lambda package: zipped("rdf.yaml", PACKAGED), "no readable checkpoint"),
        (lambda package: zipped("holiday.jpg"), "no readable checkpoint"),
        (lambda package: zipped(), "no readable checkpoint"),
        (lambda package: package.read_bytes()[:-100], "no readable checkpoint"),
        (lambda package: package.read_bytes()[:100], "no readable checkpoint"),
        (damaged, "no readable checkpoint"),
    ],
)
def test_foreign_and_damaged_zips_are_one_line(package, tmp_path, content, message) -> None:
    path = tmp_path / "other.zip"
    path.write_bytes(content(package))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_checker_refuses_is_a_bug_and_leaves_nothing(network, tmp_path: Path) -> None:
    Image.new("RGB", (2, 1)).save(tmp_path / "cover.png")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    about = {"name": "net", "card": "", "sample": SAMPLE, "cover": tmp_path / "cover.png"}
    with pytest.raises(RuntimeError, match="the checker of bioimage.io refuses it"):
        save_package(*network, tmp_path / "net.zip", onnx=tmp_path / "bad.onnx", **about)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx", "cover.png"]


@pytest.mark.parametrize(("authors", "license"), [(["a/b"], None), (["Jane Doe"], "MITT")])
def test_names_and_licences_are_checked(authors: list[str], license: str | None) -> None:
    with pytest.raises(UserError, match="bioimage.io does not take '(a/b|MITT)'"):
        packages.check_origin(authors, license)
    packages.check_origin(["Jane Doe"], "MIT")


@pytest.mark.parametrize(
    ("step", "patch_size", "expected"),
    [(16, 64, 8), (8, 64, 8), (4, 16, 2), (2, 8, 1), (1, 64, 8), (1, 1, 1), (6, 48, 6), (9, 64, 9)],
)
def test_two_halos_are_a_multiple_of_the_step(step: int, patch_size: int, expected: int) -> None:
    assert halo(step, patch_size) == expected and 2 * expected % step == 0
