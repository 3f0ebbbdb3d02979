r"""Score predictions of whole volumes against the truth, beside a mask of the whole sheet.

    python evaluate.py --checkpoint logs/my_experiment --data vol_data/vol_val_set.h5
    python evaluate.py --checkpoint logs/my_experiment/checkpoints/last.pth \
        --data vol_data/vol_val_set.h5 --volumes 8 --output scores_of_last
    python evaluate.py --predictions masks/ --data vol_data/vol_val_set.h5
    python evaluate.py --compare logs/first logs/second --data vol_data/vol_val_set.h5

The baseline is a mask of the whole sheet in which the columns stand, computed from the stored axes:
it scores an IoU of 0.44 in the middle of the sheet without telling one column from the next.
Predictions are scored over the whole volume, and once more inside the sheet, where columns must be
told apart. Writes metrics.csv (a row a volume), summary.json (means with 95 % bootstrap intervals
over the volumes), predictions.png (the best, the median and the worst volumes), columns.png (recall
by column type, left-out ones apart) and conditions.png (the score against noise, spacing, curvature
and labelled share). --compare writes the paired differences B - A besides.

A prediction file belongs to the volume whose index, from 0, is the last number in its name.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, exit_status
from utils.flags import FlagParser, voxel_size
from utils.training.options import DEVICES

if TYPE_CHECKING:
    from utils.evaluation.comparison import Compared, Rows
    from utils.evaluation.prediction_files import PredictionFiles
    from utils.evaluation.scored_volumes import ScoredVolume
    from utils.evaluation.statistics import PairedDifference
    from utils.prediction.trained_network import NetworkPredictions
    from utils.storage import VolumeFile

OVERLAP = 0.25  # of a window's edge
BATCH_SIZE = 4  # windows
SURFACE_TOLERANCE = 1.0  # voxels up to which two surfaces agree
SEED = 0  # of the bootstrap
LESS_MEMORY = "lower --batch_size or --window"
COMPARISON = "comparison"  # folder for the results of --compare


@dataclass(frozen=True)
class Task:
    """What is to be scored, checked and ready."""

    source: NetworkPredictions | PredictionFiles
    file: VolumeFile
    indices: tuple[int, ...]
    output: Path


@dataclass(frozen=True)
class Side:
    """A or B of a comparison: scores of an earlier evaluation, or what is to be scored."""

    about: Compared
    rows: Rows
    """Scores by volume; empty for a task that has not been scored."""
    task: Task | None = None


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="evaluate.py", description=__doc__.splitlines()[0])
    # fmt: off
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", metavar="PATH",
        help="log directory of an experiment (its best.pth, else its last.pth), a .pth file, or a "
        "pretrained network's name")
    what.add_argument("--predictions", nargs="+", metavar="FILE_OR_FOLDER",
        help="masks or probability maps in any format of predict.py; the last number in a file's "
        "name is the index of its volume, from 0")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"),
        help="two checkpoints, two folders of predictions, or two folders with the metrics.csv of "
        "earlier evaluations: paired differences B - A")
    add = parser.add_argument
    add("--data", metavar="FILE",
        help="HDF5 file of generate_3d_data.py; --compare of two metrics.csv needs none")
    add("--volumes", type=int, metavar="INT",
        help="volumes to score, from the first on (default: all)")
    add("--output", metavar="FOLDER",
        help="folder for the results (default: evaluation/ in the log directory or beside the "
        f"prediction files; {COMPARISON}/ for --compare)")
    add = parser.add_argument_group("surfaces").add_argument
    add("--surface_tolerance", type=float, default=SURFACE_TOLERANCE, metavar="FLOAT",
        help="distance up to which surfaces agree in surface Dice: in voxels, or for the score in "
        "micrometres in longest edges of a voxel")
    add("--voxel_size", type=voxel_size, metavar="Z,Y,X",
        help="edge of a voxel in micrometres, for distances in micrometres as well (default: what "
        "the prediction files say; simulated volumes have none)")
    add("--no_surface", action="store_true", help="leave out HD95 and surface Dice")
    add = parser.add_argument_group("prediction by a checkpoint").add_argument
    add("--window", type=int, metavar="INT",
        help="edge of the sliding window, in voxels (default: the patch size of the training)")
    add("--overlap", type=float, default=OVERLAP, metavar="FLOAT",
        help="share of a window in common with the next")
    add("--batch_size", type=int, default=BATCH_SIZE, metavar="INT",
        help="windows that pass the network at once")
    add("--device", choices=DEVICES, default="auto",
        help="where the network runs, in float32; auto takes CUDA where there is some")
    add = parser.add_argument_group("statistics").add_argument
    add("--seed", type=int, default=SEED, metavar="INT",
        help="seed of the bootstrap over volumes")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    work = compare if flags.compare else evaluate
    return exit_status(
        "evaluate.py", lambda: work(flags), "interrupted before all results were written"
    )


# One set of predictions ---------------------------------------------------------------------------


def evaluate(flags: argparse.Namespace) -> int:
    """Score, write and print; raises UserError for what a user can mend."""
    task = prepare(flags)
    from utils.devices import memory_advice
    from utils.evaluation.results_folder import write_results
    from utils.evaluation.score_report import score_lines
    from utils.evaluation.scored_volumes import average
    from utils.figures.evaluated import save_evaluation

    with memory_advice(LESS_MEMORY):
        results = score_volumes(task, flags)
    means = average([result.scores for result in results], flags.seed)
    paths = write_results(task.output, results, means, about(task, flags))
    paths += save_evaluation(results, means, task.output)
    lines = score_lines({result.index: result.scores for result in results}, means)
    print("\n".join([*lines, *(f"wrote {path}" for path in paths)]))
    print("".join(f"note: {note}\n" for note in notes(task)), end="")
    return 0


def prepare(flags: argparse.Namespace) -> Task:
    """Check the flags, read data file and checkpoint or predictions, make the output folder.

    Raises UserError for anything that a user would have to put right.
    """
    from utils.evaluation.results_folder import make_folder

    check_flags(flags)
    given = flags.checkpoint or flags.predictions
    task = prepare_source(flags, given, is_checkpoint=flags.checkpoint is not None)
    return dataclasses.replace(task, output=make_folder(default_output(flags)))


def check_flags(flags: argparse.Namespace) -> None:
    """Raise UserError for a number outside its range."""
    from utils.simulation.streams import check_seed

    for name in ("volumes", "window", "batch_size"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 0 <= flags.overlap < 1:
        raise UserError(f"--overlap {flags.overlap}: must be at least 0 and below 1, such as 0.25")
    check_seed(flags.seed, "--seed")
    if not 0 <= flags.surface_tolerance < math.inf:
        raise UserError(
            f"--surface_tolerance {flags.surface_tolerance}: must be at least 0 and finite"
        )
    if flags.voxel_size is not None and len(flags.voxel_size) != 3:
        raise UserError(f"--voxel_size: has {len(flags.voxel_size)} numbers; give z,y,x")
    if flags.voxel_size is not None:
        from utils.stacks.resampling import check_spacing

        check_spacing(flags.voxel_size[::-1])


def prepare_source(
    flags: argparse.Namespace, given: str | Sequence[str], *, is_checkpoint: bool
) -> Task:
    """Return what a checkpoint, or prediction files, take to be scored; writes nothing."""
    from utils.checkpoints.loading import log_directory
    from utils.evaluation.prediction_files import choose_predictions
    from utils.prediction.trained_network import training_file
    from utils.storage import VolumeFile, version_note

    if flags.data is None:
        raise UserError("--data: a file of generate_3d_data.py is needed to score against")
    source: NetworkPredictions | PredictionFiles
    if is_checkpoint:
        network = load_network(str(given), flags)
    file = VolumeFile(flags.data)
    if note := version_note(file.path, file.program_version):
        print(note, file=sys.stderr)
    volumes = len(file) if flags.volumes is None else flags.volumes
    if volumes > len(file):
        raise UserError(f"--volumes {volumes}: {flags.data} holds {len(file)}")
    if is_checkpoint:
        trained_on = training_file(log_directory(network.checkpoint), file.seed)
        source = dataclasses.replace(network, trained_on=trained_on)
        indices = tuple(range(volumes))
    else:
        paths = [given] if isinstance(given, str) else given
        source = choose_predictions(paths, file.shape, len(file), flags.volumes)
        indices = tuple(source.paths)
    return Task(source, file, indices, Path())


def load_network(checkpoint: str, flags: argparse.Namespace) -> NetworkPredictions:
    """Return a checkpoint's network on the device asked for; ValueError if it cannot serve."""
    from models import ModelConfig, build_model, count_parameters
    from utils.devices import choose_compute
    from utils.prediction.trained_network import NetworkPredictions, read_network

    network = read_network(checkpoint)
    compute = choose_compute(flags.device, "32")
    config = network.parse_config(ModelConfig.from_dict)
    if (config.spatial_dims, config.in_channels, config.out_channels) != (3, 1, 1):
        raise UserError(
            f"--checkpoint {checkpoint}: a {config.spatial_dims}D network with "
            f"{config.in_channels} input and {config.out_channels} output channels cannot segment "
            f"the volumes of {flags.data}; a 3D network with one of each is needed"
        )
    model = network.restore(build_model(config), compute.device, 3)
    return NetworkPredictions(
        checkpoint=Path(checkpoint),
        network=network,
        model=model,
        parameters=count_parameters(model),
        window=flags.window or network.patch_size,
        overlap=flags.overlap,
        batch_size=flags.batch_size,
        trained_on=None,
    )


def default_output(flags: argparse.Namespace) -> Path:
    """Return the folder for the results."""
    if flags.output:
        return Path(flags.output)
    if flags.compare:
        return Path(COMPARISON)
    if flags.checkpoint:
        from utils.checkpoints.loading import log_directory

        return log_directory(flags.checkpoint) / "evaluation"
    first = Path(flags.predictions[0])
    is_stack = first.is_file() or first.name.endswith(".zarr")
    return (first.parent if is_stack else first) / "evaluation"


def score_volumes(
    task: Task, flags: argparse.Namespace, what: str = "volumes"
) -> list[ScoredVolume]:
    """Predict and score the volumes one after the other, with a progress bar."""
    from tqdm import tqdm

    with task.file, tqdm(task.indices, what, unit="volume") as bar:
        results = []
        for index in bar:
            results.append(score_one(task, index, flags))
            mean = sum(result.scores["iou"] for result in results) / len(results)
            bar.set_postfix_str(f"mean IoU {mean:.3f}")
    return results


def score_one(task: Task, index: int, flags: argparse.Namespace) -> ScoredVolume:
    """Predict and score one volume."""
    from utils.evaluation.scored_volumes import score_prediction

    volume = task.file.read_volume(index)
    start = time.perf_counter()
    probabilities, spacing = task.source.predict(index, volume)
    return score_prediction(
        index,
        volume,
        probabilities,
        seconds=time.perf_counter() - start,
        tolerance=None if flags.no_surface else flags.surface_tolerance,
        spacing=spacing if flags.voxel_size is None else flags.voxel_size[::-1],
    )


def about(task: Task, flags: argparse.Namespace) -> dict[str, Any]:
    """Return what was scored and how, as plain JSON."""
    from utils.evaluation.results_folder import describe_data
    from utils.provenance import describe_program

    return {
        "bootstrap_seed": flags.seed,
        "surface_tolerance_voxels": None if flags.no_surface else flags.surface_tolerance,
        "voxel_size_zyx_um": flags.voxel_size,
        **task.source.describe(),
        "data": describe_data(task.file, task.indices, task.source.trained_on),
        "program": describe_program(__file__),
    }


def notes(task: Task) -> list[str]:
    """Return what a reader of the scores should know."""
    from utils.evaluation.prediction_files import PredictionFiles

    found = []
    if task.source.trained_on:
        found.append(
            f"{task.source.trained_on}, which the network was trained on, has the seed of this file"
        )
    if isinstance(task.source, PredictionFiles):
        found.extend(task.source.warnings)
        if len(task.indices) < len(task.file):
            count = len(task.indices)
            found.append(f"predictions were given for {count} of the {len(task.file)} volumes")
    return found


# Two sets of predictions --------------------------------------------------------------------------


def compare(flags: argparse.Namespace) -> int:
    """Score what is not scored yet, write and print the paired differences; return the status."""
    from utils.devices import memory_advice
    from utils.evaluation.comparison import check_comparable, subtract
    from utils.evaluation.results_folder import make_folder, write_comparison, write_results
    from utils.evaluation.score_report import comparison_lines
    from utils.evaluation.scored_volumes import average
    from utils.figures.evaluated import save_evaluation
    from utils.provenance import describe_program

    check_flags(flags)
    sides = [prepare_side(flags, given) for given in flags.compare]
    a, b = (side.about for side in sides)
    check_comparable(a, b)
    output = make_folder(default_output(flags))
    with memory_advice(LESS_MEMORY):
        scored = [score_side(s, flags, x) for s, x in zip(sides, "AB", strict=True)]
    paths: list[Path] = []
    for (_, results), side, letter in zip(scored, sides, "AB", strict=True):
        if side.task is not None:
            means = average([result.scores for result in results], flags.seed)
            folder = make_folder(output / letter)
            paths += write_results(folder, results, means, about(side.task, flags))
            paths += save_evaluation(results, means, folder)
    rows = scored[0][0], scored[1][0]
    differences = subtract(*rows, flags.seed)
    how = {"bootstrap_seed": flags.seed, "program": describe_program(__file__)}
    paths += write_comparison(output, (a, b), rows, differences, how)
    paths.append(draw_comparison(output, (a.name, b.name), rows, differences))
    lines = comparison_lines([a.name, b.name], differences)
    print("\n".join([*lines, *(f"wrote {path}" for path in paths)]))
    for side, letter in zip(sides, "AB", strict=True):
        for note in notes(side.task) if side.task else ():
            print(f"note on {letter}: {note}")
    return 0


def draw_comparison(
    output: Path,
    names: tuple[str, str],
    rows: tuple[Rows, Rows],
    differences: Mapping[str, PairedDifference],
) -> Path:
    """Draw the volumes' IoU of A beside that of B, and the mean differences."""
    from utils.evaluation.score_report import COMPARED
    from utils.figures import save_comparison

    a, b = rows
    return save_comparison(
        [a[index]["iou"] for index in a],
        [b[index]["iou"] for index in a],
        {name: differences[name].difference for name in COMPARED if name in differences},
        output / "comparison.png",
        names=names,
    )


def prepare_side(flags: argparse.Namespace, given: str) -> Side:
    """Return A or B: a metrics.csv, else prediction files, else a checkpoint."""
    from utils.evaluation.comparison import Compared, read_earlier
    from utils.evaluation.prediction_files import holds_predictions
    from utils.evaluation.results_folder import describe_data
    from utils.evaluation.score_table import NAME

    earlier = read_earlier(given, flags.volumes)
    if earlier:
        return Side(*earlier)
    if flags.data is None:
        raise UserError(
            f"--compare {given}: no {NAME} of an earlier evaluation is there; to score a "
            "checkpoint or predictions now, name a file of generate_3d_data.py with --data"
        )
    task = prepare_source(flags, given, is_checkpoint=not holds_predictions(Path(given)))
    data = describe_data(task.file, task.indices, task.source.trained_on)
    return Side(Compared(given, task.indices, data), {}, task)


def score_side(
    side: Side, flags: argparse.Namespace, letter: str
) -> tuple[Rows, list[ScoredVolume]]:
    """Return the rows of A or B by volume, and the results behind them if they were made now."""
    if side.task is None:
        return side.rows, []
    results = score_volumes(side.task, flags, f"volumes by {letter}")
    return {result.index: result.row for result in results}, results


if __name__ == "__main__":
    sys.exit(main())
