"""Measure what a few annotated planes of a lab's stack are worth, to the shipped network and alone.

    python benchmarks/bench_finetune.py                # 8 stacks, five planes, 10 minutes each
    python benchmarks/bench_finetune.py --planes 1 5 25 --stacks 3 --alone_minutes 60
    python benchmarks/bench_finetune.py --stacks 2 --minutes 3

The lab's stain lies outside of what preset wide draws: rims darker than the gaps, at half the
contrast. Each stack has its own instance of it: what the preset draws for a volume is drawn once
and kept, but for the brightness of structures. Two volumes are made of it. Some planes of the first
are annotated and trained on; scored are the first without these planes (of any number of them, for
all networks alike), the second, and volumes of the default preset, which must not be forgotten.
Each training is a run of train_basic_3dunet.py; those in the folder go on where they ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import UserError, exit_status
from utils.flags import FlagParser

ROOT = Path(__file__).resolve().parent.parent
SEED = 4242
"""Of the lab's stacks; no training of the shipped network has it."""
NOT_ANNOTATED = 99
FREE = ("level", "contrast")
"""Ranges that stay ranges: a contrast needs room for its levels."""
PLACES = ("same stack", "next stack", "default volumes")
"""Where a network is scored."""


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags."""
    parser = FlagParser(description="Measure trainings on a few annotated planes of lab stacks.")
    add = parser.add_argument
    add("--init", default="columns3d", help="the shipped network")
    add("--stacks", type=int, default=8, metavar="INT", help="lab stacks, each trained on alone")
    add("--planes", type=int, nargs="+", default=[5], metavar="INT", help="annotated planes")
    add("--minutes", type=float, default=10, metavar="FLOAT", help="of each training")
    add(
        "--alone_minutes",
        type=float,
        metavar="FLOAT",
        help="of another training from nothing, such as 60",
    )
    add("--default_volumes", type=int, default=4, metavar="INT", help="of the default preset")
    add("--edge", type=int, default=128, metavar="INT", help="edge of all volumes in voxels")
    add("--directory", type=Path, default=Path("logs/finetune"), help="of stacks and runs")
    add("--train_flags", default="", metavar="STR", help="further flags of each training")
    flags = parser.parse_args(arguments)
    minutes = min(flags.minutes, flags.alone_minutes or flags.minutes)
    if min(flags.stacks, flags.default_volumes, *flags.planes) < 1 or not minutes > 0:
        parser.error("--stacks, --planes, --default_volumes and all minutes must be above 0")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Make stacks, train, score, print the table; return the exit status."""
    flags = parse_flags(arguments)
    return exit_status("bench_finetune.py", lambda: run(flags), "interrupted")


def run(flags: argparse.Namespace) -> int:
    """Train and score every variant on every stack."""
    from utils.simulation import VolumeConfig, sample_rng, simulate_volume

    flags.directory.mkdir(parents=True, exist_ok=True)
    shape = (flags.edge,) * 3
    known = [
        simulate_volume(VolumeConfig(shape=shape), sample_rng(SEED, k))
        for k in range(flags.default_volumes)
    ]
    scores: dict[str, list[dict[str, float]]] = {}
    for number in range(flags.stacks):
        own, after = lab_volumes(number, flags.edge)
        planes = {count: annotated_planes(own, count) for count in flags.planes}
        for name, checkpoint in trained(flags, number, own, planes):
            found = score(checkpoint, own, after, known, sorted({*sum(planes.values(), [])}))
            scores.setdefault(name, []).append(found)
            told = ", ".join(f"{place} {iou:.3f}" for place, iou in found.items())
            print(f"stack {number + 1}, {name}: {told}", file=sys.stderr, flush=True)
    (flags.directory / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    report(flags, scores)
    return 0


def lab_volumes(number: int, edge: int) -> list[Any]:
    """Return two volumes of one instance of the stain that was left out."""
    import numpy as np

    from utils.simulation import WideConfig, sample_rng, simulate_volume
    from utils.simulation.stain import StainConfig

    left_out = StainConfig(
        rims_probability=1.0,
        rods_probability=0.0,
        inverted_probability=1.0,
        contrast=(0.1, 0.2),
    )
    rng = np.random.default_rng([SEED, number])
    fields: dict[str, Any] = {}
    for name, value in vars(left_out).items():
        if name.endswith("_probability"):
            fields[name] = float(rng.random() < value)
        elif name not in FREE:
            low, high = value
            whole = isinstance(low, int)
            drawn = int(rng.integers(low, high + 1)) if whole else float(rng.uniform(low, high))
            fields[name] = (drawn, drawn)
    stain = replace(left_out, **fields)
    config = WideConfig(shape=(edge,) * 3, stain=stain, min_visibility=0.3)
    return [simulate_volume(config, sample_rng(SEED + 1 + number, k)) for k in range(2)]


def annotated_planes(own: Any, count: int) -> list[int]:
    """Return so many planes, spread evenly over those that hold columns."""
    import numpy as np

    busy = np.flatnonzero(own.mask.any((0, 1)))
    return np.unique(np.linspace(busy[0], busy[-1], count + 2).round()[1:-1]).astype(int).tolist()


def trained(
    flags: argparse.Namespace, number: int, own: Any, planes: dict[int, list[int]]
) -> Iterator[tuple[str, str | Path]]:
    """Yield name and checkpoint of each variant, trained when it is its turn."""
    import numpy as np
    import tifffile

    yield "as shipped", flags.init
    stack = flags.directory / f"stack_{number}.tif"
    tifffile.imwrite(stack, own.image.astype(np.float32).T)
    for count, places in planes.items():
        labels = np.full(own.mask.shape, NOT_ANNOTATED, np.uint8)
        labels[..., places] = own.mask[..., places]
        drawn = flags.directory / f"labels_{number}_{count}.tif"
        tifffile.imwrite(drawn, labels.T)
        words = f"{count} plane{'s' * (count > 1)}"
        variants: list[tuple[str, list[str], float]] = [
            (f"from it, {words}", ["--init", flags.init], flags.minutes),
            (f"from it, {words}, --mix 0.5", ["--init", flags.init, "--mix", "0.5"], flags.minutes),
            (f"from nothing, {words}", [], flags.minutes),
        ]
        if alone := flags.alone_minutes:
            variants.append((f"from nothing, {words}, {alone:g} minutes", [], alone))
        for name, more, minutes in variants:
            title = f"{number} {name}".replace(" ", "_").replace(",", "").replace(".", "")
            command = [sys.executable, str(ROOT / "train_basic_3dunet.py"), "--recipe", "fast"]
            command += ["--train_files", f"{stack}={drawn}", "--ignore_label", str(NOT_ANNOTATED)]
            command += ["--scale", "1", "--max_minutes", str(minutes), "--epochs", "1000"]
            command += ["--log_path", str(flags.directory), "--experiment_title", title]
            command += ["--resume"] * (flags.directory / title).exists()
            ended = subprocess.run(
                [*command, *more, *flags.train_flags.split()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if ended.returncode:
                raise UserError(f"{title}: the training failed: {ended.stderr.strip()[-300:]}")
            yield name, flags.directory / title


def score(
    checkpoint: str | Path, own: Any, after: Any, known: Sequence[Any], planes: list[int]
) -> dict[str, float]:
    """Return the IoU at each of :data:`PLACES`, of the trained stack without ``planes``.

    Masks are cut at the threshold that predict.py chooses for them.
    """
    import numpy as np

    from models import ModelConfig, build_model
    from utils.evaluation.confusion import Confusion, confusion
    from utils.prediction.sliding_window import predict_volume
    from utils.prediction.thresholds import best_threshold, to_levels
    from utils.prediction.trained_network import read_network

    network = read_network(checkpoint)
    model = network.restore(build_model(network.parse_config(ModelConfig.from_dict)), "cpu", 3)

    def counted(volume: Any, but: list[int]) -> Confusion:
        window = min(network.patch_size, *volume.mask.shape)
        found = predict_volume(model, volume.image, network.normalizer, window=window)
        called = found >= best_threshold([to_levels(found)])
        return confusion(np.delete(called, but, axis=2), np.delete(volume.mask, but, axis=2))

    ious = counted(own, planes).iou, counted(after, []).iou
    return dict(
        zip(PLACES, (*ious, float(np.mean([counted(v, []).iou for v in known]))), strict=True)
    )


def report(flags: argparse.Namespace, scores: dict[str, list[dict[str, float]]]) -> None:
    """Print the Markdown table: means over the stacks and their 95 % bootstrap intervals."""
    import numpy as np
    from machine import describe_machine

    from utils.evaluation.tables import bootstrap_mean

    print(describe_machine(), end="\n\n")
    print(f"{flags.stacks} lab stacks of {flags.edge}^3, {flags.minutes:g} minutes a training\n")
    print(f"| network | {' | '.join(f'IoU, {place}' for place in PLACES)} |")
    print("| --- | --- | --- | --- |")
    for name, found in scores.items():
        cells = []
        for place in PLACES:
            values = np.array([one[place] for one in found])
            mean, low, high, _ = bootstrap_mean(values, np.random.default_rng(0))
            cells.append(f"{mean:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
