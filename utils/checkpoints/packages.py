"""Networks for other programs: ONNX files, and packages of bioimage.io that explain themselves.

Arrays of both are float32 (batch, channel, z, y, x), of images (batch, channel, y, x), as files
have them: grey values scaled to 0..1 go in, probabilities come out. Any batch will do, and along
each axis in space any multiple of the network's step. Formats: ONNX with opset 18 (onnx.ai), and
version 0.5 of the model description of bioimage.io. Needs requirements-export.txt.
"""

from __future__ import annotations

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

from utils.checkpoints.loading import PACKAGED
from utils.checkpoints.pretrained import pack
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.replacing import replacing

OPSET = 18
TOLERANCE = 1e-4
"""Most that a probability of another program's may differ; measured: 3e-6 with ONNX Runtime."""
HALO_SHARE = 1 / 8
"""Of a window, on each side: half of the overlap with which ``predict.py`` lays its windows."""
PAPERS = {
    "unet": ("U-Net (Ronneberger et al., 2015)", "10.1007/978-3-319-24574-4_28"),
    "stacked_unet": ("Stacked hourglass (Newell et al., 2016)", "10.1007/978-3-319-46484-8_29"),
}
"""By architecture, as CITATION.cff has them."""
USE = """\
## Use in other programs

`bioimageio.yaml` says the following in a form that programs read.

- Input: one channel of any grey values, axes z, y, x, voxels as long along z as along y and x, and
  columns about {spacing:.1f} voxels apart: resample the stack until they are. Each length is a
  multiple of {step}; blocks of {window} voxels are what the network was trained on.
- Percentiles {low:g} and {high:g} of the whole stack become 0 and 1, and what lies beyond is cut
  off. {difference}
- Output: the probability that a voxel belongs to a column. {halo} voxels at each side of a block
  know too little of their surroundings and are to be cropped. `predict.py` blends its windows
  instead, so that masks differ a little where blocks meet.
- `{packaged}` is this network for `predict.py --checkpoint`, which takes the whole package.

## Validation

`python evaluate.py --checkpoint PACKAGE.zip --data FILE --output FOLDER` scores the network on
labelled volumes that it has not seen.
"""
PLAIN = "`predict.py` does the same with this network."
ROBUST = (
    "`predict.py` does the same with most stacks, but sets other limits where voxels are saturated "
    "or columns sparse (`utils/grey_values.py`), and leaves NaN out."
)


def check_packages(flag: str, *names: str) -> None:
    """Raise UserError, naming ``flag`` and requirements-export.txt, if a package is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{flag} needs {error.name}: pip install -r requirements-export.txt"
            ) from error


class Probabilities(nn.Module):
    """A network as other programs call it: axes as files have them, and no logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, z, y, x), or (batch, 1, y, x), to probabilities of that shape."""
        order = (0, 1, *reversed(range(2, image.ndim)))
        logits = self.network(image.permute(order))
        if isinstance(logits, (list, tuple)):
            logits = logits[-1]
        return torch.sigmoid(logits).permute(order)


def save_onnx(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Write a network of ``models``, in evaluation, as an ONNX file; the disk's UserErrors alone.

    ``state`` is its checkpoint. Its rule of grey values, spacing (voxels), patch size and step go
    into the file's metadata as JSON.
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
    name: str,
    card: str,
    sample: np.ndarray,
    cover: Path,
    authors: Sequence[str] = (),
    license: str | None = None,
) -> None:
    """Write a package of bioimage.io with a network, and have its own checker run it.

    Args:
        network: of ``models``, one channel in and out, in evaluation.
        state: its checkpoint; a copy goes into the package.
        path: the package, ``.zip``.
        name: of the network.
        card: Markdown about it, for the package's documentation.
        sample: (X, Y, Z) or (X, Y) grey values of multiples of the network's step, no less than two
            halos and a step, from which the test tensors are made.
        cover: a picture, at most 500 kB, twice as wide as high.
        authors: their names, if they are to be told.
        license: of the network, as SPDX writes it, if it has one.

    Raises:
        UserError: for a licence or author that bioimage.io does not know, and of the disk.
        RuntimeError: the checker refuses what was written, which is a bug.
    """
    from bioimageio.core import test_model
    from bioimageio.spec import ValidationContext, save_bioimageio_package
    from loguru import logger

    logger.disable("bioimageio")  # tells each of its steps
    with (
        tempfile.TemporaryDirectory() as folder,
        ValidationContext(log_warnings=False, progressbar=False),
        warnings.catch_warnings(),
        replacing(path) as temporary,
    ):
        # bioimageio leaves files to Python to close, and misses those of a package outside of it
        warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
        warnings.filterwarnings("ignore", "Found mapping with 'source'", UserWarning)
        files = Path(folder)
        save_onnx(network, state, files / "network.onnx")
        (files / PACKAGED).write_bytes(pack(state, torch.float32))
        (files / "cover.png").write_bytes(cover.read_bytes())
        (files / "README.md").write_text(f"{card}\n{_describe_use(network, state)}")
        test = np.ascontiguousarray(sample.T, np.float32)[None, None]
        rule = _plain_rule(state)
        scaled = torch.from_numpy(rule.apply(test, *rule.fit(test)))
        with torch.inference_mode():
            answer = Probabilities(network)(scaled).numpy()
        np.save(files / "test_input.npy", test)
        np.save(files / "test_output.npy", answer)
        save_bioimageio_package(
            _description(files, network, state, name, authors, license, float(answer.max())),
            output_path=temporary,
        )
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


def _describe_use(network: nn.Module, state: Mapping[str, Any]) -> str:
    lengths, rule = state["spacing_voxels"], _plain_rule(state)
    plain = state["model_config"]["spatial_dims"] == 2
    return USE.format(
        spacing=sum(lengths) / len(lengths),
        step=network.size_multiple,
        window=state["patch_size"],
        low=rule.low_percent,
        high=rule.high_percent,
        difference=PLAIN if plain else ROBUST,
        halo=halo(network.size_multiple, state["patch_size"]),
        packaged=PACKAGED,
    )


def _description(
    files: Path,
    network: nn.Module,
    state: Mapping[str, Any],
    name: str,
    authors: Sequence[str],
    license: str | None,
    highest: float,
) -> Any:
    """Return the model description of ``files``; ``highest`` is the largest value tested."""
    from bioimageio.spec.model import v0_5 as spec
    from pydantic import ValidationError

    try:
        told = {
            "authors": [spec.Author(name=author) for author in authors],
            "license": license and spec.LicenseId(license),
        }
    except ValidationError as error:
        raise UserError(
            f"--authors or --license: bioimage.io does not take them ({error.errors()[0]['msg']})"
        ) from error
    config, step, rule = state["model_config"], network.size_multiple, _plain_rule(state)
    edge = halo(step, state["patch_size"])
    axes = "zyx"[-config["spatial_dims"] :]
    scale = {
        "axes": ("channel", *axes),
        "min_percentile": rule.low_percent,
        "max_percentile": rule.high_percent,
        "eps": 1e-9,
    }
    image = spec.InputTensorDescr(
        id="image",
        axes=[
            spec.BatchAxis(),
            spec.ChannelAxis(channel_names=["fluorescence"]),
            *(
                spec.SpaceInputAxis(
                    id=axis,
                    size=spec.ParameterizedSize(min=2 * edge + step, step=step),
                    concatenable=True,
                )
                for axis in axes
            ),
        ],
        test_tensor=spec.FileDescr(source=files / "test_input.npy"),
        pad=spec.EdgePadding(mode="edge"),  # said, else it is not written
        preprocessing=[
            spec.ScaleRangeDescr(kwargs=spec.ScaleRangeKwargs(**scale)),
            spec.ClipDescr(kwargs=spec.ClipKwargs(min=0.0, max=1.0)),
        ],
    )
    probability = spec.OutputTensorDescr(
        id="probability",
        axes=[
            spec.BatchAxis(),
            spec.ChannelAxis(channel_names=["column"]),
            *(
                spec.SpaceOutputAxisWithHalo(
                    id=axis, halo=edge, size=spec.SizeReference(tensor_id="image", axis_id=axis)
                )
                for axis in axes
            ),
        ],
        test_tensor=spec.FileDescr(source=files / "test_output.npy"),
    )
    paper, doi = PAPERS[config["arch"]]
    tolerance = spec.ReproducibilityTolerance(
        relative_tolerance=0,
        absolute_tolerance=min(TOLERANCE, highest / 200),  # bioimage.io takes less than a hundredth
        mismatched_elements_per_million=0,
    )
    dims = config["spatial_dims"]
    return spec.ModelDescr(
        name="Columns of the fly brain - " + re.sub("[^A-Za-z0-9_+() -]", "_", name)[:80],
        description="Probability that a voxel belongs to a column of the fly's optic lobe, in a "
        f"{dims}D fluorescence image.",
        inputs=[image],
        outputs=[probability],
        weights=spec.WeightsDescr(
            onnx=spec.OnnxWeightsDescr(source=files / "network.onnx", opset_version=OPSET)
        ),
        attachments=[spec.FileDescr(source=files / PACKAGED)],
        covers=[spec.FileDescr(source=files / "cover.png")],
        documentation=spec.FileDescr(source=files / "README.md"),
        cite=[spec.CiteEntry(text=paper, doi=doi)],
        tags=[
            *("fluorescence-light-microscopy", f"{dims}d", "brain", "pytorch", "unet"),
            *("semantic-segmentation", "drosophila", "optic-lobe"),
        ],
        config=spec.Config(
            bioimageio=spec.BioimageioConfig(reproducibility_tolerance=[tolerance]),
            columns={"spacing_voxels": list(state["spacing_voxels"])},
        ),
        **told,
    )
