r"""Find columns in a stack from a microscope, of any size, with a trained network.

    python predict.py --checkpoint logs/my_experiment --input brain.tif --output brain_mask.tif
    python predict.py --checkpoint logs/my_experiment --input brain.tif --channel 1 \
        --scale auto --output brain_mask.tif --probabilities

Reads TIFF, OME-TIFF, HDF5, NRRD, NIfTI, Zarr, OME-Zarr and NumPy, and writes the same by the
output's ending, with the input's voxel size; TIFFs open in Fiji and napari. Stacks larger than
memory are worked off in layers. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, exit_status
from utils.flags import FlagParser, voxel_ranges, voxel_size
from utils.training.options import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from torch import nn

    from utils.data.normalize import PercentileNormalizer
    from utils.prediction.out_of_core import Plan
    from utils.prediction.sliding_window import Windows
    from utils.prediction.trained_network import TrainedNetwork
    from utils.stacks import Stack

THRESHOLD = 0.5  # probability from which a voxel belongs to the mask
OVERLAP = 0.25  # of a window's edge
SCALE = "1"  # the stack's voxels have the size of the training's
MEMORY_SHARE = 0.8  # of what is free, unless --memory says otherwise
SAME_VOXEL = 0.02  # difference of voxel edges that is not worth resampling
BESIDE_OUTPUT = "beside --output"  # what --probabilities without a file means


@dataclass(frozen=True)
class Task:
    """What is to be predicted, checked and ready."""

    stack: Stack
    model: nn.Module
    normalizer: PercentileNormalizer
    percentiles: tuple[float, float]
    plan: Plan
    outputs: dict[str, Path]
    place: Path
    """The mask as it was asked for: beside its name the planes that are done are kept."""
    recipe: dict[str, Any]
    """All that the result depends on, plain JSON."""


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="predict.py", description=__doc__.splitlines()[0])
    # fmt: off
    add = parser.add_argument_group("files").add_argument
    add("--checkpoint", required=True, metavar="PATH",
        help="log directory of an experiment, a .pth file, or a pretrained network's name")
    add("--input", required=True, metavar="FILE", help="the stack or image: .tif, .tiff, .ome.tif, "
        ".h5, .hdf5, .nrrd, .nii, .nii.gz, .npy, or a .zarr folder")
    add("--output", metavar="FILE",
        help="the mask (0 and 1), in the format of its ending; default: NAME_mask.tif for Fiji "
        "beside the input, NAME_mask.ome.zarr where the map would not fit into --memory")
    add("--probabilities", nargs="?", const=BESIDE_OUTPUT, metavar="FILE",
        help="write the probability map as well; without a name, beside the output")
    add("--overwrite", action="store_true", help="replace outputs that exist")

    add = parser.add_argument_group("what to read").add_argument
    add("--channel", type=int, metavar="INT", help="channel, from 0; needed if there are several")
    add("--voxel_size", type=voxel_size, metavar="Z,Y,X",
        help="edge of a voxel in micrometres, where the file does not tell or is wrong")
    add("--crop", type=voxel_ranges, metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="only this box, in voxels from 0, such as one optic lobe: grey values are scaled by "
        "it alone, and the output has its size")
    add("--key", metavar="STR", help="name of the array inside HDF5 or Zarr")
    add("--index", type=int, metavar="INT",
        help="time point, or sample of a file of generate_3d_data.py, from 0")

    add = parser.add_argument_group("prediction").add_argument
    add("--threshold", type=float, default=THRESHOLD, metavar="FLOAT",
        help="probability from which a voxel belongs to the mask")
    add("--scale", type=scale, default=SCALE, metavar="FACTOR|auto",
        help="enlarge the stack so much for the network (and the result back), so that columns "
        "stand as far apart as in training; auto measures how far they do")
    add("--tta", action="store_true", help="average over mirrored windows: 8 times slower, 4 in 2D")
    add("--window", type=int, metavar="INT",
        help="edge of the sliding window in voxels; default: the patch size of the training")
    add("--overlap", type=float, default=OVERLAP, metavar="FLOAT",
        help="share of a window in common with the next")

    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=DEVICES, default="auto", help="where the network runs")
    add("--precision", choices=PRECISIONS, default="auto", help="bf16 is used where it is fast")
    add("--batch_size", type=int, metavar="INT",
        help="windows that pass the network at once; default: what fits, at most 4")
    add("--memory", type=float, metavar="GB",
        help="most memory to take, in GB (1e9 bytes); default: most of what is free")
    # fmt: on
    return parser.parse_args(arguments)


def scale(text: str) -> float | str:
    """Return the factor, or ``auto``; ArgumentTypeError for anything else."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        message = f"{text!r}: give a factor such as 2.5, or auto"
        raise argparse.ArgumentTypeError(message) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    interrupted = "interrupted; the same command goes on where it stopped"
    return exit_status("predict.py", lambda: predict(flags), interrupted)


def predict(flags: argparse.Namespace) -> int:
    """Do the work; raises UserError for what a user can mend."""
    check_flags(flags)
    outputs = choose_outputs(flags)
    from utils.stacks import open_stack
    from utils.stacks.cropping import crop_stack

    with open_stack(
        flags.input,
        channel=flags.channel,
        voxel_size=flags.voxel_size,
        key=flags.key,
        index=flags.index,
    ) as whole:
        stack = whole if flags.crop is None else crop_stack(whole, flags.crop)
        task = prepare(stack, outputs, flags)
        outputs = task.outputs
        low, high = task.percentiles
        if high > low:
            write_prediction(task, flags.threshold)
        else:
            from utils.prediction.out_of_core import write_empty

            print(
                f"warning: nothing to see: the percentiles {task.normalizer.low_percent:g} and "
                f"{task.normalizer.high_percent:g} of {stack.path} are both {low:g}; the mask is "
                "empty"
            )
            write_empty(stack, outputs)
    print("\n".join(f"wrote {path}" for path in outputs.values()))
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Raise UserError for a number outside its range."""
    for name in ("window", "batch_size"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 0 <= flags.overlap < 1:
        raise UserError(f"--overlap {flags.overlap}: must be at least 0 and below 1, such as 0.25")
    if not 0 < flags.threshold <= 1:
        raise UserError(f"--threshold {flags.threshold}: must lie above 0 and up to 1")
    if flags.scale != "auto" and not 0.05 <= flags.scale <= 20:
        raise UserError(f"--scale {flags.scale}: must be auto or lie in 0.05..20")
    if flags.memory is not None and not 0 < flags.memory < math.inf:
        raise UserError(f"--memory {flags.memory}: must be larger than 0 and finite, in GB")


def choose_outputs(flags: argparse.Namespace) -> dict[str, Path]:
    """Return where mask and probabilities go; raise ValueError if they cannot."""
    from utils.stacks import check_output, format_of, split_ending

    format_of(flags.input)
    source = Path(flags.input)
    default = source.with_name(f"{split_ending(source)[0]}_mask.tif")
    outputs = {"mask": default if flags.output is None else Path(flags.output)}
    check_output(outputs["mask"], overwrite=flags.overwrite)
    if flags.probabilities == BESIDE_OUTPUT:
        stem, ending = split_ending(outputs["mask"])
        outputs["probabilities"] = outputs["mask"].with_name(f"{stem}_probabilities{ending}")
    elif flags.probabilities is not None:
        outputs["probabilities"] = Path(flags.probabilities)
    if "probabilities" in outputs:
        check_output(outputs["probabilities"], overwrite=flags.overwrite)
    check_apart(source, outputs)
    return outputs


def check_apart(source: Path, outputs: Mapping[str, Path]) -> None:
    """Raise UserError if two files are one, or one is in the (Zarr) folder that another one is."""
    places = [source, *outputs.values()]
    for one, other in itertools.permutations(places, 2):
        if one.resolve() == other.resolve():
            what = "is the input itself" if source in (one, other) else "stands for two outputs"
            raise UserError(
                f"{other}: {what}: --input, --output and --probabilities must be different files"
            )
        if other.resolve() in one.resolve().parents:
            raise UserError(f"{one}: lies within {other}, which is another of the files given")


def settle_outputs(
    stack: Stack, outputs: dict[str, Path], room: int, flags: argparse.Namespace
) -> tuple[dict[str, Path], list[str]]:
    """Return the outputs, as OME-Zarr those that would take more than ``room`` bytes, and say so.

    Those are NRRD and NIfTI, which are written as a whole, and a TIFF that nobody asked for by name
    whose voxels a viewer could not hold either.
    """
    from utils.prediction.out_of_core import DTYPES, writing_memory
    from utils.stacks import check_output, split_ending

    settled, notes = {}, []
    for name, path in outputs.items():
        settled[name] = path
        by_default = flags.output is None and flags.probabilities in (None, BESIDE_OUTPUT)
        viewed = math.prod(stack.shape) * DTYPES["probabilities"].itemsize if by_default else 0
        needed = max(writing_memory(stack, name, path), viewed)
        if needed > room:
            settled[name] = path.with_name(split_ending(path)[0] + ".ome.zarr")
            check_output(settled[name], overwrite=flags.overwrite)
            notes.append(
                f"note: {path.name} would take {needed / 1e9:.1f} GB of memory at once; writing "
                f"{settled[name].name} instead"
            )
    check_apart(stack.path, settled)
    return settled, notes


def prepare(stack: Stack, outputs: dict[str, Path], flags: argparse.Namespace) -> Task:
    """Load the network, print the plan, and read the stack once for its percentiles."""
    import torch

    from models import ModelConfig, build_model
    from utils.devices import choose_compute
    from utils.prediction.fusing import fused
    from utils.prediction.out_of_core import (
        check_loading,
        make_plan,
        measure_percentiles,
        resident_memory,
        values_alive,
    )
    from utils.prediction.trained_network import read_network

    network = read_network(flags.checkpoint)
    compute = choose_compute(flags.device, flags.precision)
    config = network.parse_config(ModelConfig.from_dict)
    check_objective(network, flags)
    check_network(config, stack, flags)
    by_planes = config.spatial_dims < len(stack.shape)
    enlarge(stack, 1.0 if flags.scale == "auto" else flags.scale, by_planes)  # refuses what cannot
    model = fused(network.restore(build_model(config), compute.device, config.spatial_dims))
    if by_planes:
        from utils.prediction.planewise import PlaneByPlane

        model = PlaneByPlane(model)

    present, limit, place = resident_memory(), memory_limit(flags), outputs["mask"]
    check_loading(stack, present, limit)
    outputs, notes = settle_outputs(stack, outputs, limit - present, flags)
    shape, reasons = choose_shape(stack, network.spacing, flags, by_planes)
    precision = "bf16" if compute.precision.startswith("bf16") else "32"
    windows = first_windows(shape, network.patch_size, precision, flags, by_planes)
    plan = make_plan(
        stack,
        shape,
        windows,
        values=values_alive(
            config.start_channels,
            stem_stride=config.stem_stride,
            dims=config.spatial_dims,
            stacks=config.num_stacks if config.arch == "stacked_unet" else 1,
        ),
        outputs=outputs,
        present=present,
        limit=limit,
        fixed_batch=flags.batch_size is not None,
    )
    print("\n".join([describe_stack(stack), *reasons, *notes]))  # now that the plan stands
    warning = stack.warning()
    if warning:
        print(f"warning: {warning}")
    print(
        f"network: {config.arch}, {config.spatial_dims}D, epoch {network.epoch}, on "
        f"{compute.device} in {precision} ({compute.reason}), {torch.get_num_threads()} threads"
    )
    print(describe_plan(stack, plan))
    percentiles = measure_percentiles(stack, network.normalizer)
    recipe = {
        "input": [*identify(stack.path), warning, *map(float, percentiles)],
        "choice": [flags.channel, flags.key, flags.index, flags.crop],
        "network": fingerprint(network.weights),
        "normalizer": network.normalizer.to_dict(),
        "network_shape": plan.shape,
        "window": plan.windows.edges,
        "overlap": flags.overlap,
        "tta": flags.tta,
        "precision": precision,
        "threshold": flags.threshold,
    }
    return Task(stack, model, network.normalizer, percentiles, plan, outputs, place, recipe)


def check_objective(network: TrainedNetwork, flags: argparse.Namespace) -> None:
    """Raise UserError for a network whose answer is no probability of belonging to a column."""
    if network.objective == "keypoints":
        raise UserError(
            f"--checkpoint {flags.checkpoint}: was trained with --objective keypoints to find "
            "centres, so its map is no mask; name a network that was trained to segment"
        )


def check_network(config: Any, stack: Stack, flags: argparse.Namespace) -> None:
    """Raise UserError if the network does not fit the stack."""
    if (config.in_channels, config.out_channels) != (1, 1):
        raise UserError(
            f"--checkpoint {flags.checkpoint}: a network with {config.in_channels} input and "
            f"{config.out_channels} output channels; one of each is needed"
        )
    dims = len(stack.shape)
    if config.spatial_dims > dims:
        raise UserError(
            f"--checkpoint {flags.checkpoint}: a {config.spatial_dims}D network, but {stack.path} "
            f"is an image of {dims} axes; name a network of train_basic_{dims}dunet.py"
        )


def choose_shape(
    stack: Stack, trained_spacing: float, flags: argparse.Namespace, by_planes: bool
) -> tuple[tuple[int, ...], list[str]]:
    """Return the shape in which the network sees the stack, and lines that say why."""
    from utils.stacks.resampling import scaled_shape

    factor, reasons = flags.scale, []
    if factor == "auto":
        factor, found = measure_scale(stack, trained_spacing)
        reasons.append(found)
    if by_planes:
        reasons.append("note: a 2D network on a stack: each plane along z is predicted by itself")
    if stack.spacing is None and len(stack.shape) == 3:
        unknown = "note: the voxel size is unknown, so voxels are taken for cubes; see --voxel_size"
        reasons.append(unknown)
    return scaled_shape(stack.shape, enlarge(stack, factor, by_planes)), reasons


def enlarge(stack: Stack, scale: float, by_planes: bool) -> tuple[float, ...]:
    """Return how much each axis is enlarged; ValueError for more than can be meant.

    Voxels become cubes of the finest edge where the spacing is known, times ``scale``; ``z`` stays
    as it is where planes are predicted one by one.
    """
    from utils.stacks.resampling import cube_factors

    axes = len(stack.shape) - by_planes
    factors = cube_factors(stack.spacing and stack.spacing[:axes], scale)[:axes]
    factors = tuple(1.0 if abs(f - 1) <= SAME_VOXEL else f for f in factors)
    return (*factors, 1.0) if by_planes else factors


def measure_scale(stack: Stack, trained: float) -> tuple[float, str]:
    """Return training's column spacing by the stack's, both in voxels, and a line on both."""
    from utils.stacks.column_spacing import estimate_spacing

    found = estimate_spacing(stack)
    if found is None:
        raise UserError(f"--scale auto: no columns to be seen in {stack.path}; give a factor")
    if not found.sure:
        raise UserError(
            f"--scale auto: the spectrum of {stack.path} shows no certain column spacing (best "
            f"guess {found.describe()}); give a factor: {trained:.1f} divided by the distance of "
            "neighbouring columns in voxels"
        )
    factor = trained / found.spacing
    known = f"the network knows {trained:.1f}: enlarged {factor:.2f} times"
    return factor, f"scale: {found.describe()}; {known}"


def first_windows(
    shape: tuple[int, ...],
    patch_size: int,
    precision: str,
    flags: argparse.Namespace,
    by_planes: bool,
) -> Windows:
    """Return the windows as large as they are wanted."""
    from utils.prediction.out_of_core import LARGEST_BATCH
    from utils.prediction.sliding_window import Windows, window_within

    edges = window_within(shape, flags.window or patch_size)
    if by_planes:
        edges = (*edges[:-1], 1)
    batch_size = flags.batch_size or LARGEST_BATCH
    return Windows(edges, flags.overlap, batch_size, flags.tta, precision)


def memory_limit(flags: argparse.Namespace) -> int:
    """Return the bytes that the process may come to."""
    from utils.prediction.out_of_core import available_memory, resident_memory

    if flags.memory is not None:
        return int(flags.memory * 1e9)
    return resident_memory() + int(MEMORY_SHARE * available_memory())


def write_prediction(task: Task, threshold: float) -> None:
    """Predict what is still missing, with a progress bar, and write the outputs."""
    from tqdm import tqdm

    from utils.prediction.out_of_core import predict_files

    voxels, depth = math.prod(task.stack.shape), task.stack.shape[-1]
    windows, done = task.plan.windows.count(task.plan.shape), 0
    with tqdm(total=voxels, unit="voxel", unit_scale=True, desc="predicting") as bar:

        def begun(planes: int) -> None:
            if planes:
                bar.write(f"going on after {planes} of {depth} planes that are done")

        def passed(count: int) -> None:
            nonlocal done
            done += count
            bar.update(voxels * done // windows - bar.n)

        predict_files(
            task.model,
            task.stack,
            task.normalizer,
            task.percentiles,
            task.plan,
            task.outputs,
            threshold=threshold,
            recipe=task.recipe,
            place=task.place,
            begun=begun,
            passed=passed,
        )


def describe_stack(stack: Stack) -> str:
    """Return a line on the input."""
    edges = " x ".join(str(n) for n in stack.shape)
    axes = " x ".join("xyz"[: len(stack.shape)])
    sizes = stack.spacing and " x ".join(f"{size:.4g}" for size in stack.spacing)
    channel = "" if stack.channel is None else f", channel {stack.channel}"
    spacing = f"voxels of {sizes} um" if sizes else "voxels of unknown size"
    return f"input: {stack.path}: {edges} ({axes}), {stack.dtype}{channel}, {spacing}"


def describe_plan(stack: Stack, plan: Plan) -> str:
    """Return a line on how the work will be done."""
    seen = " x ".join(str(n) for n in plan.shape)
    resampled = "" if plan.resampling is None else f", resampled to {seen} and back"
    windows = " x ".join(str(n) for n in plan.windows.edges)
    flips = ", mirrored" if plan.windows.flips else ""
    return (
        f"plan: {plan.windows.count(plan.shape)} windows of {windows}, "
        f"{plan.windows.batch_size} at once{flips}{resampled}; estimated peak memory "
        f"{plan.memory / 1e9:.2f} GB"
    )


def identify(path: Path) -> list[Any]:
    """Return what changes when a file does: where it is, its size and when it was written."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def fingerprint(weights: Mapping[str, Any]) -> str:
    """Return a check sum of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
