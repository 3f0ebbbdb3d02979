r"""Measure what agreement under small changes says of a mask's IoU, and calibrate a network.

    python benchmarks/bench_trust.py --checkpoint columns3d --write --plot assets/trust.png \
        --data medulla=vol_data/medulla.h5 default=vol_data/vol_val_set.h5

Volumes of preset wide are simulated and predicted, the agreement is measured as predict.py does,
and the true IoU beside it. The calibration is fitted on those of one seed and judged on others:
wide volumes of another seed and those of the files of --data. Prints a table: the rank correlation
of agreement and IoU with its 95 % bootstrap interval, how far the expected IoU is off, and how
often the true one lies between both bounds, which should be 0.8. --write stores the calibration in
the checkpoint, from where export_model.py takes it along: calibrate before or after an export.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from machine import describe_machine
from scipy import stats
from tqdm import tqdm

from models import ModelConfig, build_model
from utils.checkpoints.loading import find_pretrained
from utils.data.normalize import measure_limits
from utils.errors import exit_status
from utils.evaluation.confusion import score_voxels
from utils.flags import FlagParser
from utils.prediction.sliding_window import Windows, window_within
from utils.prediction.trained_network import TrainedNetwork, fused, read_network
from utils.prediction.trust import (
    CHANGES,
    MOST_WINDOWS,
    Calibration,
    logit,
    measure_agreement,
    passes_of,
)
from utils.prediction.whole_stack import StackPrediction
from utils.replacing import replacing
from utils.simulation import SimulatedVolume, sample_rng, simulate_volume
from utils.simulation.volume import preset
from utils.stacks import open_stack
from utils.storage import VolumeFile

BOUNDS = (0.1, 0.9)
"""Quantiles of the residuals that become the bounds of the expected IoU."""


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = FlagParser(prog="bench_trust.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", default="columns3d", help="name of a network, a .pth file")
    add("--volumes", nargs=2, type=int, default=[96, 48], help="to calibrate on, to judge by")
    add("--seeds", nargs=2, type=int, default=[4321, 8642], help="of both")
    add("--data", nargs="*", default=[], metavar="NAME=FILE", help="other files to judge by")
    add("--samples", type=int, default=16, help="of each of them, at most")
    add("--edge", type=int, default=128, help="of the wide volumes, in voxels")
    add("--precision", choices=("32", "bf16"), default="32")
    add("--plot", metavar="FILE", help="expected against true IoU")
    add("--write", action="store_true", help="store the calibration in the checkpoint")
    return parser.parse_args(arguments)


def wide_volumes(seed: int, count: int, edge: int) -> Iterable[SimulatedVolume]:
    config = preset("wide", shape=(edge,) * 3)
    return (simulate_volume(config, sample_rng(seed, index)) for index in range(count))


def stored_volumes(path: str, count: int) -> Iterable[SimulatedVolume]:
    with VolumeFile(path) as file:
        for index in range(min(count, len(file))):
            yield file.read_volume(index)


def score(
    network: TrainedNetwork, model: torch.nn.Module, volume: SimulatedVolume, precision: str
) -> tuple[float, float]:
    """Return agreement and true IoU, with predict.py's own threshold, of one volume as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.npy"
        np.save(path, volume.image.T)
        with open_stack(path) as stack:
            limits = measure_limits(stack, network.normalizer)
            windows = Windows(window_within(stack.shape, network.patch_size), precision=precision)
            ready = StackPrediction(model, stack, network.normalizer, limits, stack.shape, windows)
            slabs = [slab.copy() for _, slab in ready.slabs()]
            most = MOST_WINDOWS * passes_of(CHANGES)
            agreement = measure_agreement(ready, most, np.random.default_rng(0)).value
    return agreement, score_voxels(np.concatenate(slabs, axis=-1), volume.mask, None)["iou_auto"]


def fit(agreements: np.ndarray, ious: np.ndarray) -> Calibration:
    """Return the line through the logits of both, by Theil and Sen, and bounds by quantiles."""
    known = np.isfinite(agreements)
    x, y = logit(agreements[known]), logit(ious[known])
    slope = max(0.0, float(stats.theilslopes(y, x).slope))
    offset = float(np.median(y - slope * x))
    low, high = np.quantile(y - slope * x - offset, BOUNDS)
    return Calibration(offset, slope, float(low), float(high))


def judge(calibration: Calibration, agreements: np.ndarray, ious: np.ndarray) -> list[str]:
    """Return the cells of a group's row."""
    known = np.isfinite(agreements)
    agreements, ious = agreements[known], ious[known]
    expected = np.array([calibration.expected(value) for value in agreements])
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(ious), size=len(ious)) for _ in range(2000)]
    rank = stats.spearmanr(agreements, ious).statistic
    several = [rows for rows in drawn if len(set(agreements[rows])) > 1 < len(set(ious[rows]))]
    ranks = [stats.spearmanr(agreements[rows], ious[rows]).statistic for rows in several]
    low, high = np.nanquantile(ranks, [0.025, 0.975])
    inside = (ious >= expected[:, 1]) & (ious <= expected[:, 2])
    off = np.abs(ious - expected[:, 0])
    return [
        f"{len(ious)} of {len(known)}",
        f"{ious.mean():.3f}",
        f"{rank:.2f} ({low:.2f} to {high:.2f})",
        f"{off.mean():.3f}",
        f"{np.mean(ious - expected[:, 0]):+.3f}",
        f"{inside.mean():.2f}",
    ]


def plot(path: str, groups: dict[str, np.ndarray], calibration: Calibration) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for name, pairs in groups.items():
        expected = [calibration.expected(value)[0] for value in pairs[:, 0]]
        axes.scatter(expected, pairs[:, 1], s=14, label=f"{name} ({len(pairs)})")
    values = np.linspace(0.02, 0.98, 200)
    middle, low, high = np.array([calibration.expected(value) for value in values]).T
    axes.fill_between(middle, low, high, alpha=0.15, color="grey", label="bounds (80 %)")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.set(xlabel="expected IoU", ylabel="true IoU", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def write(checkpoint: str, calibration: Calibration) -> Path:
    """Store the calibration in the file of weights; return its path."""
    path = find_pretrained(checkpoint) or Path(checkpoint)
    path = path / "checkpoints" / "best.pth" if path.is_dir() else path
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    with replacing(path) as temporary:
        torch.save({**state, "trust": vars(calibration)}, temporary)
    return path


def measure(flags: argparse.Namespace) -> None:
    network = read_network(flags.checkpoint)
    config = network.parse_config(ModelConfig.from_dict)
    model = fused(network.restore(build_model(config), "cpu", 3))
    seeds = zip(("wide, calibrated on", "wide, left out"), flags.seeds, flags.volumes, strict=True)
    sources = {name: wide_volumes(seed, count, flags.edge) for name, seed, count in seeds}
    for entry in flags.data:
        name, path = entry.split("=", 1)
        sources[name] = stored_volumes(path, flags.samples)
    groups = {
        name: np.array([score(network, model, v, flags.precision) for v in tqdm(volumes, name)])
        for name, volumes in sources.items()
    }
    calibration = fit(*next(iter(groups.values())).T)
    names = ("volumes", "true IoU", "rank correlation", "off by", "bias", "within bounds")
    print(f"\n{describe_machine()}\n\n{flags.checkpoint}, epoch {network.epoch}: {calibration}\n")
    print(f"| group | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    everything = {**groups, "all but the first": np.concatenate(list(groups.values())[1:])}
    for name, pairs in everything.items():
        print(f"| {name} | {' | '.join(judge(calibration, *pairs.T))} |")
    if flags.plot:
        plot(flags.plot, dict(list(groups.items())[1:]), calibration)
    if flags.write:
        print(f"\nwrote the calibration into {write(flags.checkpoint, calibration)}")


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(arguments)
    return exit_status("bench_trust.py", lambda: measure(flags))


if __name__ == "__main__":
    sys.exit(main())
