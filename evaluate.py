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
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.flags import FlagError, FlagParser, voxel_size
from utils.replacing import replacing
from utils.training.options import DEVICES

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from utils.data.normalize import PercentileNormalizer
    from utils.prediction.statistics import Interval, PairedDifference
    from utils.simulation import SimulatedVolume
    from utils.storage import VolumeFile

OVERLAP = 0.25  # of a window's edge
BATCH_SIZE = 4  # windows
SURFACE_TOLERANCE = 1.0  # voxels up to which two surfaces agree
SEED = 0  # of the bootstrap
COMPARISON = "comparison"  # folder for the results of --compare
SHOWN = 5  # volumes in predictions.png


@dataclass(frozen=True)
class Network:
    """A trained network that predicts each volume from its image."""

    checkpoint: Path
    epoch: int
    model_config: dict[str, Any]
    model: nn.Module
    normalizer: PercentileNormalizer
    window: int
    overlap: float
    batch_size: int
    trained_on: str | None
    """A training file with the seed of the data, if the experiment's record names one."""

    def predict(self, index: int, volume: SimulatedVolume) -> tuple[np.ndarray, None]:
        """Return probabilities (X, Y, Z); simulated volumes have no voxel size."""
        from utils.prediction.sliding_window import predict_volume

        probabilities = predict_volume(
            self.model,
            volume.image,
            self.normalizer,
            window=self.window,
            overlap=self.overlap,
            batch_size=self.batch_size,
        )
        return probabilities, None

    def describe(self) -> dict[str, Any]:
        """Return what predicted, as plain JSON."""
        from models import count_parameters

        return {
            "checkpoint": str(self.checkpoint),
            "epoch": self.epoch,
            "model": {**self.model_config, "parameters": count_parameters(self.model)},
            "normalizer": self.normalizer.to_dict(),
            "window": self.window,
            "overlap": self.overlap,
            "device": next(self.model.parameters()).device.type,
        }


@dataclass(frozen=True)
class PredictionFiles:
    """Masks or probability maps that were written before, one a volume."""

    paths: dict[int, Path]
    trained_on: None = None

    def predict(
        self, index: int, volume: SimulatedVolume
    ) -> tuple[np.ndarray, tuple[float, ...] | None]:
        """Return probabilities (X, Y, Z) and the file's voxel size (x, y, z), if it has one."""
        from utils.prediction.prediction_files import read_prediction

        return read_prediction(self.paths[index], volume.image.shape)

    def describe(self) -> dict[str, Any]:
        """Return what predicted, as plain JSON."""
        return {"predictions": {str(index): str(path) for index, path in self.paths.items()}}


@dataclass(frozen=True)
class Task:
    """What is to be scored, checked and ready."""

    source: Network | PredictionFiles
    file: VolumeFile
    indices: tuple[int, ...]
    output: Path


@dataclass(frozen=True)
class Result:
    """One scored volume, and the slice of it that a picture would show."""

    index: int
    scores: dict[str, float]
    """All scores by name."""
    conditions: dict[str, float]
    """Under what the volume was taken."""
    seconds: float
    """What prediction took."""
    slices: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Image, mask and probability (X, Y) at the z with most labelled voxels."""
    z: int

    @property
    def row(self) -> dict[str, float]:
        """All numbers of the volume, as the table holds them."""
        first = {"volume": self.index, **self.scores, **self.conditions}
        return {**first, "seconds": round(self.seconds, 3)}


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
    try:
        return compare(flags) if flags.compare else evaluate(flags)
    except KeyboardInterrupt:
        return fail("interrupted before all results were written", 130)


def fail(error: BaseException | str, status: int) -> int:
    """Say in one line what went wrong; return ``status``."""
    print(f"evaluate.py: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def fail_while_scoring(error: BaseException) -> int:
    """Say what went wrong after all was checked; return 2 for a file that a user gave."""
    from utils.prediction.microscope_files import StackError
    from utils.prediction.prediction_files import PredictionError
    from utils.storage import StorageError
    from utils.training.experiment import is_out_of_memory

    if isinstance(error, (PredictionError, StackError)):
        return fail(error, 2)
    if isinstance(error, (StorageError, OSError)):
        return fail(error, 1)
    if is_out_of_memory(error):
        return fail("out of memory: lower --batch_size or --window", 1)
    raise error


# One set of predictions ---------------------------------------------------------------------------


def evaluate(flags: argparse.Namespace) -> int:
    """Score, write and print; return the exit status. What a user can mend is one line."""
    try:
        task = prepare(flags)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    from utils.prediction.score_report import score_lines

    try:
        results = score_volumes(task, flags)
        means = average([result.scores for result in results], flags.seed)
        paths = write_results(task, flags, results, means, task.output)
        lines = score_lines({result.index: result.scores for result in results}, means)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return fail_while_scoring(error)
    print("\n".join([*lines, *(f"wrote {path}" for path in paths)]))
    print("".join(f"note: {note}\n" for note in notes(task)), end="")
    return 0


def prepare(flags: argparse.Namespace) -> Task:
    """Check the flags, read data file and checkpoint or predictions, make the output folder.

    Raises ValueError or OSError, in one line, for anything that a user would have to put right.
    """
    check_flags(flags)
    given = flags.checkpoint or flags.predictions
    task = prepare_side(flags, given, is_checkpoint=flags.checkpoint is not None)
    return dataclasses.replace(task, output=make_output(default_output(flags)))


def prepare_side(
    flags: argparse.Namespace, given: str | Sequence[str], *, is_checkpoint: bool
) -> Task:
    """Return what a checkpoint, or prediction files, take to be scored; writes nothing."""
    from utils.storage import VolumeFile
    from utils.training.experiment import log_directory

    if flags.data is None:
        raise FlagError("--data: a file of generate_3d_data.py is needed to score against")
    source: Network | PredictionFiles
    if is_checkpoint:
        network = load_network(str(given), flags)
    file = VolumeFile(flags.data)
    volumes = len(file) if flags.volumes is None else flags.volumes
    if volumes > len(file):
        raise FlagError(f"--volumes {volumes}: {flags.data} holds {len(file)}")
    if is_checkpoint:
        trained_on = training_file(log_directory(network.checkpoint), file.seed)
        source = dataclasses.replace(network, trained_on=trained_on)
        indices = tuple(range(volumes))
    else:
        source = PredictionFiles(list_predictions(given, file, flags.volumes))
        indices = tuple(source.paths)
    return Task(source, file, indices, Path())


def check_flags(flags: argparse.Namespace) -> None:
    """Raise FlagError for a number outside its range."""
    for name in ("volumes", "window", "batch_size"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise FlagError(f"--{name} {value}: must be at least 1")
    if not 0 <= flags.overlap < 1:
        raise FlagError(f"--overlap {flags.overlap}: must be at least 0 and below 1, such as 0.25")
    if flags.seed < 0:
        raise FlagError(f"--seed {flags.seed}: must be at least 0")
    if not 0 <= flags.surface_tolerance < math.inf:
        raise FlagError(f"--surface_tolerance {flags.surface_tolerance}: must be at least 0")
    if flags.voxel_size is not None and len(flags.voxel_size) != 3:
        raise FlagError(f"--voxel_size: has {len(flags.voxel_size)} numbers; give z,y,x")


def load_network(checkpoint: str, flags: argparse.Namespace) -> Network:
    """Return a checkpoint's network on the device asked for; FlagError if it cannot serve."""
    from utils.data.normalize import PercentileNormalizer
    from utils.training.experiment import load_checkpoint

    state = load_checkpoint(checkpoint)
    return Network(
        checkpoint=Path(checkpoint),
        epoch=state["epoch"],
        model_config=state["model_config"],
        model=restore_model(state, checkpoint, flags),
        normalizer=PercentileNormalizer.from_dict(state["normalizer"]),
        window=flags.window or int(state["patch_size"]),
        overlap=flags.overlap,
        batch_size=flags.batch_size,
        trained_on=None,
    )


def restore_model(state: dict[str, Any], checkpoint: str, flags: argparse.Namespace) -> nn.Module:
    """Return the checkpoint's network on the device asked for; FlagError if it cannot serve."""
    from models import ModelConfig, build_model
    from utils.training.device import choose_compute, memory_format

    compute = choose_compute(flags.device, "32")
    config = ModelConfig.from_dict(state["model_config"])
    if (config.spatial_dims, config.in_channels, config.out_channels) != (3, 1, 1):
        raise FlagError(
            f"--checkpoint {checkpoint}: a {config.spatial_dims}D network with "
            f"{config.in_channels} input and {config.out_channels} output channels cannot segment "
            f"the volumes of {flags.data}; a 3D network with one of each is needed"
        )
    model = build_model(config)
    try:
        model.load_state_dict(state["model_state"])
    except RuntimeError as error:
        raise FlagError(
            f"--checkpoint {checkpoint}: the stored weights do not fit the stored model "
            f"configuration ({str(error).splitlines()[0]})"
        ) from error
    return model.to(compute.device, memory_format=memory_format(5)).eval()


def list_predictions(
    paths: str | Sequence[str], file: VolumeFile, volumes: int | None
) -> dict[int, Path]:
    """Return a file for each volume, all opened once; with ``volumes`` for the first ones."""
    from utils.prediction.prediction_files import check_prediction, find_predictions

    given = [paths] if isinstance(paths, str) else paths
    found = find_predictions(given, len(file))
    if volumes is not None:
        missing = [index for index in range(volumes) if index not in found]
        if missing:
            raise FlagError(f"--volumes {volumes}: no prediction for volume {missing[0]}")
        found = {index: path for index, path in found.items() if index < volumes}
    for path in found.values():
        check_prediction(path, file.shape)
    return found


def default_output(flags: argparse.Namespace) -> Path:
    """Return the folder for the results."""
    if flags.output:
        return Path(flags.output)
    if flags.compare:
        return Path(COMPARISON)
    if flags.checkpoint:
        from utils.training.experiment import log_directory

        return log_directory(flags.checkpoint) / "evaluation"
    first = Path(flags.predictions[0])
    is_stack = first.is_file() or first.name.endswith(".zarr")
    return (first.parent if is_stack else first) / "evaluation"


def make_output(output: Path) -> Path:
    """Make the folder of the results and try whether it can be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise FlagError(
            f"--output {output}: cannot be written ({error.strerror or error}); name another folder"
        ) from error
    return output


def training_file(directory: Path, seed: int) -> str | None:
    """Return a training file with this seed, if the experiment's record names one."""
    record = directory / "config.json"
    if not record.is_file():
        return None
    files = json.loads(record.read_text()).get("data", {}).get("train", [])
    return next((entry["file"] for entry in files if entry.get("seed") == seed), None)


def score_volumes(task: Task, flags: argparse.Namespace, what: str = "volumes") -> list[Result]:
    """Predict and score the volumes one after the other, with a progress bar."""
    from tqdm import tqdm

    with task.file, tqdm(task.indices, what, unit="volume") as bar:
        results = []
        for index in bar:
            results.append(score_one(task, index, flags))
            mean = sum(result.scores["iou"] for result in results) / len(results)
            bar.set_postfix_str(f"mean IoU {mean:.3f}")
    return results


def score_one(task: Task, index: int, flags: argparse.Namespace) -> Result:
    """Predict and score one volume."""
    from utils.figures import densest_slice
    from utils.prediction.conditions import describe_conditions

    volume = task.file.read_volume(index)
    start = time.perf_counter()
    probabilities, spacing = task.source.predict(index, volume)
    seconds = time.perf_counter() - start
    if flags.voxel_size is not None:
        spacing = flags.voxel_size[::-1]
    z = densest_slice(volume.mask)
    return Result(
        index=index,
        scores=all_scores(probabilities, volume, spacing, flags),
        conditions=dataclasses.asdict(describe_conditions(volume)),
        seconds=seconds,
        slices=(
            volume.image[..., z].copy(),
            volume.mask[..., z].copy(),
            probabilities[..., z].copy(),
        ),
        z=z,
    )


def all_scores(
    probabilities: np.ndarray,
    volume: SimulatedVolume,
    spacing: tuple[float, ...] | None,
    flags: argparse.Namespace,
) -> dict[str, float]:
    """Return every score of one volume by its name."""
    from utils.prediction.column_recall import flatten, recall_by_kind
    from utils.prediction.scores import score_volume
    from utils.prediction.surfaces import score_surfaces
    from utils.training.metrics import THRESHOLD

    mask, found = volume.mask, probabilities >= THRESHOLD
    scores = dataclasses.asdict(score_volume(probabilities, mask, volume.sheet))
    scores["iou_gain"] = scores["iou"] - scores["baseline_iou"]
    scores["sheet_iou_gain"] = scores["sheet_iou"] - scores["sheet_baseline_iou"]
    if not flags.no_surface:
        surfaces = score_surfaces(
            found, mask > 0, tolerance=flags.surface_tolerance, voxel_size=spacing
        )
        scores |= dataclasses.asdict(surfaces)
    return scores | flatten(recall_by_kind(found, volume))


def average(rows: Sequence[Mapping[str, float]], seed: int) -> dict[str, Interval]:
    """Return the mean of every score over the volumes with its interval.

    Each score's resamples come from a generator of the same seed, so that all of them see the same
    volumes drawn.
    """
    import numpy as np

    from utils.prediction.statistics import bootstrap_mean

    return {
        name: bootstrap_mean(np.array([row[name] for row in rows]), np.random.default_rng(seed))
        for name in rows[0]
    }


def write_results(
    task: Task,
    flags: argparse.Namespace,
    results: Sequence[Result],
    means: dict[str, Interval],
    output: Path,
) -> list[Path]:
    """Write table, summary and pictures; return their paths."""
    from utils.prediction.score_table import NAME, as_csv

    table, summary = output / NAME, output / "summary.json"
    write_text(table, as_csv([result.row for result in results]))
    write_json(summary, summarise(task, flags, results, means))
    return [table, summary, *draw(results, means, output)]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def draw(results: Sequence[Result], means: dict[str, Interval], output: Path) -> list[Path]:
    """Draw the best and worst volumes, recall by column type and the score by conditions."""
    from utils import figures
    from utils.prediction.column_recall import KINDS

    shown = pick_shown(results)
    images, masks, probabilities = zip(*(result.slices for _, result in shown), strict=True)
    titles = [
        f"{word}: volume {result.index}, IoU {result.scores['iou']:.2f}, z\u00a0=\u00a0{result.z}"
        for word, result in shown
    ]
    conditions = {name: by_name(results, name) for name in results[0].conditions}
    conditions["foreground"] = [result.scores["foreground"] for result in results]
    recalls = {
        kind: (means[f"recall_{kind}"], means[f"covered_{kind}"], sum_columns(results, kind))
        for kind in KINDS
    }
    return [
        figures.save_predictions(
            images, masks, probabilities, output / "predictions.png", titles=titles
        ),
        figures.save_column_recall(
            recalls, means["sheet_false_positive_rate"].mean, output / "columns.png"
        ),
        figures.save_scores_by_condition(
            [result.scores["iou"] for result in results],
            [result.scores["baseline_iou"] for result in results],
            conditions,
            output / "conditions.png",
        ),
    ]


def by_name(results: Sequence[Result], name: str) -> list[float]:
    """Return one condition of all volumes."""
    return [result.conditions[name] for result in results]


def sum_columns(results: Sequence[Result], kind: str) -> int:
    """Return how many columns of a kind all volumes hold together."""
    return int(sum(result.scores[f"columns_{kind}"] for result in results))


def pick_shown(results: Sequence[Result]) -> list[tuple[str, Result]]:
    """Return the volumes with the best, the median and the worst IoU, each once."""
    ranked = sorted(results, key=lambda result: -result.scores["iou"])
    words = ["best", "second best", "median", "second worst", "worst"]
    if len(ranked) >= SHOWN:
        middle = ranked[len(ranked) // 2]
        return list(zip(words, [*ranked[:2], middle, *ranked[-2:]], strict=True))
    if len(ranked) < 3:
        return list(zip(("best", "worst") if len(ranked) == 2 else ("only",), ranked, strict=True))
    return [("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])]


def summarise(
    task: Task,
    flags: argparse.Namespace,
    results: Sequence[Result],
    means: dict[str, Interval],
) -> dict[str, Any]:
    """Return all that says what was scored, how, and with which outcome, as plain JSON."""
    from utils.prediction.column_recall import KINDS
    from utils.training.experiment import describe_program

    return {
        "scores": {name: as_json(interval) for name, interval in means.items()},
        "interval": {"level": 0.95, "method": "percentile bootstrap over volumes"},
        "bootstrap_seed": flags.seed,
        "empty": {
            "truths": sum(result.scores["foreground"] == 0 for result in results),
            "predictions": sum(result.scores["found"] == 0 for result in results),
        },
        "columns": {kind: sum_columns(results, kind) for kind in KINDS},
        "rank_correlation_of_iou": correlate(results),
        "surface_tolerance_voxels": None if flags.no_surface else flags.surface_tolerance,
        "voxel_size_zyx_um": flags.voxel_size,
        **task.source.describe(),
        "data": describe_data(task),
        "program": describe_program(__file__),
    } | {"prediction_seconds": round(sum(result.seconds for result in results), 3)}


def as_json(record: Any) -> dict[str, Any]:
    """Return a record of numbers as plain JSON: null for NaN."""
    from utils.prediction.score_table import plain

    return {name: plain(value) for name, value in dataclasses.asdict(record).items()}


def correlate(results: Sequence[Result]) -> dict[str, Any]:
    """Return Spearman's correlation of the IoU with each condition and the labelled share."""
    import numpy as np

    from utils.prediction.score_table import plain
    from utils.prediction.statistics import rank_correlation

    rows = [{**r.conditions, "foreground": r.scores["foreground"]} for r in results]
    scores = np.array([result.scores["iou"] for result in results])
    return {
        name: plain(rank_correlation(np.array([row[name] for row in rows], float), scores))
        for name in rows[0]
    }


def describe_data(task: Task) -> dict[str, Any]:
    """Return which volumes were scored, as plain JSON."""
    return {
        "file": str(task.file.path),
        "seed": task.file.seed,
        "shape": list(task.file.shape),
        "volumes": list(task.indices),
        "training_file_of_this_seed": task.source.trained_on,
        "config": task.file.config.to_dict(),
    }


def notes(task: Task) -> list[str]:
    """Return what a reader of the scores should know."""
    found = []
    if task.source.trained_on:
        found.append(
            f"{task.source.trained_on}, which the network was trained on, has the seed of this file"
        )
    if isinstance(task.source, PredictionFiles) and len(task.indices) < len(task.file):
        count = len(task.indices)
        found.append(f"predictions were given for {count} of the {len(task.file)} volumes")
    return found


# Two sets of predictions --------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A or B of a comparison: scores of an earlier evaluation, or what is to be scored."""

    name: str
    volumes: tuple[int, ...]
    task: Task | None
    rows: dict[int, dict[str, float]]
    """Scores by volume; empty for a task that has not been scored."""
    data: dict[str, Any] | None
    """What the scores belong to, if it is known."""


def compare(flags: argparse.Namespace) -> int:
    """Score what is not scored yet, write and print the paired differences; return the status."""
    try:
        check_flags(flags)
        sides = [prepare_compared(flags, given) for given in flags.compare]
        check_comparable(*sides)
        output = make_output(default_output(flags))
    except (ValueError, OSError) as error:
        return fail(error, 2)
    from utils.prediction.comparison import subtract
    from utils.prediction.score_report import comparison_lines

    try:
        scored = [score_side(s, flags, x) for s, x in zip(sides, "AB", strict=True)]
        paths = []
        for (_, results), side, letter in zip(scored, sides, "AB", strict=True):
            if side.task is not None:
                means = average([result.scores for result in results], flags.seed)
                folder = make_output(output / letter)
                paths += write_results(side.task, flags, results, means, folder)
        differences = subtract(scored[0][0], scored[1][0], flags.seed)
        paths += write_comparison(sides, [rows for rows, _ in scored], differences, flags, output)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        return fail_while_scoring(error)
    lines = comparison_lines([side.name for side in sides], differences)
    print("\n".join([*lines, *(f"wrote {path}" for path in paths)]))
    for side, letter in zip(sides, "AB", strict=True):
        for note in notes(side.task) if side.task else ():
            print(f"note on {letter}: {note}")
    return 0


def prepare_compared(flags: argparse.Namespace, given: str) -> Side:
    """Return A or B: a metrics.csv, else prediction files, else a checkpoint."""
    from utils.prediction.prediction_files import holds_predictions
    from utils.prediction.score_table import NAME, read_csv

    path = Path(given)
    if path.suffix == ".csv" or (path / NAME).is_file():
        rows = read_csv(path if path.suffix == ".csv" else path / NAME)
        folder = path.parent if path.suffix == ".csv" else path
        if flags.volumes is not None:
            rows = {index: row for index, row in rows.items() if index < flags.volumes}
        if not rows:
            raise FlagError(f"--volumes {flags.volumes}: {given} holds none of them")
        return Side(given, tuple(rows), None, rows, recorded_data(folder))
    if flags.data is None:
        raise FlagError(
            f"--compare {given}: no {NAME} of an earlier evaluation is there; to score a "
            "checkpoint or predictions now, name a file of generate_3d_data.py with --data"
        )
    task = prepare_side(flags, given, is_checkpoint=not holds_predictions(path))
    return Side(given, task.indices, task, {}, describe_data(task))


def recorded_data(folder: Path) -> dict[str, Any] | None:
    """Return what an earlier evaluation was scored on, if its summary says so."""
    try:
        return json.loads((folder / "summary.json").read_text())["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_comparable(a: Side, b: Side) -> None:
    """Raise FlagError unless A and B are about the same volumes."""
    only = sorted(set(a.volumes) ^ set(b.volumes))
    if only:
        holder = "A" if only[0] in a.volumes else "B"
        raise FlagError(
            f"--compare {a.name} {b.name}: not the same volumes ({len(a.volumes)} and "
            f"{len(b.volumes)}): only {holder} has volume {only[0]}; score both on the same ones"
        )
    if a.data and b.data:
        for name in ("seed", "shape", "config"):
            if a.data.get(name) != b.data.get(name):
                raise FlagError(
                    f"--compare {a.name} {b.name}: not the same volumes: {name} of the data "
                    "differs; score both on the same file"
                )


def score_side(
    side: Side, flags: argparse.Namespace, letter: str
) -> tuple[dict[int, dict[str, float]], list[Result]]:
    """Return the rows of A or B by volume, and the results behind them if they were made now."""
    if side.task is None:
        return side.rows, []
    results = score_volumes(side.task, flags, f"volumes by {letter}")
    return {result.index: result.row for result in results}, results


def write_comparison(
    sides: Sequence[Side],
    rows: Sequence[Mapping[int, Mapping[str, float]]],
    differences: Mapping[str, PairedDifference],
    flags: argparse.Namespace,
    output: Path,
) -> list[Path]:
    """Write comparison.csv, comparison.json and comparison.png; return their paths."""
    from utils.figures import save_comparison
    from utils.prediction.comparison import paired_rows
    from utils.prediction.score_report import COMPARED
    from utils.prediction.score_table import as_csv
    from utils.training.experiment import describe_program

    paths = [output / f"comparison.{ending}" for ending in ("csv", "json", "png")]
    a, b = rows
    write_text(paths[0], as_csv(paired_rows(a, b, differences)))
    summary = {
        "a": sides[0].name,
        "b": sides[1].name,
        "volumes": list(a),
        "differences": {
            name: {**as_json(d), "difference": as_json(d.difference)}
            for name, d in differences.items()
        },
        "interval": {"level": 0.95, "method": "percentile bootstrap over volumes, of B - A"},
        "test": "Wilcoxon signed-rank, two-sided, not corrected for the number of scores",
        "bootstrap_seed": flags.seed,
        "data": next((side.data for side in sides if side.data), None),
        "program": describe_program(__file__),
    }
    write_json(paths[1], summary)
    save_comparison(
        [a[index]["iou"] for index in a],
        [b[index]["iou"] for index in a],
        {name: differences[name].difference for name in COMPARED if name in differences},
        paths[2],
        names=[side.name for side in sides],
    )
    return paths


if __name__ == "__main__":
    sys.exit(main())
