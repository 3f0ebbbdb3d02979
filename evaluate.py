r"""Score predictions of whole volumes against the truth, beside a mask of the whole sheet.

    python evaluate.py --checkpoint logs/my_experiment --data vol_data/vol_val_set.h5
    python evaluate.py --checkpoint logs/my_experiment/checkpoints/last.pth \
        --data vol_data/vol_val_set.h5 --volumes 8 --output scores_of_last
    python evaluate.py --predictions masks/ --data vol_data/vol_val_set.h5
    python evaluate.py --checkpoint columns3d --data my_labels --ignore_label 255 --columns
    python evaluate.py --compare logs/first logs/second --data vol_data/vol_val_set.h5

The baseline is a mask of the whole sheet in which the columns stand, computed from the stored axes:
it scores an IoU of 0.44 in the middle of the sheet without telling one column from the next.
Writes metrics.csv (a row a volume), summary.json (means with 95 % bootstrap intervals over the
volumes), predictions.png, columns.png and conditions.png; --compare the paired differences B - A
besides. Labelled stacks are scored in the same way, as far as labels tell. All scores, and which
file belongs to which volume: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, exit_status
from utils.flags import VIEWS, FlagParser, is_labelled, number_or_auto, views_of, voxel_size
from utils.provenance import describe_program
from utils.replacing import make_folder
from utils.training.options import DEVICES, check_values

if TYPE_CHECKING:
    import pandas as pd

    from utils.evaluation.scoring import ToScore
    from utils.evaluation.stacks import LabelledSet
    from utils.evaluation.tables import EarlierScores
    from utils.prediction.trained_network import NetworkPredictions
    from utils.storage import VolumeFile

OVERLAP = 0.25  # of a window's edge
BATCH_SIZE = 4  # windows
SURFACE_TOLERANCE = 1.0  # voxels up to which two surfaces agree
SCALE = "auto"  # of labelled stacks, as in predict.py
SEED = 0  # of the bootstrap
COMPARISON = "comparison"  # folder for the results of --compare


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="evaluate.py", description=__doc__.splitlines()[0])
    # fmt: off
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", metavar="PATH",
        help="log directory of an experiment (its best.pth, else its last.pth), a .pth file, a "
        "package of export_model.py, or a pretrained network's name")
    what.add_argument("--predictions", nargs="+", metavar="FILE_OR_FOLDER",
        help="masks or probability maps in any format of predict.py; the last number in a file's "
        "name is the index of its volume, from 0")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"),
        help="two checkpoints, two folders of predictions, or two folders with the metrics.csv of "
        "earlier evaluations: paired differences B - A")
    add = parser.add_argument
    add("--data", metavar="FILE",
        help="HDF5 file of generate_3d_data.py, or labelled stacks: a folder with images/ and "
        "labels/, nnU-Net's, or IMAGE=LABELS or IMAGE=LABELS=MASK; --compare of two metrics.csv "
        "needs none")
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
        "the prediction files or labelled stacks say; simulated volumes have none)")
    add("--no_surface", action="store_true", help="leave out HD95 and surface Dice")
    add = parser.add_argument_group("labelled stacks").add_argument
    add("--ignore_label", type=int, metavar="INT",
        help="value of the labels where nobody has annotated: it counts nowhere; if that is 0, 1 "
        "is background")
    add("--channel", type=int, metavar="INT", help="channel of the images, from 0")
    add("--axes", metavar="STR", help="axes of the images, slowest first, as for predict.py")
    add("--scale", type=number_or_auto, default=SCALE, metavar="FACTOR|auto",
        help="enlarge them so much for the network, as predict.py does")
    add = parser.add_argument_group("columns").add_argument
    add("--columns", action="store_true",
        help="find single columns and their lattice as find_columns.py does, and score them too")
    add = parser.add_argument_group("prediction by a checkpoint").add_argument
    add("--window", type=int, metavar="INT",
        help="edge of the sliding window, in voxels (default: the patch size of the training)")
    add("--overlap", type=float, default=OVERLAP, metavar="FLOAT",
        help="share of a window in common with the next")
    add("--batch_size", type=int, default=BATCH_SIZE, metavar="INT",
        help="windows that pass the network at once")
    add("--tta", nargs="?", choices=VIEWS, const=VIEWS[0], metavar="VIEWS",
        help="average over views of each window, as predict.py does: flips, scales or "
        "flips,scales; alone it means flips")
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
    interrupted = "interrupted before all results were written"
    return exit_status("evaluate.py", lambda: run(flags), interrupted)


def run(flags: argparse.Namespace) -> None:
    """Check the numbers, then score one set of predictions or compare two."""
    from utils.resampling import check_spacing
    from utils.simulation.streams import check_seed

    check_values(vars(flags))
    check_seed(flags.seed, "--seed")
    if flags.voxel_size is not None:
        check_spacing(flags.voxel_size[::-1])
    (compare if flags.compare else evaluate)(flags)


def evaluate(flags: argparse.Namespace) -> None:
    """Score one set of predictions, write and print the results."""
    from utils.evaluation.tables import score_lines

    work = prepare(flags, flags.checkpoint, flags.predictions)
    _, means, paths = score_and_write(work, default_output(flags), flags)
    print(score_lines(means))
    print(*(f"wrote {path}" for path in paths), *(f"note: {n}" for n in work.notes), sep="\n")


def compare(flags: argparse.Namespace) -> None:
    """Score what is not scored yet, write and print the paired differences."""
    from utils.evaluation import tables
    from utils.figures.evaluation import save_comparison

    sides = [prepare_side(flags, given) for given in flags.compare]
    tables.check_same_volumes(flags.compare, sides)
    output = make_folder(Path(flags.output or COMPARISON))
    scores, paths, notes = [], [], []
    for side, letter in zip(sides, "AB", strict=True):
        if isinstance(side, tables.EarlierScores):
            scores.append(side.scores)
            continue
        what = f"volumes by {letter}"
        table, _, written = score_and_write(side, output / letter, flags, what)
        scores.append(table)
        paths += written
        notes += [f"note on {letter}: {note}" for note in side.notes]
    names = tables.common_scores(*scores)
    a, b = (table[names] for table in scores)
    differences = tables.paired_differences(a, b, flags.seed)
    about = {
        "a": flags.compare[0],
        "b": flags.compare[1],
        "data": dict(sides[0].data or sides[1].data) or None,
        "bootstrap_seed": flags.seed,
        "program": describe_program(__file__),
    }
    paths += tables.write_comparison(output, a, b, differences, about)
    picture = output / "comparison.png"
    paths.append(save_comparison(a["iou"], b["iou"], picture, flags.compare))
    print(tables.comparison_lines(flags.compare, differences))
    print(*(f"wrote {path}" for path in paths), *notes, sep="\n")


# What is scored -----------------------------------------------------------------------------------


def prepare(
    flags: argparse.Namespace, checkpoint: str | None, predictions: Sequence[str] | None = None
) -> ToScore:
    """Open the data and a checkpoint, or prediction files; writes nothing."""
    from utils.evaluation.scoring import ToScore
    from utils.evaluation.stacks import LabelledSet, find_predictions

    file = open_data(flags)
    volumes = range(len(file) if flags.volumes is None else flags.volumes)
    if len(volumes) > len(file):
        raise UserError(f"--volumes {len(volumes)}: {flags.data} holds {len(file)}")
    if checkpoint is not None:
        return ToScore(open_network(checkpoint, file, flags), file, tuple(volumes))
    labelled = isinstance(file, LabelledSet)
    of = (file.shapes, file.names) if labelled else ([file.shape] * len(file),)
    source = find_predictions(predictions, *of)
    missing = sorted(set(volumes) - set(source.paths))
    if flags.volumes is not None and missing:
        raise UserError(f"--volumes {flags.volumes}: no prediction for volume {missing[0]}")
    return ToScore(source, file, tuple(index for index in source.paths if index in volumes))


def open_data(flags: argparse.Namespace) -> VolumeFile | LabelledSet:
    """Return what --data names, and print what a user should know of it."""
    from utils.evaluation.stacks import LabelledSet
    from utils.storage import VolumeFile, version_note

    if flags.data is None:
        raise UserError("--data: a file of generate_3d_data.py or labelled stacks are needed")
    reading = {name: getattr(flags, name) for name in ("channel", "axes", "ignore_label")}
    if is_labelled(flags.data):
        stacks = LabelledSet(flags.data, voxel_size=flags.voxel_size, **reading)
        if flags.columns and min(map(len, stacks.shapes)) < 3:
            raise UserError(f"--columns: {flags.data} holds images of two axes, not stacks")
        print("\n".join(stacks.lines))
        return stacks
    if flags.scale != SCALE:
        reading["scale"] = flags.scale
    for name, value in reading.items():
        if value is not None:
            raise UserError(f"--{name} {value}: is for labelled stacks, not for {flags.data}")
    if flags.voxel_size is not None and len(flags.voxel_size) != 3:
        raise UserError(f"--voxel_size: has {len(flags.voxel_size)} numbers; give z,y,x")
    file = VolumeFile(flags.data)
    if note := version_note(file.path, file.program_version):
        print(note, file=sys.stderr)
    return file


def prepare_side(flags: argparse.Namespace, given: str) -> ToScore | EarlierScores:
    """Return A or B: a metrics.csv, else prediction files, else a checkpoint."""
    from utils.evaluation.stacks import stacks_at
    from utils.evaluation.tables import METRICS, read_earlier

    table = Path(given) if given.endswith(".csv") else Path(given, METRICS)
    if table.is_file():
        return read_earlier(table, flags.volumes)
    if flags.data is None:
        raise UserError(
            f"--compare {given}: no {METRICS} of an earlier evaluation is there; to score a "
            "checkpoint or predictions now, name the data with --data"
        )
    if stacks_at(Path(given)):
        return prepare(flags, None, [given])
    return prepare(flags, given)


def open_network(
    checkpoint: str, file: VolumeFile | LabelledSet, flags: argparse.Namespace
) -> NetworkPredictions:
    """Return a checkpoint's network on the device asked for; UserError if it cannot serve."""
    from models import ModelConfig, build_model, count_parameters
    from utils.checkpoints.loading import log_directory
    from utils.devices import choose_compute
    from utils.prediction.trained_network import NetworkPredictions, read_network, training_file
    from utils.storage import VolumeFile

    network = read_network(checkpoint)
    compute = choose_compute(flags.device, "32")
    config = network.parse_config(ModelConfig.from_dict)
    if isinstance(file, VolumeFile):
        same, fits = {"seed": file.seed}, config.spatial_dims == 3
    else:
        same = {"files": [pair.image for pair in file.pairs]}
        fits = config.spatial_dims <= min(map(len, file.shapes))
    if not fits or (config.in_channels, config.out_channels) != (1, 1):
        raise UserError(
            f"--checkpoint {checkpoint}: a {config.spatial_dims}D network with "
            f"{config.in_channels} input and {config.out_channels} output channels cannot segment "
            f"what is in {flags.data}; one input and output and as many axes are needed"
        )
    model = network.restore(build_model(config), compute.device, config.spatial_dims)
    return NetworkPredictions(
        checkpoint=Path(checkpoint),
        network=network,
        model=model,
        parameters=count_parameters(model),
        window=flags.window or network.patch_size,
        overlap=flags.overlap,
        batch_size=flags.batch_size,
        tta=views_of(flags.tta),
        trained_on=training_file(log_directory(checkpoint), **same),
        scale=flags.scale,
    )


def default_output(flags: argparse.Namespace) -> Path:
    """Return the folder for the results of one set of predictions."""
    from utils.checkpoints.loading import log_directory
    from utils.evaluation.stacks import stacks_at

    if flags.output:
        return Path(flags.output)
    if flags.checkpoint:
        return log_directory(flags.checkpoint) / "evaluation"
    first = Path(flags.predictions[0])
    return (first.parent if stacks_at(first) == [first] else first) / "evaluation"


# Scoring ------------------------------------------------------------------------------------------


def score_and_write(
    work: ToScore, folder: Path, flags: argparse.Namespace, what: str = "volumes"
) -> tuple[pd.DataFrame, pd.DataFrame, list[Path]]:
    """Score all volumes, write tables and pictures; return scores, their means and the paths."""
    from utils.devices import memory_advice
    from utils.evaluation.scoring import score_volumes
    from utils.evaluation.tables import means_over_volumes, only_scores, table_of, write_results
    from utils.figures.evaluation import save_evaluation

    make_folder(folder)
    tolerance = None if flags.no_surface else flags.surface_tolerance
    spacing = None if flags.voxel_size is None else flags.voxel_size[::-1]
    given = {"tolerance": tolerance, "spacing": spacing, "columns": flags.columns, "what": what}
    with memory_advice("lower --batch_size or --window"):
        results = score_volumes(work, **given)
    table = table_of(results)
    means = means_over_volumes(only_scores(table), flags.seed)
    about = {
        "bootstrap_seed": flags.seed,
        "surface_tolerance_voxels": tolerance,
        "voxel_size_zyx_um": flags.voxel_size,
        **work.source.describe(),
        "data": work.data,
        "program": describe_program(__file__),
    }
    paths = write_results(folder, table, means, about)
    return table, means, paths + save_evaluation(results, table, means, folder)


if __name__ == "__main__":
    sys.exit(main())
