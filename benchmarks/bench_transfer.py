"""Measure how networks do on stains, microscopes and lattices that were left out of training.

    python benchmarks/bench_transfer.py --baselines-only    # the shipped networks, nothing trained
    python benchmarks/bench_transfer.py --columns_table columns.csv --columns_paths paths.csv
    python benchmarks/bench_transfer.py --groups rims --minutes 8
    python benchmarks/bench_transfer.py --threshold wide_val.h5

Each group of GROUPS is a file of volumes of preset wide with that stain or microscope alone, or
with the real columns of --columns_table. A network is trained without the group (and without
another, FOLDS, which halves the trainings) by train_basic_3dunet.py, --minutes from --init, and
scored on it ("left out") beside one that has trained as long on everything ("saw it"), --networks,
a mask of the whole sheet, and a difference of Gaussians that is told spacing, polarity and mean
axis, at the group's best threshold. Networks' columns are found as by predict.py --columns.
Runs and files in the folder are used as they are. Writes transfer.json, .md, .png, examples.png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
from bench_learning import choose
from machine import describe_machine

from models import ModelConfig, build_model
from utils.columns.finding import columns_of
from utils.data.normalize import PercentileNormalizer
from utils.devices import choose_compute
from utils.errors import UserError, exit_status
from utils.evaluation.columns import Truth, score_found
from utils.evaluation.confusion import area_under_curve, score_voxels
from utils.evaluation.tables import means_over_volumes
from utils.figures import canvas
from utils.figures.learning import save_predictions
from utils.flags import FlagParser
from utils.prediction.sliding_window import predict_volume
from utils.prediction.thresholds import best_threshold, to_levels
from utils.prediction.trained_network import read_network
from utils.simulation import SimulatedVolume
from utils.storage import VolumeFile

MEDULLA = "medulla"
# fmt: off
GROUPS = {
    # name: (TOML of what all its volumes have, TOML of what those trained without it have instead)
    "inverted": ("stain.inverted_probability = 1.0", "stain.inverted_probability = 0.0"),
    "rims": ("stain.rims_probability = 1.0\nstain.rods_probability = 0.0",
             "stain.rims_probability = 0.0"),
    "rods": ("stain.rods_probability = 1.0\nstain.rims_probability = 0.0",
             "stain.rods_probability = 0.0"),
    "dark_ground": ("stain.dark_ground_probability = 1.0\nstain.inverted_probability = 0.0",
                    "stain.dark_ground_probability = 0.0"),
    "strata": ("stain.bands_probability = 1.0\nstain.arbours_probability = 1.0",
               "stain.arbours_probability = 0.0\nstain.band_contrast = [0.0, 0.5]"),
    # Planes are at most a quarter of the spacing apart.
    "coarse": ("sheet.spacing = [10.0, 16.0]\nmicroscope.coarse_probability = 1.0\n"
               "microscope.coarse = [2.5, 4.0]\nmicroscope.photons = [5.0, 20.0]",
               "microscope.coarse = [1.0, 2.5]\nmicroscope.photons = [20.0, 200.0]"),
    MEDULLA: ("", ""),
}
# fmt: on
FOLDS = {
    "without_inverted_coarse": ("inverted", "coarse"),
    "without_rims_strata": ("rims", "strata"),
    "without_rods_dark_ground": ("rods", "dark_ground"),
}
EVERYTHING, SAW_MEDULLA = "everything", "with_medulla"
"""Runs that leave nothing out. Volumes on the fly have no table, so the second one reads files."""
TEST_SEED, VALIDATION_SEED, SEEN_SEED = 77_001, 77_002, 77_003
VALIDATION_VOLUMES, SEEN_VOLUMES = 8, 96
SHEET, GAUSSIANS = "whole sheet", "difference of Gaussians"
NARROW, BROAD, ALONG = 0.15, 0.3, 0.3
"""Sigmas of the difference, and of smoothing along the columns, in spacings: the best of 18 on
eight volumes of preset wide."""
THRESHOLDS = np.linspace(0.05, 0.95, 19).round(2)
OF_GAUSSIANS = np.linspace(-1.0, 3.0, 41).round(1)
STAINED, LEFT_OUT, GAP, OUTSIDE = range(4)
"""What a voxel is: in a stained column, in one without stain, between them, out of the sheet."""
SCORES = (
    "iou iou_half iou_best iou_stained auc auc_stained false_tissue f1_line f1_iou30 pairs".split()
)
"""IoU of networks at the threshold of predict.py --threshold auto, at 0.5, and at the group's best
threshold, IoU without the columns that have no stain, AUC in the sheet, share of the voxels called
column outside of it, F1 by centre line and by IoU 0.3, and share of the neighbour pairs found whose
step is right modulo any basis."""
Predictor = Callable[[SimulatedVolume], np.ndarray]


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = FlagParser(description=__doc__.splitlines()[0])
    # fmt: off
    add = parser.add_argument
    add("--groups", nargs="+", choices=tuple(GROUPS), metavar="GROUP",
        help=f"of {', '.join(GROUPS)} (default: all, the last one with --columns_table)")
    add("--columns_table", help="CSV of measured columns, as generate_3d_data.py takes it")
    add("--columns_paths", help="CSV of their paths")
    add("--networks", nargs="*", default=["columns3d_reference", "columns3d"], metavar="NETWORK",
        help="trained networks to score as well: names, files or log directories")
    add("--baselines-only", action="store_true", help="train nothing")
    add("--minutes", type=float, default=30.0, help="of each training")
    add("--init", default="columns3d_reference", help="network that they start from")
    add("--train_flags", default="", metavar="'FLAGS'", help="more flags for all trainings")
    add("--volumes", type=int, default=16, help="volumes of a group")
    add("--edge", type=int, default=128, help="their edge in voxels")
    add("--directory", type=Path, default=Path("logs/bench_transfer"), help="of runs and results")
    add("--threshold", metavar="FILE",
        help="only print the IoU of --networks by threshold on the first --volumes of a file")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(arguments)
    flags.command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    work = print_thresholds if flags.threshold else compare
    return exit_status("bench_transfer.py", lambda: work(flags))


def compare(flags: argparse.Namespace) -> None:
    """Make what is missing, score all methods on all groups, write and print the results."""
    groups = flags.groups or [name for name in GROUPS if name != MEDULLA or flags.columns_table]
    if min(flags.minutes, flags.volumes, flags.edge) <= 0:
        raise UserError("--minutes, --volumes, --edge: must be larger than 0")
    if MEDULLA in groups and not flags.columns_table:
        raise UserError(f"--groups {MEDULLA}: needs --columns_table")
    flags.directory.mkdir(parents=True, exist_ok=True)
    files = {g: make_file(g, GROUPS[g][0], flags.volumes, TEST_SEED, flags) for g in groups}
    if not flags.baselines_only:
        for run in dict.fromkeys(run for group in groups for run in runs_of(group)):
            train(run, flags)
    write({group: score_group(group, path, flags) for group, path in files.items()}, flags)


def runs_of(group: str) -> tuple[str, str]:
    """Return the run that has not seen a group, and the one that has."""
    if group == MEDULLA:
        return EVERYTHING, SAW_MEDULLA
    return next(run for run, groups in FOLDS.items() if group in groups), EVERYTHING


def make_file(name: str, text: str, volumes: int, seed: int, flags: argparse.Namespace) -> Path:
    """Simulate a file of preset wide with ``text`` as TOML; a complete one is left as it is."""
    path = flags.directory / f"{name}.h5"
    path.with_suffix(".toml").write_text(f'preset = "wide"\n{text}\n')
    command = ["--directory", str(path.parent), "--filename", path.name, "--L", str(volumes)]
    command += ["--config", str(path.with_suffix(".toml")), "--random_state", str(seed)]
    command += ["--L_xy", str(flags.edge), "--L_z", str(flags.edge)]
    if name.endswith(MEDULLA):
        command += ["--columns_table", flags.columns_table]
        command += ["--columns_paths", flags.columns_paths] if flags.columns_paths else []
    run_script("generate_3d_data.py", command, path.with_suffix(".txt"))
    return path


def train(run: str, flags: argparse.Namespace) -> None:
    """Train one network, unless its run is there."""
    if (flags.directory / run).exists():
        return
    text = "\n".join(GROUPS[group][1] for group in FOLDS.get(run, ()))
    validation = make_file(f"valid_{run}", text, VALIDATION_VOLUMES, VALIDATION_SEED, flags)
    command = ["--experiment_title", run, "--log_path", str(flags.directory)]
    command += ["--max_minutes", str(flags.minutes), "--checkpoint_policy", "all"]
    command += ["--epochs", "100000", "--patches_per_epoch", "512", "--val_files", str(validation)]
    command += ["--init", flags.init, "--recipe", "fast", "--augment", "stains"]
    if run == SAW_MEDULLA:
        seen = [f"seen_{MEDULLA}", f"seen_{EVERYTHING}"]
        paths = [make_file(name, "", SEEN_VOLUMES, SEEN_SEED, flags) for name in seen]
        command += ["--train_files", *map(str, paths)]
    else:
        command += ["--on_the_fly", "--presets", "wide=0.75,reference=0.25"]
        command += ["--config", str(validation.with_suffix(".toml"))]
    print(f"training {run}: {flags.minutes:g} minutes", file=sys.stderr, flush=True)
    command += shlex.split(flags.train_flags)
    run_script("train_basic_3dunet.py", command, flags.directory / f"{run}.txt")


def run_script(script: str, arguments: Sequence[str], output: Path) -> None:
    """Run a script of the project; UserError with the last line of one that fails."""
    command = [sys.executable, str(ROOT / script), *arguments]
    with output.open("w") as file:
        ended = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if ended.returncode:
        raise UserError(f"{script} ended with {ended.returncode}: {output.read_text()[-300:]}")


def checkpoints(run: Path) -> list[tuple[float, Path]]:
    """Return minutes and files of about four of a run's checkpoints, the last one included."""
    epochs = json.loads((run / "logs.json").read_text())["epochs"]
    if not epochs:
        raise UserError(f"{run}: no epoch was completed; remove it, and give more --minutes")
    records = choose(epochs, epochs[-1]["minutes"] / 4)
    return [(r["minutes"], run / "checkpoints" / f"epoch_{r['epoch']:04d}.pth") for r in records]


def network_maps(checkpoint: str | Path) -> Predictor:
    """Return what makes the probabilities (X, Y, Z) of a network, in windows of its patches."""
    network, compute = read_network(checkpoint), choose_compute("auto", "auto")
    model = build_model(network.parse_config(ModelConfig.from_dict))
    model = network.restore(model, compute.device, 3)
    precision = "bf16" if compute.precision == "bf16-mixed" else "32"
    return lambda volume: predict_volume(
        model, volume.image, network.normalizer, window=network.patch_size, precision=precision
    )


def gaussians(volume: SimulatedVolume) -> np.ndarray:
    """Return a difference of Gaussians (X, Y, Z), smoothed along the columns' mean axis.

    Of the grey values that a network sees, in standard deviations, columns high. A product of
    spectra, with a mirrored border.
    """
    normalizer = PercentileNormalizer()
    image = normalizer.apply(volume.image, *normalizer.fit(volume.image))
    spacing = volume.parameters.spacing * float(np.mean(image.shape))
    ways = volume.e_r * np.array(image.shape)
    axis = np.linalg.svd(ways / np.linalg.norm(ways, axis=1, keepdims=True))[2][0]
    border = min(int(np.ceil(2 * spacing)), min(image.shape) - 1)
    padded = np.pad(image, border, mode="reflect")
    steps = [np.fft.fftfreq(n) for n in padded.shape[:2]] + [np.fft.rfftfreq(padded.shape[2])]
    waves = np.meshgrid(*(2 * np.pi * spacing * step for step in steps), indexing="ij", sparse=True)
    square, along = sum(k**2 for k in waves), sum(k * a for k, a in zip(waves, axis, strict=True))
    passed = np.exp(-square * NARROW**2 / 2) - np.exp(-square * BROAD**2 / 2)
    spectrum = np.fft.rfftn(padded) * passed * np.exp(-((along * ALONG) ** 2) / 2)
    ratings = np.fft.irfftn(spectrum, padded.shape, axes=(0, 1, 2))
    ratings = ratings[(slice(border, -border),) * 3]
    levels = json.loads(volume.parameters.drawn)["stain"]["levels"]  # of the core; of the gap
    return np.sign(levels[0] - levels[2]) * ratings / max(float(ratings.std()), 1e-12)


def kinds_of(volume: SimulatedVolume) -> np.ndarray:
    """Return (X, Y, Z) uint8: STAINED, LEFT_OUT, GAP or OUTSIDE."""
    kinds = np.where(volume.sheet > 0, GAP, OUTSIDE).astype(np.uint8)
    labelled = volume.instances > 0
    stained = volume.column_type[volume.instances[labelled] - 1] > 0
    kinds[labelled] = np.where(stained, STAINED, LEFT_OUT)
    return kinds


def at_thresholds(ratings: np.ndarray, kinds: np.ndarray, limits: np.ndarray) -> pd.DataFrame:
    """Return the scores of the voxels that reach each of T rising limits, a row for each."""
    levels, size = np.searchsorted(limits, ratings, side="right"), len(limits) + 1
    counts = np.bincount((kinds * np.intp(size) + levels).ravel(), minlength=4 * size)
    reach = counts.reshape(4, size)[:, ::-1].cumsum(axis=1)[:, ::-1]  # that many limits
    (stained, left_out, _, outside), called = reach[:, 1:], reach[:, 1:].sum(axis=0)
    missed = reach[:, :1] - reach[:, 1:]
    scores = {
        "iou": (stained + left_out) / (called + missed[STAINED] + missed[LEFT_OUT]),
        "iou_stained": stained / (called - left_out + missed[STAINED]),
        "false_tissue": outside / np.where(called, called, np.nan),
    }
    return pd.DataFrame(scores, limits)


def score(
    name: str,
    maps: Sequence[np.ndarray],
    volumes: Sequence[SimulatedVolume],
    kinds: Sequence[np.ndarray],
) -> tuple[pd.DataFrame, pd.Series]:
    """Return the SCORES of each volume, and the mean IoU by threshold.

    Scores are taken at the threshold that predict.py chooses for a volume, those of the difference
    of Gaussians at its best threshold for all.
    """
    limits = OF_GAUSSIANS if name == GAUSSIANS else THRESHOLDS
    ways = [at_thresholds(m, k, limits) for m, k in zip(maps, kinds, strict=True)]
    mean = pd.concat(way["iou"] for way in ways).groupby(level=0).mean()
    best, rows = mean.idxmax(), []
    for ratings, kind, way, volume in zip(maps, kinds, ways, volumes, strict=True):
        at = best if name == GAUSSIANS else best_threshold([to_levels(ratings)])
        row = {**at_thresholds(ratings, kind, np.array([at])).iloc[0]}
        row |= {"iou_half": way["iou"].get(0.5), "iou_best": way.loc[best, "iou"]}
        if name == GAUSSIANS:
            row["iou_half"] = np.nan  # its ratings are no probabilities
        for key, ignored in (("auc", (OUTSIDE,)), ("auc_stained", (OUTSIDE, LEFT_OUT))):
            asked = ~np.isin(kind, ignored)
            row[key] = area_under_curve(ratings[asked], kind[asked] <= LEFT_OUT)
        if name not in (SHEET, GAUSSIANS):
            found = score_found(columns_of(ratings, (1.0, 1.0, 1.0)), volume, Truth.of(volume))
            row |= {key: found[f"instance_{key}"] for key in ("f1_line", "f1_iou30")}
            row["pairs"] = found["instance_pairs_right_any_basis"]
        rows.append(row)
    return pd.DataFrame(rows, columns=SCORES), mean


def read_volumes(path: str | Path, most: int) -> list[SimulatedVolume]:
    with VolumeFile(path) as file:
        return [file.read_volume(index) for index in range(min(most, len(file)))]


def score_group(group: str, path: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the scores of all methods on one group, the left-out network's curve, an example."""
    volumes = read_volumes(path, flags.volumes)
    kinds = [kinds_of(volume) for volume in volumes]
    methods: dict[str, Predictor] = {SHEET: lambda volume: volume.sheet, GAUSSIANS: gaussians}
    methods |= {name: network_maps(name) for name in flags.networks}
    curve = []
    if not flags.baselines_only:
        left_out, saw = (checkpoints(flags.directory / run) for run in runs_of(group))
        methods |= {"saw it": network_maps(saw[-1][1]), "left out": network_maps(left_out[-1][1])}
        for minutes, checkpoint in [(0.0, flags.init), *left_out]:
            predict = network_maps(checkpoint)
            ious = [score_voxels(predict(v), v.mask, None)["iou_auto"] for v in volumes]
            curve.append([minutes, np.mean(ious)])
    scores, limits = {}, {}
    for name, predict in methods.items():
        maps = [predict(volume) for volume in volumes]
        scores[name], limits[name] = score(name, maps, volumes, kinds)
        print(f"{group}, {name}: IoU {scores[name]['iou'].mean():.3f}", file=sys.stderr, flush=True)
    middle = int(scores[name]["iou"].argsort()[len(volumes) // 2])
    example = f"{group}, {name}, volume {middle}", volumes[middle], maps[middle]
    return {"scores": scores, "limits": limits, "curve": curve, "example": example}


def write(results: dict[str, dict[str, Any]], flags: argparse.Namespace) -> None:
    """Write scores, tables and pictures; print the tables."""
    table = pd.concat({g: pd.concat(r["scores"]) for g, r in results.items()})
    table.index.names = ["group", "method", "volume"]
    cases = table.groupby(level=["group", "method"], sort=False)
    means = cases.apply(lambda scores: means_over_volumes(scores, seed=0).stack())
    limits = {group: pd.DataFrame(result["limits"]) for group, result in results.items()}
    curves = {group: result["curve"] for group, result in results.items()}
    content = {
        "command": f"python benchmarks/bench_transfer.py {flags.command}",
        "machine": describe_machine(),
        "seed": TEST_SEED,
        "groups": {group: GROUPS[group][0] for group in results},
        "scores": json.loads(table.reset_index().to_json(orient="records", double_precision=4)),
        "iou_by_threshold": {
            g: json.loads(t.to_json(double_precision=4)) for g, t in limits.items()
        },
        "curves": curves,
    }
    (flags.directory / "transfer.json").write_text(json.dumps(content, indent=1) + "\n")
    rows = []
    for (group, name), mean in means.iterrows():
        cells = [f"{mean[key, 'mean']:.2f}".replace("nan", "") for key in SCORES]
        cells[0] = "{:.3f} ({:.3f} to {:.3f})".format(*mean["iou"][["mean", "low", "high"]])
        cells[2] += f" ({limits[group][name].idxmax():g})"
        rows.append([group, name, *cells])
    text = markdown(["group", "method", *SCORES], rows)
    iou, rows = means["iou", "mean"].unstack("group", sort=False), []
    for name in iou.index:
        above = [
            f"{(iou.loc[name] > iou.loc[o]).sum()} of {len(results)}" for o in (SHEET, GAUSSIANS)
        ]
        rows.append([name, *above, f"{(iou.loc[name] / iou.loc[SHEET]).mean():.2f}"])
    heads = ["IoU of", f"above the {SHEET}", f"above the {GAUSSIANS}", "times the sheet's"]
    text += "\n" + markdown(heads, rows)
    (flags.directory / "transfer.md").write_text(text)
    print(text, end="")
    draw(means["iou"], curves, flags.directory / "transfer.png")
    titles, volumes, maps = zip(*(result["example"] for result in results.values()), strict=True)
    images, masks = [volume.image for volume in volumes], [volume.mask for volume in volumes]
    save_predictions(images, masks, maps, flags.directory / "examples.png", titles)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(iou: pd.DataFrame, curves: dict[str, Any], path: Path) -> None:
    """Draw the IoU of all methods by group with intervals, and the curves over minutes."""
    trained = any(curves.values())
    figure = canvas.new_figure(7.0 + 4.5 * trained, 4.2)
    panels = figure.subplots(1, 1 + trained, squeeze=False)[0]
    methods = iou.groupby(level="method", sort=False)
    for place, (name, rows) in enumerate(methods):
        x = np.arange(len(rows)) + 0.7 * (place + 0.5) / len(methods)
        around = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        panels[0].errorbar(x, rows["mean"], around, fmt="o", ms=4, lw=1, label=name)
    panels[0].set_xticks(np.arange(len(curves)) + 0.35, list(curves), fontsize=8)
    panels[0].set_ylabel("IoU, mean and 95 % interval over volumes", fontsize=9)
    for group, curve in curves.items() if trained else ():
        panels[1].plot(*np.transpose(curve), marker="o", ms=3, label=group)
        panels[1].set_xlabel("minutes of training without the group", fontsize=9)
    for panel in panels:
        canvas.style(panel)
        panel.legend(fontsize=7, frameon=False)
    canvas.save_figure(figure, path)


def print_thresholds(flags: argparse.Namespace) -> None:
    """Print the mean IoU of the networks by threshold."""
    volumes = read_volumes(flags.threshold, flags.volumes)
    kinds, means = [kinds_of(volume) for volume in volumes], {}
    for name in flags.networks:
        maps = zip(map(network_maps(name), volumes), kinds, strict=True)
        means[name] = np.mean([at_thresholds(*pair, THRESHOLDS)["iou"] for pair in maps], axis=0)
    rows = zip(THRESHOLDS, *means.values(), strict=True)
    text = [[f"{limit:.2f}", *(f"{iou:.3f}" for iou in ious)] for limit, *ious in rows]
    print(markdown(["threshold", *means], text), end="")


if __name__ == "__main__":
    sys.exit(main())
