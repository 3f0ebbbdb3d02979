r"""Score a trained 3D network on whole volumes, beside a mask of the whole sheet.

    python evaluate.py --checkpoint logs/my_experiment --data vol_data/vol_val_set.h5
    python evaluate.py --checkpoint logs/my_experiment/checkpoints/last.pth \
        --data vol_data/vol_val_set.h5 --volumes 8 --output scores_of_last

The baseline is a mask of the whole sheet in which the columns stand, computed from the stored axes:
it scores an IoU of 0.44 in the middle of the sheet without telling one column from the next. The
network is scored over the whole volume, and once more inside the sheet, where columns must be told
apart. Writes metrics.csv (a row a volume), summary.json (means with 95 % bootstrap intervals over
the volumes) and predictions.png (the best, the median and the worst volume).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.flags import FlagError, FlagParser
from utils.replacing import replacing
from utils.training.options import DEVICES

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from utils.data.normalize import PercentileNormalizer
    from utils.prediction.scores import Interval, VolumeScores
    from utils.storage import VolumeFile

OVERLAP = 0.25  # of a window's edge
BATCH_SIZE = 4  # windows
SEED = 0  # of the bootstrap
MOST_ROWS = 16  # volumes that the printed table lists one by one


@dataclass(frozen=True)
class Task:
    """What is to be scored, checked and ready."""

    checkpoint: Path
    epoch: int
    model_config: dict[str, Any]
    model: nn.Module
    normalizer: PercentileNormalizer
    window: int
    file: VolumeFile
    volumes: int
    output: Path
    trained_on: str | None
    """A training file with the seed of ``file``, if the experiment's record names one."""


@dataclass(frozen=True)
class Result:
    """One scored volume, and the slice of it that a picture would show."""

    index: int
    scores: VolumeScores
    seconds: float
    slices: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Image, mask and probability (X, Y) at the z with most labelled voxels."""
    z: int


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="evaluate.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    # fmt: off
    add("--checkpoint", required=True, metavar="PATH",
        help="log directory of an experiment (its best.pth, else its last.pth), a .pth file, or a "
        "pretrained network's name")
    add("--data", required=True, metavar="FILE",
        help="HDF5 file of generate_3d_data.py")
    add("--volumes", type=int, metavar="INT",
        help="volumes to score, from the first on (default: all)")
    add("--output", metavar="FOLDER",
        help="folder for the results (default: evaluation/ in the log directory)")
    add("--window", type=int, metavar="INT",
        help="edge of the sliding window, in voxels (default: the patch size of the training)")
    add("--overlap", type=float, default=OVERLAP, metavar="FLOAT",
        help="share of a window in common with the next")
    add("--batch_size", type=int, default=BATCH_SIZE, metavar="INT",
        help="windows that pass the network at once")
    add("--device", choices=DEVICES, default="auto",
        help="where the network runs, in float32; auto takes CUDA where there is some")
    add("--seed", type=int, default=SEED, metavar="INT",
        help="seed of the bootstrap over volumes")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    try:
        return evaluate(flags)
    except KeyboardInterrupt:
        return fail("interrupted before all results were written", 130)


def evaluate(flags: argparse.Namespace) -> int:
    """Score, write and print; return the exit status. What a user can mend is one line."""
    try:
        task = prepare(flags)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    from utils.storage import StorageError
    from utils.training.experiment import is_out_of_memory

    try:
        results = score_volumes(task, flags)
        means = average(results, flags.seed)
        paths = write_results(task, flags, results, means)
    except (StorageError, OSError) as error:
        return fail(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail("out of memory: lower --batch_size or --window", 1)
    print("\n".join([*table(results, means), *(f"wrote {path}" for path in paths)]))
    if task.trained_on:
        print(
            f"note: {task.trained_on}, which the network was trained on, has the seed of this file"
        )
    return 0


def fail(error: BaseException | str, status: int) -> int:
    """Say in one line what went wrong; return ``status``."""
    print(f"evaluate.py: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def prepare(flags: argparse.Namespace) -> Task:
    """Check the flags, read checkpoint and data file, build the network, make the output folder.

    Raises ValueError or OSError, in one line, for anything that a user would have to put right.
    """
    check_flags(flags)
    from utils.data.normalize import PercentileNormalizer
    from utils.storage import VolumeFile
    from utils.training.experiment import load_checkpoint, log_directory

    state = load_checkpoint(flags.checkpoint)
    model = restore_model(state, flags)
    file = VolumeFile(flags.data)
    volumes = len(file) if flags.volumes is None else flags.volumes
    if volumes > len(file):
        raise FlagError(f"--volumes {volumes}: {flags.data} holds {len(file)}")
    return Task(
        checkpoint=Path(flags.checkpoint),
        epoch=state["epoch"],
        model_config=state["model_config"],
        model=model,
        normalizer=PercentileNormalizer.from_dict(state["normalizer"]),
        window=flags.window or int(state["patch_size"]),
        file=file,
        volumes=volumes,
        output=make_output(flags),
        trained_on=training_file(log_directory(flags.checkpoint), file.seed),
    )


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


def restore_model(state: dict[str, Any], flags: argparse.Namespace) -> nn.Module:
    """Return the checkpoint's network on the device asked for; FlagError if it cannot serve."""
    from models import ModelConfig, build_model
    from utils.training.device import choose_compute, memory_format

    compute = choose_compute(flags.device, "32")
    config = ModelConfig.from_dict(state["model_config"])
    if (config.spatial_dims, config.in_channels, config.out_channels) != (3, 1, 1):
        raise FlagError(
            f"--checkpoint {flags.checkpoint}: a {config.spatial_dims}D network with "
            f"{config.in_channels} input and {config.out_channels} output channels cannot segment "
            f"the volumes of {flags.data}; a 3D network with one of each is needed"
        )
    model = build_model(config)
    try:
        model.load_state_dict(state["model_state"])
    except RuntimeError as error:
        raise FlagError(
            f"--checkpoint {flags.checkpoint}: the stored weights do not fit the stored model "
            f"configuration ({str(error).splitlines()[0]})"
        ) from error
    return model.to(compute.device, memory_format=memory_format(5)).eval()


def make_output(flags: argparse.Namespace) -> Path:
    """Make the folder of the results and try whether it can be written."""
    from utils.training.experiment import log_directory

    output = Path(flags.output) if flags.output else log_directory(flags.checkpoint) / "evaluation"
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
    return next((entry["file"] for entry in files if entry["seed"] == seed), None)


def score_volumes(task: Task, flags: argparse.Namespace) -> list[Result]:
    """Predict and score the volumes one after the other, with a progress bar."""
    from tqdm import tqdm

    with task.file, tqdm(range(task.volumes), "volumes", unit="volume") as bar:
        results = []
        for index in bar:
            results.append(score_one(task, index, flags))
            mean = sum(result.scores.iou for result in results) / len(results)
            bar.set_postfix_str(f"mean IoU {mean:.3f}")
    return results


def score_one(task: Task, index: int, flags: argparse.Namespace) -> Result:
    """Predict and score one volume."""
    from utils.figures import densest_slice
    from utils.prediction.scores import score_volume
    from utils.prediction.sliding_window import predict_volume

    volume = task.file.read_volume(index)
    start = time.perf_counter()
    probabilities = predict_volume(
        task.model,
        volume.image,
        task.normalizer,
        window=task.window,
        overlap=flags.overlap,
        batch_size=flags.batch_size,
    )
    seconds = time.perf_counter() - start
    mask = volume.mask
    z = densest_slice(mask)
    return Result(
        index=index,
        scores=score_volume(probabilities, mask, volume.sheet),
        seconds=seconds,
        slices=(volume.image[..., z].copy(), mask[..., z].copy(), probabilities[..., z].copy()),
        z=z,
    )


def average(results: Sequence[Result], seed: int) -> dict[str, Interval]:
    """Return the mean of every score, and of the network's gain on the baseline, with intervals.

    Each score's resamples come from a generator of the same seed, so that all of them see the same
    volumes drawn.
    """
    import numpy as np

    from utils.prediction.scores import bootstrap_mean

    rows = [dataclasses.asdict(result.scores) for result in results]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns["iou_gain"] = columns["iou"] - columns["baseline_iou"]
    columns["sheet_iou_gain"] = columns["sheet_iou"] - columns["sheet_baseline_iou"]
    return {
        name: bootstrap_mean(column, np.random.default_rng(seed))
        for name, column in columns.items()
    }


def write_results(
    task: Task,
    flags: argparse.Namespace,
    results: Sequence[Result],
    means: dict[str, Interval],
) -> list[Path]:
    """Write metrics.csv, summary.json and predictions.png; return their paths."""
    from utils.figures import save_predictions

    paths = [task.output / name for name in ("metrics.csv", "summary.json", "predictions.png")]
    summary = json.dumps(summarise(task, flags, results, means), indent=2, allow_nan=False)
    for path, text in zip(paths, (as_csv(results), summary + "\n"), strict=False):
        with replacing(path) as temporary:
            temporary.write_text(text)
    shown = pick_shown(results)
    images, masks, probabilities = zip(*(result.slices for _, result in shown), strict=True)
    titles = [
        f"{word}: volume {result.index}, IoU {result.scores.iou:.2f}, z = {result.z}"
        for word, result in shown
    ]
    save_predictions(images, masks, probabilities, paths[2], titles=titles)
    return paths


def pick_shown(results: Sequence[Result]) -> list[tuple[str, Result]]:
    """Return the volumes with the best, the median and the worst IoU, each once."""
    ranked = sorted(results, key=lambda result: -result.scores.iou)
    if len(ranked) < 3:
        return list(zip(("best", "worst") if len(ranked) == 2 else ("only",), ranked, strict=True))
    return [("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])]


def as_csv(results: Sequence[Result]) -> str:
    """Return a table with a row a volume; a score without meaning is an empty cell."""
    rows = [
        {
            "volume": result.index,
            **{name: plain(score) for name, score in dataclasses.asdict(result.scores).items()},
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summarise(
    task: Task,
    flags: argparse.Namespace,
    results: Sequence[Result],
    means: dict[str, Interval],
) -> dict[str, Any]:
    """Return all that says what was scored, how, and with which outcome, as plain JSON."""
    from models import count_parameters
    from utils.training.experiment import describe_program

    return {
        "scores": {
            name: {key: plain(value) for key, value in dataclasses.asdict(interval).items()}
            for name, interval in means.items()
        },
        "interval": {"level": 0.95, "method": "percentile bootstrap over volumes"},
        "bootstrap_seed": flags.seed,
        "checkpoint": str(task.checkpoint),
        "epoch": task.epoch,
        "model": {**task.model_config, "parameters": count_parameters(task.model)},
        "normalizer": task.normalizer.to_dict(),
        "window": task.window,
        "overlap": flags.overlap,
        "device": next(task.model.parameters()).device.type,
        "data": {
            "file": str(task.file.path),
            "seed": task.file.seed,
            "shape": list(task.file.shape),
            "volumes": [result.index for result in results],
            "training_file_of_this_seed": task.trained_on,
            "config": task.file.config.to_dict(),
        },
        "prediction_seconds": round(sum(result.seconds for result in results), 3),
        "program": describe_program(__file__),
    }


def table(results: Sequence[Result], means: dict[str, Interval]) -> list[str]:
    """Return the lines that a user reads at the end: the network beside the whole sheet."""
    lines = [
        "               IoU, whole volume       IoU, inside the sheet       AUC there",
        "             network  whole sheet      network  whole sheet      network",
        *(
            table_row(f"volume {r.index}", dataclasses.asdict(r.scores))
            for r in results[:MOST_ROWS]
        ),
    ]
    if len(results) > MOST_ROWS:
        lines.append(f"and {len(results) - MOST_ROWS} more volumes in metrics.csv")
    if len(results) > 1:
        for label, key in (("mean", "mean"), ("95 % from", "low"), ("95 % to", "high")):
            lines.append(table_row(label, {name: getattr(means[name], key) for name in means}))
    rest = ("dice", "precision", "recall", "total_error")
    words = [f"{name.replace('_', ' ')} {shorten(means[name].mean)}" for name in rest]
    lines.append(f"network: {', '.join(words)}")
    gain = means["iou_gain"]
    spread = "" if math.isnan(gain.low) else f" (95 %: {gain.low:+.3f} to {gain.high:+.3f})"
    lines.append(f"IoU of the network minus that of the whole sheet: {gain.mean:+.3f}{spread}")
    return lines


def table_row(label: str, scores: dict[str, float]) -> str:
    """Return one line of the table."""
    columns = ("iou", "baseline_iou", "sheet_iou", "sheet_baseline_iou", "sheet_auc")
    cells = [shorten(scores[name]) for name in columns]
    widths = (9, 13, 13, 13, 13)
    return f"{label:<11}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))


def shorten(score: float) -> str:
    """Return ``score`` with three decimals, a dash where it is NaN."""
    return "-" if math.isnan(score) else f"{score:.3f}"


def plain(score: float) -> float | None:
    """Return ``score``, or None (an empty cell, JSON's null) where it is NaN."""
    return None if math.isnan(score) else score


if __name__ == "__main__":
    sys.exit(main())
