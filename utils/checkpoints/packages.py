"""Networks for other programs: ONNX files, and packages of bioimage.io that explain themselves.

Arrays of both are float32 (batch, channel, z, y, x), of images (batch, channel, y, x), as files
have them: grey values scaled to 0..1 go in, probabilities come out. Any batch will do, and along
each axis in space any multiple of the network's step. Formats: ONNX with opset 18 (onnx.ai), and
version 0.5 of the model description of bioimage.io. Needs requirements-export.txt.
"""

import importlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.checkpoints.loading import PACKAGED, pack
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.replacing import replacing

OPSET = 18
TOLERANCE = 1e-4  # of another program's probabilities; measured: 3e-6 with ONNX Runtime
HALO_SHARE = 1 / 8  # of a window, on each side: half of the overlap in ``predict.py``
PAPERS = {
    "unet": {"text": "U-Net", "doi": "10.1007/978-3-319-24574-4_28"},
    "stacked_unet": {"text": "Stacked hourglass", "doi": "10.1007/978-3-319-46484-8_29"},
}
TAGS = (
    *("fluorescence-light-microscopy", "brain", "pytorch", "unet", "semantic-segmentation"),
    *("drosophila", "optic-lobe"),
)
USE = """\
## Use in other programs

`rdf.yaml` says the following in a form that programs read.

- Input: one channel of any grey values, axes z, y, x, voxels as long along z as along y and x, and
  columns about {spacing:.1f} voxels apart: resample the stack until they are. Each length is a
  multiple of {step}; blocks of {window} voxels are what the network was trained on.
- Percentiles {low:g} and {high:g} of the whole stack become 0 and 1, and what lies beyond is cut
  off. For most stacks `predict.py` does the same; in 3D it sets other limits where voxels are
  saturated or columns sparse (`utils/grey_values.py`), and it leaves NaN out.
- Output: the probability that a voxel belongs to a column. {halo} voxels at each side of a block
  know too little of their surroundings and are to be cropped. `predict.py` blends its windows
  instead, so that masks differ a little where blocks meet.
- `{packaged}` is this network for `predict.py --checkpoint`, which takes the whole package.

## Validation

`python evaluate.py --checkpoint PACKAGE.zip --data FILE --output FOLDER` scores the network on
labelled volumes that it has not seen.
"""


def check_installed(flag: str, *names: str) -> None:
    """Raise UserError, naming ``flag`` and requirements-export.txt, if a module is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            needs = f"needs {error.name}: pip install -r requirements-export.txt"
            raise UserError(f"{flag} {needs}") from error


def check_origin(authors: Sequence[str], license: str | None) -> None:
    """Raise UserError unless bioimage.io takes these names and this licence, as SPDX writes it."""
    from bioimageio.spec.model.v0_5 import Author, LicenseId
    from pydantic import ValidationError

    try:
        for author in authors:
            Author(name=author)
        if license is not None:
            LicenseId(license)
    except ValidationError as error:
        right = "--authors are names without a slash, --license is one of SPDX such as CC-BY-4.0"
        given = error.errors()[0]["input"]
        raise UserError(f"bioimage.io does not take {given!r}: {right}") from error


class Probabilities(nn.Module):
    """A network as other programs call it: axes as files have them, and no logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, z, y, x), or (batch, 1, y, x), to probabilities of that shape."""
        order = (0, 1, *reversed(range(2, image.ndim)))
        logits = self.network(image.permute(order))
        logits = logits[-1] if isinstance(logits, list) else logits
        return torch.sigmoid(logits).permute(order)


def save_onnx(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Write a network of ``models``, in evaluation, as an ONNX file.

    Of ``state``, its checkpoint, the rule of grey values, spacing (voxels) and patch size go into
    the file's metadata as JSON, and so does its step.
    """
    step = network.size_multiple
    names = "zyx"[-state["model_config"]["spatial_dims"] :]
    lengths = {axis: step * torch.export.Dim(name) for axis, name in enumerate(names, 2)}
    example = torch.zeros(2, 1, *(step * (2 + n) for n in range(len(names))))  # no two alike
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision: not needed
    with warnings.catch_warnings():
        # of torch about itself: its exporter calls what torch.utils has deprecated
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        program = torch.onnx.export(
            Probabilities(network).eval(),
            (example,),
            input_names=["image"],
            output_names=["probability"],
            dynamic_shapes=({0: torch.export.Dim("batch"), **lengths},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    about = {name: state[name] for name in ("normalizer", "spacing_voxels", "patch_size")}
    program.model.metadata_props.update(
        {name: json.dumps(value) for name, value in {**about, "step": step}.items()}
    )
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)


def save_package(
    network: nn.Module,
    state: Mapping[str, Any],
    path: Path,
    *,
    onnx: Path,
    name: str,
    card: str,
    sample: np.ndarray,
    cover: Path,
    authors: Sequence[str] = (),
    license: str | None = None,
) -> None:
    """Write a package of bioimage.io (``.zip``) with a network, and have its own checker run it.

    The network is of ``models``, one channel in and out, in evaluation; ``state`` is its
    checkpoint, of which a copy goes into the package, ``onnx`` its file by :func:`save_onnx`, and
    ``card`` Markdown about it. Of ``sample``, (X, Y, Z) or (X, Y) grey values, the test tensors are
    made; its lengths are multiples of the network's step, and at least two halos and a step. The
    ``cover`` is a picture of at most 500 kB, twice as wide as high; ``authors`` and ``license`` are
    as :func:`check_origin` lets them pass. Raises UserError of the disk, and RuntimeError where the
    checker refuses what was written, which is a bug.
    """
    from bioimageio.core import test_model
    from bioimageio.spec import ValidationContext, save_bioimageio_package
    from bioimageio.spec.model.v0_5 import ModelDescr
    from loguru import logger

    logger.disable("bioimageio")  # tells each of its steps
    with (
        tempfile.TemporaryDirectory() as folder,
        ValidationContext(log_warnings=False, root=Path(folder)),
        warnings.catch_warnings(),
        replacing(path) as temporary,
    ):
        # bioimageio leaves files to Python to close, and misses those of a package outside of it
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        warnings.filterwarnings("ignore", "Found mapping with 'source'", UserWarning)
        files = Path(folder)
        (files / "network.onnx").write_bytes(onnx.read_bytes())
        (files / PACKAGED).write_bytes(pack(state, torch.float32))
        (files / "cover.png").write_bytes(cover.read_bytes())
        lengths, rule = state["spacing_voxels"], _plain_rule(state)
        use = USE.format(
            spacing=sum(lengths) / len(lengths),
            step=network.size_multiple,
            window=state["patch_size"],
            low=rule.low_percent,
            high=rule.high_percent,
            halo=halo(network.size_multiple, state["patch_size"]),
            packaged=PACKAGED,
        )
        (files / "README.md").write_text(f"{card}\n{use}")
        test = np.ascontiguousarray(sample.T, np.float32)[None, None]
        scaled = torch.from_numpy(rule.apply(test, *rule.fit(test)))
        with torch.inference_mode():
            answer = Probabilities(network)(scaled).numpy()
        np.save(files / "test_input.npy", test)
        np.save(files / "test_output.npy", answer)
        about = {
            "format_version": ModelDescr.implemented_format_version,
            "name": "Columns of the fly brain - " + re.sub("[^A-Za-z0-9_+() -]", "_", name)[:80],
            "authors": [{"name": author} for author in authors],
            "license": license,
            **_description(network, state, float(answer.max())),
        }
        save_bioimageio_package(ModelDescr.model_validate(about), output_path=temporary)
        summary = test_model(temporary)
        if summary.status != "passed":
            raise RuntimeError(f"{path}: the checker of bioimage.io refuses it\n{summary.format()}")


def halo(step: int, patch_size: int) -> int:
    """Return the voxels to crop at each side of a block: two halos are a multiple of ``step``.

    So a stack whose lengths are such multiples still has such lengths with halos about it.
    """
    least = step // 2 if step % 2 == 0 else step
    return least * max(1, round(HALO_SHARE * patch_size / least))


def _plain_rule(state: Mapping[str, Any]) -> PercentileNormalizer:
    """Return the rule of grey values as far as bioimage.io can say it."""
    rule = state["normalizer"]
    return PercentileNormalizer(rule["low_percent"], rule["high_percent"], "percentiles")


def _description(network: nn.Module, state: Mapping[str, Any], highest: float) -> dict[str, Any]:
    """Return what ``rdf.yaml`` says of a network; ``highest`` is the largest value tested."""
    config, step, rule = state["model_config"], network.size_multiple, _plain_rule(state)
    edge, dims = halo(step, state["patch_size"]), config["spatial_dims"]
    axes = "zyx"[-dims:]
    lengths = {"min": 2 * edge + step, "step": step}
    space = [{"type": "space", "id": a, "size": lengths, "concatenable": True} for a in axes]
    limits = {"min_percentile": rule.low_percent, "max_percentile": rule.high_percent}
    scaling = {"axes": ["channel", *axes], **limits, "eps": 1e-9}
    clipping = {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}
    image = {
        "id": "image",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["fluorescence"]}, *space],
        "test_tensor": {"source": "test_input.npy"},
        "pad": {"mode": "edge"},
        "preprocessing": [{"id": "scale_range", "kwargs": scaling}, clipping],
    }
    same = {a: {"tensor_id": "image", "axis_id": a} for a in axes}
    space = [{"type": "space", "id": a, "size": same[a], "halo": edge} for a in axes]
    probability = {
        "id": "probability",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["column"]}, *space],
        "test_tensor": {"source": "test_output.npy"},
    }
    tolerance: dict[str, float] = {"relative_tolerance": 0, "mismatched_elements_per_million": 0}
    tolerance["absolute_tolerance"] = min(TOLERANCE, highest / 200)  # below a hundredth of it
    return {
        "type": "model",
        "description": "Probability that a voxel belongs to a column of the fly's optic lobe, in a "
        f"{dims}D fluorescence image.",
        "inputs": [image],
        "outputs": [probability],
        "weights": {"onnx": {"source": "network.onnx", "opset_version": OPSET}},
        "attachments": [{"source": PACKAGED}],
        "covers": [{"source": "cover.png"}],
        "documentation": {"source": "README.md"},
        "cite": [PAPERS[config["arch"]]],
        "tags": [*TAGS, f"{dims}d"],
        "config": {
            "bioimageio": {"reproducibility_tolerance": [tolerance]},
            "columns": {"spacing_voxels": list(state["spacing_voxels"])},
        },
    }
