r"""Hand a trained network on: as part of the program, as ONNX, or as a package of bioimage.io.

    python export_model.py --checkpoint logs/my_experiment --pretrained columns3d
    python evaluate.py --checkpoint columns3d --data vol_data/vol_val_set.h5 --output scores
    python export_model.py --checkpoint logs/my_experiment --pretrained columns3d \
        --evaluation scores --overwrite
    python export_model.py --checkpoint columns3d --onnx columns3d.onnx
    python export_model.py --checkpoint columns3d --bioimageio columns3d.zip \
        --authors "Jane Doe" --license MIT

--pretrained writes assets/pretrained/NAME.pth (kernels in bfloat16, less than 3,000,000 bytes,
nothing but what prediction needs) and NAME.md, a card that says what the network is. From then on
--checkpoint NAME means this network. The card's numbers come from the log directory and from the
evaluation's summary.json. ONNX files and packages need requirements-export.txt; --checkpoint
PACKAGE.zip reads a package back. Exit status 2 for a mistake.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, exit_status
from utils.flags import FlagParser

if TYPE_CHECKING:
    import numpy as np

SAMPLE = 128  # edge of the volume that is simulated for a package
TESTED = 64  # edge of the part of it that is in the package, at most, if the network's step allows
TO_WRITE = ("onnx", "onnxscript")  # what torch needs to write ONNX
TO_CHECK = ("onnxruntime", "bioimageio.core")


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="export_model.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    # fmt: off
    add("--checkpoint", required=True, metavar="PATH",
        help="log directory of an experiment (its best.pth, else its last.pth), a .pth in it, or a "
        "pretrained network's name")
    add("--pretrained", metavar="NAME",
        help="name of the network; replaces a path wherever a checkpoint is asked for")
    add("--onnx", type=Path, metavar="FILE.onnx",
        help="write the network from scaled grey values to probabilities for ONNX Runtime and "
        "others: axes batch, channel, z, y, x, of any lengths that the network takes")
    add("--bioimageio", type=Path, metavar="FILE.zip",
        help="write a package of bioimage.io: the ONNX file, the scaling of grey values, test "
        "tensors, a cover, the card, and the checkpoint itself")
    add("--authors", nargs="+", default=[], metavar="NAME", help="for the package: who made it")
    add("--license", metavar="SPDX", help="for the package: its licence, such as MIT or CC-BY-4.0")
    add("--evaluation", type=Path, metavar="FOLDER",
        help="folder of evaluate.py's results of this network; without it the card has no scores")
    add("--hardware", metavar="STR",
        help="for the card: the machine it was trained on, in words (default: what was recorded)")
    add("--output", type=Path, metavar="FOLDER", help="other folder than assets/pretrained")
    add("--overwrite", action="store_true", help="replace what is there")
    # fmt: on
    flags = parser.parse_args(arguments)
    if flags.pretrained is flags.onnx is flags.bioimageio is None:
        parser.error("--pretrained NAME, --onnx FILE.onnx or --bioimageio FILE.zip is needed")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    return exit_status("export_model.py", lambda: export(flags))


def export(flags: argparse.Namespace) -> None:
    """Write what is asked for; raises UserError for what a user can mend."""
    from utils.checkpoints.loading import SHIPPED, load_checkpoint, log_directory, save_pretrained

    check_outputs(flags)
    written = []
    if flags.pretrained is not None:
        trained = load_checkpoint(flags.checkpoint), log_directory(flags.checkpoint)
        about = {"evaluation": flags.evaluation, "hardware": flags.hardware}
        where = {"folder": flags.output or SHIPPED, "overwrite": flags.overwrite}
        written += save_pretrained(flags.pretrained, *trained, **about, **where)
    if flags.onnx or flags.bioimageio:
        written += export_to_others(flags, written[0] if written else flags.checkpoint)
    print("\n".join(f"wrote {path}" for path in written))


def check_outputs(flags: argparse.Namespace) -> None:
    """Raise UserError if a file for other programs cannot be written, or not here."""
    from utils.checkpoints.packages import check_installed, check_origin
    from utils.stacks.endings import check_free

    needs = {"onnx": (".onnx", TO_WRITE), "bioimageio": (".zip", TO_WRITE + TO_CHECK)}
    for flag, (ending, modules) in needs.items():
        if path := getattr(flags, flag):
            if path.suffix != ending:
                raise UserError(f"--{flag} {path}: the name must end with {ending}")
            check_free(path, overwrite=flags.overwrite)
            check_installed(f"--{flag}", *modules)
    if flags.bioimageio:
        check_origin(flags.authors, flags.license)


def export_to_others(flags: argparse.Namespace, source: str | Path) -> list[Path]:
    """Write the network of a checkpoint for other programs; return the files."""
    from models import ModelConfig, build_model
    from utils.checkpoints.loading import load_checkpoint
    from utils.checkpoints.packages import halo, save_onnx, save_package
    from utils.figures.learning import save_cover
    from utils.prediction.sliding_window import predict_volume
    from utils.prediction.trained_network import read_network

    network, state = read_network(source), load_checkpoint(source)
    config = network.parse_config(ModelConfig.from_dict)
    model = network.restore(build_model(config), "cpu", config.spatial_dims)
    if flags.bioimageio and network.objective not in (None, "segmentation"):
        other = f"{flags.checkpoint} was trained with --objective {network.objective}"
        raise UserError(f"--bioimageio: {other}; packages hold networks that segment")
    name, card = read_card(flags, source, state) if flags.bioimageio else ("", "")
    with tempfile.TemporaryDirectory() as folder:
        onnx = flags.onnx or Path(folder) / "network.onnx"
        save_onnx(model, state, onnx)
        if flags.bioimageio:
            step = model.size_multiple
            most = min(network.patch_size, TESTED)
            edge = max(2 * halo(step, network.patch_size) + step, most - most % step)
            image, mask = draw_sample(config.spatial_dims, edge)
            probability = predict_volume(model, image, network.normalizer, window=edge)
            cover = save_cover(image, mask, probability, Path(folder) / "cover.png")
            about = {"name": name, "card": card, "sample": image, "cover": cover}
            origin = {"authors": flags.authors, "license": flags.license}
            save_package(model, state, flags.bioimageio, onnx=onnx, **about, **origin)
    return [path for path in (flags.onnx, flags.bioimageio) if path]


def read_card(
    flags: argparse.Namespace, source: str | Path, state: Mapping[str, Any]
) -> tuple[str, str]:
    """Return a network's name and its card: what lies beside it, else what its records say."""
    from utils.checkpoints.loading import describe, find_pretrained, log_directory

    file = find_pretrained(source) or Path(source)
    card = file.with_suffix(".md")
    if file.is_file() and card.is_file() and (flags.pretrained or not flags.evaluation):
        return file.stem, card.read_text()
    name = flags.bioimageio.stem
    use = f"`python predict.py --checkpoint {name}.zip --input STACK --output MASK` uses it."
    about = flags.evaluation, flags.hardware
    return name, describe(name, use, state, log_directory(source), *about)


def draw_sample(dims: int, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey values and mask of a cube or square of default data, where columns are."""
    import numpy as np

    from utils.simulation import VolumeConfig, sample_rng, simulate_volume
    from utils.simulation.image import ImageConfig, image_rng, simulate_image

    shape = (max(SAMPLE, edge),) * dims
    if dims == 3:
        sample = simulate_volume(VolumeConfig(shape=shape), sample_rng(0, 0))
    else:
        sample = simulate_image(ImageConfig(shape=shape), image_rng(0, 0))
    middle = np.argwhere(sample.mask).mean(axis=0)
    starts = np.clip(middle - edge // 2, 0, shape[0] - edge).astype(int)
    box = tuple(slice(start, start + edge) for start in starts)
    return sample.image[box], sample.mask[box]


if __name__ == "__main__":
    sys.exit(main())
