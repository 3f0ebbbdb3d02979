"""Measure learning per minute: recipes on the same files and time, scored on whole unseen volumes.

    python benchmarks/bench_learning.py                 # the reference's recipe and the fast one
    python benchmarks/bench_learning.py --table --minutes 10 --jobs 2
    python benchmarks/bench_learning.py --minutes 8 \
        --variant "mine: --recipe fast --ema 0.999" --variant "theirs: --recipe reference"

Each variant is a run of train_basic_3dunet.py with --max_minutes and a checkpoint an epoch (about
half a minute, by --patches_per_epoch); the time of an epoch contains its validation. Scoring comes
after all training, so that it costs none of that time: whole default volumes of a seed that no data
file has, by sliding windows. Writes curves.csv, curves.json and curves.png beside the runs, and
prints Markdown tables for benchmarks/README.md. Nothing else should run; --jobs 2 trains two at a
time with half of the cores each, which is a machine of half the size for each of them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import UserError
from utils.flags import FlagParser

REFERENCE_EPOCH = 2048
"""Patches in an epoch of the reference, which the scheduler's patience of 3 epochs refers to."""
PATCHES = {"reference": 160, "fast": 800, "table": 480}
"""Patches an epoch: half a minute or less on two cores."""
TEST_SEED = 77_777
"""Of the volumes that are scored; no file of gen_data.sh has it."""


@dataclass(frozen=True)
class Variant:
    """A way to train: a name and flags of train_basic_3dunet.py."""

    name: str
    flags: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Variant:
        """Read ``name: flags``; ValueError for anything else."""
        name, colon, flags = text.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{text!r}: must be a name, a colon and flags")
        return cls(name.strip(), tuple(shlex.split(flags)))

    @property
    def title(self) -> str:
        """Name of the log directory."""
        return re.sub(r"[^A-Za-z0-9]+", "_", self.name).strip("_")


@dataclass(frozen=True)
class Point:
    """One scored checkpoint; scores are means over volumes."""

    variant: str
    epoch: int
    minutes: float
    """Of training and validation so far."""
    patches: int
    """Trained on so far."""
    iou: float
    iou_low: float
    """95 % bootstrap interval over volumes."""
    iou_high: float
    sheet_iou: float
    """Inside the sheet."""
    sheet_auc: float
    baseline_iou: float
    """Of a mask of the whole sheet."""


def default_variants() -> list[Variant]:
    """Return the reference's recipe in float32, as it trains itself, in our precision, and ours.

    The reference's network has the 8 channels and batches of 4 with which it learns faster than
    with its defaults (4 and 32: 100 steps in 8 minutes). Its scheduler waits for as many patches
    as it does in epochs of 2,048.
    """
    patience = 3 * REFERENCE_EPOCH // PATCHES["reference"]
    reference = (
        f"--recipe reference --start_channels 8 --batch_size 4 --patches_per_epoch "
        f"{PATCHES['reference']} --lr_scheduler_patience {patience}"
    )
    return [
        Variant.read(f"reference in float32: {reference} --precision 32"),
        Variant.read(f"reference: {reference}"),
        Variant.read(f"fast: --recipe fast --patches_per_epoch {PATCHES['fast']}"),
    ]


def table_variants() -> list[Variant]:
    """Return U-Net and two stacks, Dice and label-balanced BCE, fixed files and on the fly."""
    networks = {"U-Net": "--arch unet", "2 stacks": "--arch stacked_unet --num_stacks 2"}
    sources = {"files": "", "on the fly": " --on_the_fly"}
    return [
        Variant.read(
            f"{network}, {loss}, {source}: --recipe fast --patches_per_epoch {PATCHES['table']} "
            f"--loss_type {loss} {arch}{flag}"
        )
        for network, arch in networks.items()
        for loss in ("dice", "weighted_bce")
        for source, flag in sources.items()
    ]


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__.splitlines()[0])
    # fmt: off
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="of training, validation included, a variant")
    add("--variant", action="append", type=Variant.read, metavar="'NAME: FLAGS'",
        help="another way to train, may be repeated; replaces the reference and the fast recipe")
    add("--table", action="store_true",
        help="the eight rows of the README's table: network x loss x source of the volumes")
    add("--directory", type=Path, default=Path("logs/bench_learning"),
        help="new folder for the runs and the curves")
    add("--evaluate_only", action="store_true", help="score the runs that the folder holds")
    add("--jobs", type=int, default=1, help="trainings at a time, which share the cores")
    add("--every", type=float, default=None,
        help="minutes between the checkpoints that are scored; 0: the last one only "
        "(default: 0.5, 0 with --table)")
    add("--volumes", type=int, default=12, help="unseen volumes that are scored")
    add("--test_file", type=Path, default=None,
        help="their data file; by default one of default volumes is made")
    add("--precision", choices=("auto", "32", "bf16"), default="auto", help="of scoring")
    add("--train_flags", default="", metavar="'FLAGS'",
        help="flags for all variants, such as '--data_dir FOLDER'")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(arguments)
    variants = flags.variant or (table_variants() if flags.table else default_variants())
    every = flags.every if flags.every is not None else (0.0 if flags.table else 0.5)
    try:
        check(flags, variants)
        flags.directory.mkdir(parents=True, exist_ok=True)
        test_file = flags.test_file or make_test_file(flags.directory / "unseen.h5", flags.volumes)
        if not flags.evaluate_only:
            train_all(variants, flags)
        points = [
            point
            for variant in variants
            for point in score_run(variant, flags.directory, test_file, every, flags)
        ]
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench_learning.py: {error}", file=sys.stderr)
        return 2
    write(points, variants, flags)
    report(points, variants, flags, sys.argv[1:] if arguments is None else list(arguments))
    return 0


def check(flags: argparse.Namespace, variants: Sequence[Variant]) -> None:
    """Raise UserError for flags that cannot be right, before anything is trained."""
    for name in ("minutes", "jobs", "volumes"):
        if getattr(flags, name) <= 0:
            raise UserError(f"--{name} {getattr(flags, name)}: must be larger than 0")
    titles = [variant.title for variant in variants]
    if len(set(titles)) < len(titles):
        raise UserError(f"--variant: names must differ in letters or digits: {', '.join(titles)}")
    for title in titles:
        run = flags.directory / title
        if run.exists() != flags.evaluate_only:
            raise UserError(
                f"{run} does not exist; train it first, without --evaluate_only"
                if flags.evaluate_only
                else f"{run} exists already; name another --directory, or give --evaluate_only"
            )


def make_test_file(path: Path, volumes: int) -> Path:
    """Simulate the volumes that are scored; a complete file of them is left as it is."""
    command = [sys.executable, str(ROOT / "generate_3d_data.py"), "--directory", str(path.parent)]
    command += ["--filename", path.name, "--L", str(volumes), "--random_state", str(TEST_SEED)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def train_all(variants: Sequence[Variant], flags: argparse.Namespace) -> None:
    """Run all trainings, ``--jobs`` at a time; ValueError with the last line of one that fails."""
    with ThreadPoolExecutor(flags.jobs) as pool:
        runs = [pool.submit(train, variant, flags) for variant in variants]
        for run in runs:
            run.result()


def train(variant: Variant, flags: argparse.Namespace) -> None:
    """Run one training; what it prints goes into a file beside its log directory."""
    command = [sys.executable, str(ROOT / "train_basic_3dunet.py"), *variant.flags]
    command += ["--experiment_title", variant.title, "--log_path", str(flags.directory)]
    command += ["--max_minutes", str(flags.minutes), "--checkpoint_policy", "all"]
    # The time alone ends a run.
    command += ["--epochs", "100000", "--early_stopping_patience", "100000"]
    command += shlex.split(flags.train_flags)
    environment = dict(os.environ)
    if flags.jobs > 1:
        environment["OMP_NUM_THREADS"] = str(threads_each(flags.jobs))
    print(f"training {variant.name}: {flags.minutes:g} minutes", file=sys.stderr, flush=True)
    output = flags.directory / f"{variant.title}.txt"
    with output.open("w") as file:
        ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    if ended.returncode:
        last = [line for line in output.read_text().splitlines() if line.strip()][-1:]
        raise ValueError(f"{variant.name} ended with status {ended.returncode}: {' '.join(last)}")


def threads_each(jobs: int) -> int:
    """Return the threads of each of ``jobs`` trainings."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def score_run(
    variant: Variant, directory: Path, test_file: Path, every: float, flags: argparse.Namespace
) -> list[Point]:
    """Return the scores of a run's checkpoints at least ``every`` minutes apart, and of the last.

    Raises ValueError for a run without a completed epoch.
    """
    run = directory / variant.title
    epochs = json.loads((run / "logs.json").read_text())["epochs"]
    if not epochs:
        raise ValueError(f"{variant.name}: no epoch was completed; give more --minutes")
    records = choose(epochs, every)
    points = []
    for number, record in enumerate(records, 1):
        scores = score_checkpoint(run, record["epoch"], test_file, flags)
        points.append(
            Point(
                variant=variant.name,
                epoch=record["epoch"],
                minutes=record["minutes"],
                patches=record["steps"] * batch_size(run),
                **scores,
            )
        )
        print(
            f"{variant.name}: checkpoint {number} of {len(records)}, "
            f"{record['minutes']:.1f} minutes, IoU {scores['iou']:.3f}",
            file=sys.stderr,
            flush=True,
        )
    return points


def choose(epochs: Sequence[dict[str, Any]], every: float) -> list[dict[str, Any]]:
    """Return the records at least ``every`` minutes apart, and the last; 0: the last one only."""
    chosen: list[dict[str, Any]] = []
    for record in epochs[:-1] if every > 0 else ():
        since = record["minutes"] - (chosen[-1]["minutes"] if chosen else 0.0)
        if since >= 0.9 * every:
            chosen.append(record)
    return [*chosen, epochs[-1]]


def batch_size(run: Path) -> int:
    """Return the patches in a step of a run."""
    return json.loads((run / "config.json").read_text())["flags"]["batch_size"]


def score_checkpoint(
    run: Path, epoch: int, test_file: Path, flags: argparse.Namespace
) -> dict[str, float]:
    """Return the mean scores of one epoch's network over the unseen volumes."""
    import numpy as np

    from models import ModelConfig, build_model
    from utils.checkpoints.loading import load_checkpoint
    from utils.data.normalize import PercentileNormalizer
    from utils.devices import choose_compute, memory_format
    from utils.evaluation.confusion import score_voxels
    from utils.evaluation.tables import bootstrap_mean
    from utils.prediction.sliding_window import predict_volume
    from utils.storage import VolumeFile

    compute = choose_compute("auto", flags.precision)
    state = load_checkpoint(run / "checkpoints" / f"epoch_{epoch:04d}.pth")
    model = build_model(ModelConfig.from_dict(state["model_config"]))
    model.load_state_dict(state["model_state"])
    model = model.to(compute.device, memory_format=memory_format(5)).eval()
    scores = []
    with VolumeFile(test_file) as file:
        for index in range(min(flags.volumes, len(file))):
            volume = file.read_volume(index)
            probabilities = predict_volume(
                model,
                volume.image,
                PercentileNormalizer(**state["normalizer"]),
                window=int(state["patch_size"]),
                batch_size=4,
                precision="bf16" if compute.precision == "bf16-mixed" else "32",
            )
            scores.append(score_voxels(probabilities, volume.mask, volume.sheet))
    iou = bootstrap_mean(np.array([score["iou"] for score in scores]), np.random.default_rng(0))
    means = {
        name: float(np.nanmean([score[name] for score in scores]))
        for name in ("sheet_iou", "sheet_auc", "baseline_iou")
    }
    return {"iou": iou.mean, "iou_low": iou.low, "iou_high": iou.high, **means}


def write(points: Sequence[Point], variants: Sequence[Variant], flags: argparse.Namespace) -> None:
    """Write curves.csv, curves.json and curves.png."""
    from machine import describe_machine

    from utils.replacing import replacing

    rows = [dataclasses.asdict(point) for point in points]
    with replacing(flags.directory / "curves.csv") as temporary, temporary.open("w") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    content = {
        "machine": describe_machine(),
        "minutes": flags.minutes,
        "jobs": flags.jobs,
        "variants": {variant.name: shlex.join(variant.flags) for variant in variants},
        "train_flags": flags.train_flags,
        "points": rows,
    }
    with replacing(flags.directory / "curves.json") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    curves = {
        variant.name: [
            (point.minutes, point.iou, point.iou_low, point.iou_high)
            for point in points
            if point.variant == variant.name
        ]
        for variant in variants
    }
    draw(curves, flags.directory / "curves.png", points[0].baseline_iou)


def draw(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], path: Path, baseline: float
) -> None:
    """Draw a curve a variant: minutes, mean IoU and the ends of its interval; and a baseline."""
    import numpy as np

    from utils.figures import canvas

    figure = canvas.new_figure(6.6, 4.2)
    axes = figure.subplots()
    for name, points in curves.items():
        minutes, iou, low, high = np.reshape(points, (-1, 4)).T
        (line,) = axes.plot(minutes, iou, marker="o", markersize=3, lw=1.5, label=name)
        axes.fill_between(minutes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    label = f"mask of the whole sheet {baseline:.2f}"
    axes.axhline(baseline, **canvas.REFERENCE_LINE, label=label)
    axes.set_xlim(left=0.0)
    axes.set_title("IoU on whole unseen volumes, 95 % intervals over volumes", fontsize=10)
    axes.set_xlabel("minutes of training", fontsize=9)
    axes.set_ylabel("IoU, mean over volumes", fontsize=9)
    canvas.style(axes)
    axes.legend(fontsize=8, frameon=False)
    canvas.save_figure(figure, path)


def report(
    points: Sequence[Point],
    variants: Sequence[Variant],
    flags: argparse.Namespace,
    arguments: Sequence[str],
) -> None:
    """Print the Markdown tables: where each variant ended, and its way there."""
    from machine import describe_machine

    print(describe_machine())
    print(f"`python benchmarks/bench_learning.py {shlex.join(arguments)}`: ", end="")
    print(f"{flags.minutes:g} minutes each, {flags.jobs} at a time", end="")
    print(f" with {threads_each(flags.jobs)} threads each" if flags.jobs > 1 else "", end="")
    print(f"; {flags.volumes} unseen volumes, whole sheet's IoU {points[0].baseline_iou:.3f}\n")
    print("| variant | parameters | minutes | patches | IoU (95 %) | inside the sheet | AUC |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: |")
    for variant in variants:
        last = [point for point in points if point.variant == variant.name][-1]
        config = json.loads((flags.directory / variant.title / "config.json").read_text())
        print(
            f"| {variant.name} | {config['parameters']:,} | {last.minutes:.1f} | "
            f"{last.patches:,} | {last.iou:.3f} ({last.iou_low:.3f} to {last.iou_high:.3f}) | "
            f"{last.sheet_iou:.3f} | {last.sheet_auc:.3f} |"
        )
    print()
    for variant in variants:
        way = [f"{p.minutes:.1f}: {p.iou:.3f}" for p in points if p.variant == variant.name]
        print(f"- {variant.name} (`{shlex.join(variant.flags)}`), minutes: IoU: {', '.join(way)}")


if __name__ == "__main__":
    sys.exit(main())
