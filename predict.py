r"""Find columns in a stack from a microscope, of any size, with a trained network.

    python predict.py --input brain.tif
    python predict.py --checkpoint logs/my_experiment --input brain.tif --channel 1 \
        --scale 2.5 --output brain_mask.nrrd --probabilities
    python predict.py --list brain.tif

Reads TIFF, OME-TIFF, HDF5, NRRD, NIfTI, Zarr, OME-Zarr and NumPy, and writes the same by the
output's ending, with the input's voxel size; TIFFs open in Fiji and napari. BigDataViewer's and
Imaris's files are read, and with requirements-formats.txt CZI. Stacks larger than memory are worked
off in layers. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, exit_status
from utils.flags import (
    VIEWS,
    FlagParser,
    add_column_flags,
    add_stack_flags,
    number_or_auto,
    views_of,
)
from utils.training.options import DEVICES, PRECISIONS, check_values

if TYPE_CHECKING:
    from torch import nn

    from models import ModelConfig
    from utils.data.normalize import PercentileNormalizer
    from utils.devices import Compute
    from utils.grey_values import Limits
    from utils.prediction.sliding_window import Windows
    from utils.prediction.trained_network import TrainedNetwork
    from utils.prediction.whole_stack import StackPrediction
    from utils.stacks import FileArray, Stack

THRESHOLD = "auto"  # probability from which a voxel belongs to the mask
COLUMNS = 0.5  # the same for single columns, of which lower ones find fewer, where that is auto
OVERLAP = 0.25  # of a window's edge
SCALE = "auto"  # as far as the stack shows how far apart its columns stand
CHECKPOINT = "columns3d"  # the network of assets/pretrained/ that is recommended
CHOSEN_BY = {"C": "channel", "S": "channel", "T": "index", "N": "index"}  # an axis's flag
CHOICES = ("channel", "voxel_size", "key", "index", "series", "axes", "crop")  # of open_stack
BESIDE_OUTPUT = "beside --output"  # what --probabilities without a file means
UNSEEN = "--tta averages over mirror images, and the network saw none: masks may be worse"
WORTH_TIMING = 60.0  # seconds in the network from which --precision auto times bfloat16


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="predict.py", description=__doc__.splitlines()[0])
    # fmt: off
    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--checkpoint", default=CHECKPOINT, metavar="PATH",
        help="log directory of an experiment, a .pth file, a package of export_model.py, or a "
        "pretrained network's name")
    add("--input", metavar="FILE", help="the stack or image: .tif, .tiff, .ome.tif, .h5, .hdf5, "
        ".nrrd, .nii, .nii.gz, .npy, .ims, .czi, BigDataViewer's .xml, or a .zarr folder or one in "
        "it")
    add("--list", metavar="FILE",
        help="show what is in a file and what would be read of it, and do nothing else")
    add("--output", metavar="FILE",
        help="the mask (0 and 1), in the format of its ending; default: NAME_mask.tif for Fiji "
        "beside the input")
    add("--probabilities", nargs="?", const=BESIDE_OUTPUT, metavar="FILE",
        help="write the probability map as well; without a name, beside the output")
    add("--columns", action="store_true",
        help="find the single columns as well, as find_columns.py does with the probability map, "
        "which is written too: NAME_labels.tif, NAME_columns.csv, NAME_paths.csv and "
        "NAME_lattice.json beside the mask, and the pictures NAME_lattice.png and NAME_columns.png")
    add("--no-preview", action="store_true",
        help="draw no NAME_preview.png of the mask NAME, three planes with the mask's outline, and "
        "no pictures of --columns")
    add = files.add_mutually_exclusive_group().add_argument
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add("--skip_existing", action="store_true", help="do nothing, status 0, where they all exist")

    add = add_stack_flags(parser)
    add("--percentiles", type=percentiles, metavar="LOW,HIGH",
        help="scale grey values so that these two percentiles of the voxels become 0 and 1; "
        "default: 1 and 99, without saturated voxels, and higher where columns are sparse")
    add("--nan", choices=("background", "error"), default="background",
        help="what NaN and infinite voxels are: background, or a reason to refuse the stack")

    add = parser.add_argument_group("prediction").add_argument
    add("--threshold", type=number_or_auto, default=THRESHOLD, metavar="FLOAT|auto",
        help="probability from which a voxel belongs to the mask; auto takes the one in 0.2..0.5 "
        "at which the mask's expected IoU is highest, by the network's own probabilities")
    add("--scale", type=number_or_auto, default=SCALE, metavar="FACTOR|auto",
        help="enlarge the stack so much for the network (and the result back), so that columns "
        "stand as far apart as in training; auto measures how far they do and says so; where that "
        "is not certain, it takes the scale at which masks agree best with those of mirror images")
    add("--tta", nargs="?", choices=VIEWS, const=VIEWS[0], metavar="VIEWS",
        help="average over views of each window: flips, mirror images (4 times slower; what --tta "
        "alone means; may harm networks trained without them); scales, 0.8 and 1.25 times as large "
        "(3 times); or flips,scales (6 times)")
    add("--no-trust", action="store_true",
        help="do not measure how much the mask changes under small changes of a stack")
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
    add_column_flags(parser, "columns and lattice, with --columns")
    flags = parser.parse_args(arguments)
    if flags.input is None and flags.list is None:
        parser.error("--input FILE is needed, or --list FILE to see what is in one")
    return flags


def percentiles(text: str) -> tuple[float, float]:
    """Return (low, high); ArgumentTypeError unless these are two percentiles in order."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not 0 <= low < high <= 100:
        message = f"{text!r}: give two percentiles in order, such as 1,99.8"
        raise argparse.ArgumentTypeError(message)
    return low, high


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    interrupted = "interrupted; the same command goes on where it stopped"
    return exit_status("predict.py", lambda: predict(flags), interrupted)


def predict(flags: argparse.Namespace) -> None:
    """Do the work; raises UserError for what a user can mend."""
    from utils.stacks import check_input

    if flags.list is not None:
        print(describe_entries(flags.list))
        return
    check_flags(flags)
    check_input(flags.input)
    outputs, preview, columns = name_outputs(flags)
    if flags.skip_existing and skipped(outputs):
        return
    check_outputs(flags, outputs, [*columns.values(), *([preview] if preview else [])])
    from utils.data.normalize import PercentileNormalizer, measure_limits
    from utils.devices import memory_advice
    from utils.figures.stacks import save_preview
    from utils.prediction.trained_network import read_network
    from utils.prediction.whole_stack import StackPrediction, write_prediction
    from utils.stacks import open_stack
    from utils.stacks.endings import not_kept

    choice = {name: getattr(flags, name) for name in CHOICES}
    with ExitStack() as opened, memory_advice("lower --batch_size or --window"):

        def enter(**chosen: Any) -> Stack:
            return opened.enter_context(open_stack(flags.input, **{**choice, **chosen}))

        stack = enter()
        if flags.columns and len(stack.shape) != 3:
            raise UserError(f"--columns: {stack.path} is an image of two axes, not a stack")
        measured = {number: enter(channel=number) for number in flags.measure}
        network = read_network(flags.checkpoint)
        normalizer = network.normalizer
        if flags.percentiles:
            normalizer = PercentileNormalizer(*flags.percentiles, rule="percentiles")
        limits_of = functools.cache(lambda: measure_limits(stack, normalizer))
        plan = make_plan(flags, stack, network, outputs, normalizer, limits_of)
        warning = stack.warning()
        tell_plan(stack, network, plan, warning)
        for lost in filter(None, (not_kept(path, stack.place) for path in outputs.values())):
            print(f"note: {lost}")
        limits = limits_of()
        tell_grey_values(stack, limits, flags)
        found = stack.path.stat()
        source = [str(stack.path.resolve()), found.st_size, found.st_mtime_ns]
        made_from = {
            "input": [*source, warning, limits.low, limits.high],
            "choice": [choice[name] for name in CHOICES if name != "voxel_size"],
            "network": network.fingerprint(),
            "normalizer": normalizer.to_dict(),
            "network_shape": plan.shape,
            "window": plan.windows.edges,
            "overlap": flags.overlap,
            "tta": flags.tta,
            "device": plan.compute.device,
            "precision": plan.compute.precision,
            "threshold": flags.threshold,
        }
        ready = StackPrediction(plan.model, stack, normalizer, limits, plan.shape, plan.windows)
        kept = {"made_from": made_from, "progress": True, "preview": preview is not None}
        asked = None if flags.threshold == "auto" else flags.threshold
        threshold, sections = write_prediction(ready, outputs, asked, **kept)
        if asked is None:
            why = "auto: where the mask's expected IoU is highest; 0.5 keeps columns better apart"
            print(f"threshold: {threshold:.2f} ({why})")
        trust = [] if flags.no_trust else tell_trust(ready, network, plan)
        if columns:
            write_columns_of(flags, stack, measured, outputs["probabilities"], columns)
    written = {**outputs, **columns}
    if preview and sections:
        written["preview"] = save_preview(sections, preview, stack.path.name)
    print("\n".join([*(f"wrote {path}" for path in written.values()), *trust]))


def check_flags(flags: argparse.Namespace) -> None:
    """Raise UserError for a number outside its range."""
    check_values(vars(flags))
    if flags.columns:
        from utils.columns.table import check_colour

        check_colour(flags.colour, flags.measure)
        return
    for name in ("measure", "colour", "origin", "dorsal", "hemisphere"):
        if getattr(flags, name) not in (None, ()):
            raise UserError(f"--{name}: is of single columns; add --columns")


def name_outputs(flags: argparse.Namespace) -> tuple[dict[str, Path], Path | None, dict[str, Path]]:
    """Return where mask and probabilities go, the preview if any, and the columns' files."""
    from utils.stacks import split_ending, zarr_around

    source = zarr_around(flags.input)
    within = Path(flags.input).relative_to(source).parts  # never written into a Zarr folder
    default = source.with_name("_".join([split_ending(source)[0], *within, "mask.tif"]))
    mask = default if flags.output is None else Path(flags.output)
    stem, ending = split_ending(mask)
    outputs = {"mask": mask}
    if flags.probabilities == BESIDE_OUTPUT or (flags.columns and flags.probabilities is None):
        outputs["probabilities"] = mask.with_name(f"{stem}_probabilities{ending}")
    elif flags.probabilities is not None:
        outputs["probabilities"] = Path(flags.probabilities)
    columns = {}
    if flags.columns:
        from utils.columns.finding import column_files

        labels = mask.with_name(f"{stem.removesuffix('_mask')}_labels{ending}")
        columns = column_files(labels, pictures=not flags.no_preview)
    return outputs, None if flags.no_preview else mask.with_name(f"{stem}_preview.png"), columns


def skipped(outputs: Mapping[str, Path]) -> bool:
    """Say what is skipped if all outputs are there; UserError if some are, and others are not."""
    absent = [path for path in outputs.values() if not path.exists()]
    there = [path for path in outputs.values() if path.exists()]
    if absent and there:
        raise UserError(
            f"{absent[0]}: is not there, though {there[0].name} is; --overwrite in place of "
            "--skip_existing makes both"
        )
    print("".join(f"{path}: exists already, skipped\n" for path in there), end="")
    return not absent


def check_outputs(
    flags: argparse.Namespace, outputs: Mapping[str, Path], beside: Sequence[Path]
) -> None:
    """Raise UserError if an output, or a file ``beside`` the mask, cannot be written.

    Also if two files are one, or one is in the (Zarr) folder that another one is.
    """
    from utils.stacks import check_output
    from utils.stacks.endings import check_free

    for path in outputs.values():
        check_output(path, overwrite=flags.overwrite)
    source = Path(flags.input)
    for one, other in itertools.permutations([source, *outputs.values()], 2):
        if one.resolve() == other.resolve():
            what = "is the input itself" if source in (one, other) else "stands for two outputs"
            raise UserError(
                f"{other}: {what}: --input, --output and --probabilities must be different files"
            )
        if other.resolve() in one.resolve().parents:
            raise UserError(f"{one}: lies within {other}, which is another of the files given")
    for path in beside:  # made of the mask, so an earlier one is none to keep
        check_free(path, overwrite=flags.overwrite or flags.skip_existing)


@dataclass(frozen=True)
class Plan:
    """How a stack will be worked off."""

    model: nn.Module  # on its device
    compute: Compute
    shape: tuple[int, ...]  # of what the network sees
    windows: Windows
    reasons: list[str]  # lines that say why it is this shape
    peak: int  # bytes of memory, estimated
    seconds: float  # in the network, estimated


def make_plan(
    flags: argparse.Namespace,
    stack: Stack,
    network: TrainedNetwork,
    outputs: Mapping[str, Path],
    normalizer: PercentileNormalizer,
    limits: Callable[[], Limits],
) -> Plan:
    """Return what fits the stack, the network and the machine; UserError if nothing does."""
    import numpy as np

    from models import build_model
    from utils.devices import Compute, choose_compute, time_step
    from utils.prediction.memory import Memory, check_loading, fit_batch
    from utils.prediction.network_voxels import check_enlargement, network_shape
    from utils.prediction.sliding_window import BATCH_SIZE, Windows, window_within
    from utils.prediction.staging import earlier_record
    from utils.prediction.trained_network import PlaneByPlane, fused
    from utils.prediction.trust import LEAST_IOU, MIRRORED, SEARCH_PASSES, measure_agreement
    from utils.prediction.whole_stack import StackPrediction

    compute = choose_compute(flags.device, flags.precision)
    before = earlier_record(outputs["mask"]) if flags.precision == "auto" else {}
    kept = before.get("device") == compute.device
    if kept:
        compute = Compute(compute.device, before["precision"], "auto: as before")
    config = check_network(network, stack, flags)
    by_planes = config.spatial_dims < len(stack.shape)
    check_enlargement(stack, flags.scale, by_planes=by_planes)
    model = fused(network.restore(build_model(config), compute.device, config.spatial_dims))
    if by_planes:
        model = PlaneByPlane(model)
    memory = Memory.allowed(flags.memory)
    check_loading(stack, memory)

    def fit(shape: tuple[int, ...]) -> tuple[Windows, int, float]:
        edges = window_within(shape, flags.window or network.patch_size)
        edges = (*edges[:-1], 1) if by_planes else edges
        precision = "bf16" if compute.precision.startswith("bf16") else "32"
        size = flags.batch_size or BATCH_SIZE
        windows = Windows(edges, flags.overlap, size, views_of(flags.tta), precision)
        fixed = flags.batch_size is not None
        return fit_batch(model, stack, shape, windows, outputs, memory, fixed_batch=fixed)

    def agreement(shape: tuple[int, ...]) -> float:
        """Return that of masks with their mirror images, NaN where it is not to be trusted."""
        try:
            windows = fit(shape)[0]
        except UserError:  # too large for the memory: not a scale to choose
            return math.nan
        ready = StackPrediction(model, stack, normalizer, limits(), shape, windows)
        rng = np.random.default_rng(0)
        value = measure_agreement(ready, SEARCH_PASSES, rng, MIRRORED).value
        trusted = network.trust and network.trust.expected(value)[0] >= LEAST_IOU
        return value if trusted else math.nan

    options = {"by_planes": by_planes, "agreement": agreement if network.trust else None}
    shape, reasons = network_shape(stack, flags.scale, network.spacing, **options)
    windows, peak, seconds = fit(shape)
    if flags.precision == "auto" and not kept and seconds > WORTH_TIMING:
        batch = (max(2, windows.batch_size), 1, *windows.edges)
        compute = choose_compute(compute.device, "auto", lambda p: time_step(model, batch, p))
        if compute.precision == "bf16-mixed" and windows.precision == "32":
            windows, peak, _ = fit(shape)
    return Plan(model, compute, shape, windows, reasons, peak, seconds)


def check_network(network: TrainedNetwork, stack: Stack, flags: argparse.Namespace) -> ModelConfig:
    """Return the network's configuration; raise UserError if it can make no mask of the stack."""
    from models import ModelConfig

    given = f"--checkpoint {flags.checkpoint}"
    config = network.parse_config(ModelConfig.from_dict)
    if network.objective == "keypoints":
        raise UserError(
            f"{given}: was trained with --objective keypoints to find centres, so its map is no "
            "mask; name a network that was trained to segment"
        )
    if (config.in_channels, config.out_channels) != (1, 1):
        raise UserError(
            f"{given}: a network with {config.in_channels} input and {config.out_channels} output "
            "channels; one of each is needed"
        )
    dims = len(stack.shape)
    if config.spatial_dims > dims:
        raise UserError(
            f"{given}: a {config.spatial_dims}D network, but {stack.path} is an image of {dims} "
            f"axes; name a network of train_basic_{dims}dunet.py"
        )
    return config


def tell_plan(stack: Stack, network: TrainedNetwork, plan: Plan, warning: str | None) -> None:
    """Print what will be done, now that nothing speaks against it."""
    import torch

    shapes = stack.shape, plan.shape, plan.windows.edges
    edges, seen, window = (" x ".join(map(str, shape)) for shape in shapes)
    sizes = stack.spacing and " x ".join(f"{size:.4g}" for size in stack.spacing)
    channel = "" if stack.channel is None else f", channel {stack.channel}"
    windows, compute = plan.windows, plan.compute
    resampled = "" if plan.shape == stack.shape else f", resampled to {seen} and back"
    views = f", averaged over {', '.join(windows.tta)}" if windows.tta else ""
    lines = [
        f"input: {stack.path}: {edges} ({' x '.join('xyz'[: len(stack.shape)])}), {stack.dtype}"
        f"{channel}, voxels of {f'{sizes} um' if sizes else 'unknown size'}",
        *plan.reasons,
        *([f"warning: {warning}"] if warning else []),
        *([f"warning: {UNSEEN}"] if "flips" in windows.tta and not network.mirrored else []),
        f"network: {network.config['arch']}, {network.config['spatial_dims']}D, epoch "
        f"{network.epoch}, on {compute.device} in {windows.precision} ({compute.reason}), "
        f"{torch.get_num_threads()} threads",
        f"plan: {windows.count(plan.shape)} windows of {window}, {windows.batch_size} at once"
        f"{views}{resampled}; estimated peak memory {plan.peak / 1e9:.2f} GB",
    ]
    print("\n".join(lines))


def tell_grey_values(stack: Stack, limits: Limits, flags: argparse.Namespace) -> None:
    """Print what a person should know of the grey values; UserError for what --nan refuses."""
    voxels = math.prod(stack.shape)
    if limits.missing:
        count = f"{limits.missing:,} of {voxels:,} voxels are not finite (NaN or infinite)"
        if limits.missing == voxels:
            raise UserError(f"{stack.path}: {count}; check --channel, --key and --crop")
        if flags.nan == "error":
            raise UserError(f"{stack.path}: {count}; --nan background takes them for background")
        print(f"note: {count}: they are background in the mask and left out of the grey values")
    if limits.low == limits.high:
        print(
            f"warning: nothing to see: the grey values of {stack.path} that become 0 and 1 are "
            f"both {limits.low:g}; the mask is empty. --crop to where the columns are, or "
            "--percentiles LOW,HIGH, may show something"
        )
    for warning in limits.warnings():
        print(f"warning: {warning}")


def tell_trust(ready: StackPrediction, network: TrainedNetwork, plan: Plan) -> list[str]:
    """Return what to tell of how far a 3D prediction is to be trusted; nothing of others."""
    import numpy as np

    from utils.prediction.trust import allowed_passes, describe_trust, measure_agreement

    if network.config["spatial_dims"] != 3 or not ready.limits.high > ready.limits.low:
        return []
    most = allowed_passes(ready.windows.passes(ready.shape), plan.seconds)
    return describe_trust(measure_agreement(ready, most, np.random.default_rng(0)), network.trust)


def write_columns_of(
    flags: argparse.Namespace,
    stack: Stack,
    measured: Mapping[int, Stack],
    probabilities: Path,
    files: dict[str, Path],
) -> None:
    """Find the columns in the map that was written, and print what a user should know."""
    from utils.columns.finding import Landmarks, find_in_stack
    from utils.stacks import open_stack

    with open_stack(probabilities, voxel_size=stack.spacing and stack.spacing[::-1]) as found:
        columns = find_in_stack(
            replace(found, place=stack.place, origin=stack.origin),
            files,
            threshold=COLUMNS if flags.threshold == "auto" else flags.threshold,
            channels=measured,
            landmarks=Landmarks(flags.origin, flags.dorsal, flags.hemisphere),
            memory=flags.memory,
            script=__file__,
        )
    print("\n".join(columns.notes))
    if not flags.no_preview:
        from utils.figures.columns import save_lattice_map, save_planes

        save_lattice_map(columns, files["map"], stack.path.name, flags.colour)
        save_planes(columns, stack, files["planes"], stack.path.name)


def describe_entries(path: str) -> str:
    """Return a table of what is in a file; UserError for one that cannot be read."""
    from utils.stacks import list_stacks

    notes: dict[str, None] = {}
    rows = [("name", "shape", "axes", "type", "voxel size (um)", "read")]
    for entry in list_stacks(path):
        known = sorted(entry.place.known.items(), reverse=True) if entry.place.has_unit else ()
        sizes = ", ".join(f"{axis.lower()} {size:.4g}" for axis, size in known)
        several = [
            f"--{CHOSEN_BY[axis]} 0..{length - 1}"
            for axis, length in zip(entry.axes or "", entry.shape, strict=False)
            if axis in CHOSEN_BY and length > 1
        ]
        if not axes_told(entry):
            several = ["with --axes, such as --axes ZCYX"]
        chosen = " ".join(["yes" if entry.chosen else "no", *several])
        notes.update(dict.fromkeys(f"note: {note}" for note in entry.notes))
        shape = " x ".join(map(str, entry.shape))
        cells = (entry.key or "-", shape, entry.axes or "unnamed", str(entry.dtype))
        rows.append((*cells, sizes or "unknown", chosen))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([f"{path}:", *lines, *notes])


def axes_told(entry: FileArray) -> bool:
    """Return whether it is known which axis of an array is which."""
    from utils.stacks.axes import usual_axes

    if entry.axes is not None:
        return all(a != "Q" or n == 1 for a, n in zip(entry.axes, entry.shape, strict=False))
    try:
        return bool(usual_axes(Path(entry.key), entry.shape))
    except UserError:
        return False


if __name__ == "__main__":
    sys.exit(main())
