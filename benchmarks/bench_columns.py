r"""How often columns and their lattices are right, beside plain ways; and how long it all takes.

    python benchmarks/bench_columns.py --set vol_val_set.h5 columns3d_reference \
        --set wide_val.h5 columns3d
    python benchmarks/bench_columns.py --columns columns.csv --facets lens_cone.csv --lobes 24

``--set``: volumes of generate_3d_data.py, and a network or a folder of probability maps. Two plain
ways are tuned on the first volumes of the first set, by F1 at IoU 0.3. All ways are scored on the
next ones, and on the first of the other sets. Watershed: of the map, from its highest components.
Difference of Gaussians: its maxima are markers of a watershed in what is above a threshold; it is
told the columns' spacing, and takes them for bright. Delaunay: share of the true neighbours among
found columns that are edges of a triangulation of their centres on the best plane. Eight maps of
the first set, side by side, are 256^3 voxels to time.

The others are lattices of points alone: ``--lobes`` simulated; ``--columns``: a table of a
medulla's columns with p, q, pos_*, axis_*, proximal_* and distal_*; ``--facets``: a table of an
eye's facets with side, p, q, lens_*_um and cone_*_um. Two of 11 columns are left out at random.
Inferred: proposals within 0.35 local spacings of a left-out column, and left-out columns that got
one.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from machine import describe_machine
from scipy import ndimage
from scipy.spatial import Delaunay, cKDTree
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

import evaluate
from utils.columns.finding import columns_of
from utils.columns.lattice import fit_lattice
from utils.columns.table import measure_columns
from utils.evaluation.columns import (
    Truth,
    match_lines,
    score_found,
    score_instances,
    score_lattice,
    true_pairs,
)
from utils.evaluation.scoring import ToScore
from utils.evaluation.stacks import stacks_at
from utils.evaluation.tables import means_over_volumes
from utils.simulation import SimulatedVolume, VolumeConfig, sample_rng
from utils.simulation.geometry import draw_optic_lobe, neighbours_among

LEFT_OUT = 2 / 11
WINDOW = 250
NEAR = 0.35
MISINDEXED = (-9, -17)
"""Column of the published medulla that its authors misplaced."""
FIELDS = {
    "right": "pairs_right",
    "any basis": "pairs_right_any_basis",
    "placed": "pairs_placed",
    "cut": "pairs_cut",
}


def score(
    points: np.ndarray,
    axes: np.ndarray,
    paths: np.ndarray,
    truth: np.ndarray,
    kept: np.ndarray,
    pairs: np.ndarray,
) -> dict[str, float]:
    """Return one row: the lattice of the ``kept`` columns, judged; ``pairs`` are all true ones."""
    among = neighbours_among(kept, pairs)
    start = time.process_time()
    lattice = fit_lattice(points[kept], axes[kept], paths=paths[kept])
    seconds = time.process_time() - start
    named = lattice.pairs[lattice.cut > 0]
    scores = score_lattice(lattice.patch, lattice.pq, truth[kept], pairs=among, cut=named)
    row = {name: scores[field] for name, field in FIELDS.items()}
    row["in patch 1"] = float((lattice.patch == 1).mean())
    row["no place"] = float((lattice.patch == 0).mean())
    row["vote"] = lattice.votes[0].share if lattice.votes else np.nan
    row["Delaunay"] = by_delaunay(points[kept], among)
    out = np.setdiff1d(np.arange(len(points)), kept)
    asked = lattice.inferred.paths[:, 0]
    row["inferred"] = float(len(asked))
    if len(out) and len(asked):
        lengths = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        total = np.bincount(pairs.ravel(), np.repeat(lengths, 2), minlength=len(points))
        spacing = total / np.bincount(pairs.ravel(), minlength=len(points)).clip(min=1)
        distance, which = cKDTree(points[out]).query(asked)
        right = distance < NEAR * spacing[out][which]
        row["inferred right"] = float(right.mean())
        row["of left-out"] = len(np.unique(which[right])) / len(out)
    return row | {"columns": float(len(kept)), "CPU s": seconds}


def by_delaunay(points: np.ndarray, pairs: np.ndarray) -> float:
    """Return the share of ``pairs`` that are edges of a triangulation of points (N, 3)."""
    if len(pairs) == 0:
        return np.nan
    plane = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][:2]
    faces = Delaunay(points @ plane.T).simplices
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]]), axis=1)
    n = len(points)
    return float(np.isin(np.sort(pairs, axis=1) @ [n, 1], edges @ [n, 1]).mean())


def drawn(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return the rows that stay when 2 of 11 are left out."""
    return np.sort(rng.permutation(n)[: round(n * (1 - LEFT_OUT))])


def of_columns(path: str, seeds: int, windows: int) -> Iterator[tuple[str, dict[str, float]]]:
    table = pd.read_csv(path)
    table = table[~((table.p == MISINDEXED[0]) & (table.q == MISINDEXED[1]))]
    points, axes, proximal, distal = (
        table[[f"{name}_{c}" for c in "xyz"]].to_numpy()
        for name in ("pos", "axis", "proximal", "distal")
    )
    paths, truth = np.stack([proximal, distal], axis=1), table[["p", "q"]].to_numpy()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        pairs, kept = true_pairs(truth), drawn(rng, len(truth))
        yield "medulla, whole", score(points, axes, paths, truth, kept, pairs)
        for _ in range(windows):
            centre = points[rng.integers(len(points))]
            near = np.argsort(np.linalg.norm(points - centre, axis=1))[:WINDOW]
            here = (points[near], axes[near], paths[near], truth[near])
            yield (
                f"medulla, windows of {WINDOW}",
                score(*here, drawn(rng, WINDOW), true_pairs(truth[near])),
            )


def of_facets(path: str, seeds: int) -> Iterator[tuple[str, dict[str, float]]]:
    for side, table in pd.read_csv(path).groupby("side"):
        ends = [table[[f"{end}_{c}_um" for c in "xyz"]].to_numpy() for end in ("cone", "lens")]
        axes = ends[1] - ends[0]
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        truth = table[["p", "q"]].to_numpy()
        for seed in range(seeds):
            kept = drawn(np.random.default_rng(seed), len(truth))
            args = (np.mean(ends, axis=0), axes, np.stack(ends, axis=1), truth, kept)
            yield f"eye, {side}", score(*args, true_pairs(truth))


def of_volumes(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    config = VolumeConfig()
    for index in range(count):
        lobe = draw_optic_lobe(
            sample_rng(9999, index),
            lattice_intervals=config.lattice_intervals,
            axis_scales=config.axis_scales,
            min_columns=config.min_columns,
            max_tries=config.max_tries,
        )
        entry, e_r = lobe.entry_points.astype(float), lobe.e_r.astype(float)
        paths = np.stack([entry, entry + config.cone_length * lobe.spacing * e_r], axis=1)
        axes = e_r / np.linalg.norm(e_r, axis=1, keepdims=True)
        truth, pairs = lobe.lattice_coordinates, lobe.lattice_neighbours
        args = (paths.mean(axis=1), axes, paths, truth)
        everything = np.arange(len(entry))
        yield "simulated, all", score(*args, everything, pairs)
        kept = drawn(np.random.default_rng(index), len(entry))
        yield "simulated, left out", score(*args, kept, pairs)


def of_map(p: np.ndarray, top: float, least: float) -> np.ndarray:
    """Return the labels of a plain watershed of a probability map."""
    return watershed(-p, ndimage.label(p > top)[0], mask=p > least)


def of_image(
    image: np.ndarray, spacing: float, width: float, apart: float, least: float
) -> np.ndarray:
    """Return the labels around the maxima of a difference of Gaussians; lengths in spacings."""
    narrow, wide = (ndimage.gaussian_filter(image, w * spacing) for w in (width, 2 * width))
    contrast = narrow - wide
    contrast /= np.percentile(contrast, 99.5)
    peaks = peak_local_max(contrast, min_distance=round(apart * spacing), threshold_abs=least)
    markers = np.zeros(image.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-contrast, markers, mask=contrast > least)


SETTINGS: dict[str, list[tuple[float, ...]]] = {
    "watershed": [(0.8, 0.5), (0.9, 0.5), (0.95, 0.5)],
    "difference of Gaussians": [(0.15, 0.6, 0.3), (0.25, 0.6, 0.3), (0.25, 0.6, 0.5)],
}
SCORES = {
    "F1 at IoU 0.3": "f1_iou30",
    "at 0.5": "f1_iou50",
    "by centre line": "f1_line",
    "splits": "false_splits",
    "merges": "false_merges",
    "axis": "axis_error",
    "pairs right": "pairs_right",
    "any basis": "pairs_right_any_basis",
}


def of_ways(sets: list[list[str]], tuned: int, count: int) -> Iterator[dict[str, object]]:
    """Yield a row for each volume and way of all sets."""
    chosen: dict[str, tuple[float, ...]] = {}
    for number, (data, source) in enumerate(sets):
        given = "--predictions" if stacks_at(Path(source)) else "--checkpoint"
        flags = evaluate.parse_flags([given, source, "--data", data])
        work = evaluate.prepare(flags, flags.checkpoint, flags.predictions)
        first = tuned if number == 0 else 0
        with work.file:
            if number == 0:
                chosen = tune(work, tuned)
                time_whole(work)
            for index in work.volumes[first : first + count]:
                volume = work.file.read_volume(index)
                p, truth = work.source.predict(index, volume)[0], Truth.of(volume)
                about = {"set": Path(data).stem, "volume": index}
                found = columns_of(p, (1.0, 1.0, 1.0), threshold=0.5)
                scores = score_found(found, volume, truth)
                ways = {"ours": (found.measured, scores)}
                for way, setting in chosen.items():
                    labels = labels_by(way, setting, volume, p, truth)
                    measured = measure_columns(labels, (1.0, 1.0, 1.0))
                    scores = score_instances(labels, measured.paths, measured.axis, truth)
                    ways[way] = (measured, scores)
                for way, (measured, scores) in ways.items():
                    row = {k: scores.get(f"instance_{v}", np.nan) for k, v in SCORES.items()}
                    true, own = match_lines(truth, measured.paths)
                    pairs = neighbours_among(true, volume.lattice_neighbours)
                    row["Delaunay"] = by_delaunay(measured.centre[own], pairs)
                    yield about | {"way": way} | row


def labels_by(
    way: str, setting: tuple[float, ...], volume: SimulatedVolume, p: np.ndarray, truth: Truth
) -> np.ndarray:
    if way == "watershed":
        return of_map(p, *setting)
    return of_image(volume.image.astype(np.float32), float(np.median(truth.spacing)), *setting)


def tune(work: ToScore, count: int) -> dict[str, tuple[float, ...]]:
    """Return the settings of each plain way that are best on the first volumes, F1 at IoU 0.3."""
    scores: dict[tuple[str, tuple[float, ...]], list[float]] = {}
    for index in work.volumes[:count]:
        volume = work.file.read_volume(index)
        p, truth = work.source.predict(index, volume)[0], Truth.of(volume)
        for way, settings in SETTINGS.items():
            for setting in settings:
                labels = labels_by(way, setting, volume, p, truth)
                nowhere = np.full((int(labels.max()), 1, 3), 1e9)  # no path, no line that is right
                found = score_instances(labels, nowhere, nowhere[:, 0], truth)
                scores.setdefault((way, setting), []).append(found["instance_f1_iou30"])
    mean = {key: float(np.mean(values)) for key, values in scores.items()}
    best = {way: max(settings, key=lambda s: mean[way, s]) for way, settings in SETTINGS.items()}
    print("Tuned on", count, {way: (s, round(mean[way, s], 3)) for way, s in best.items()}, "\n")
    return best


def time_whole(work: ToScore) -> None:
    """Print what a stack of eight maps side by side takes, beside its plain watershed."""
    maps = [work.source.predict(k, work.file.read_volume(k))[0] for k in work.volumes[:8]]
    whole = np.block([[maps[0:2], maps[2:4]], [maps[4:6], maps[6:8]]])
    columns_of(maps[0], (1.0, 1.0, 1.0))  # compiles
    for _ in range(3):
        start = time.process_time()
        of_map(whole, 0.9, 0.5)
        middle = time.process_time()
        found = columns_of(whole, (1.0, 1.0, 1.0))
        plain, ours = middle - start, time.process_time() - middle
        print(
            f"{whole.shape}, {len(found.measured.axis)} columns: watershed {plain:.2f} s CPU, all "
            f"of it {ours:.2f} s, {ours / plain:.2f} times\n"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("FILE", "SOURCE"))
    parser.add_argument("--tuned_on", type=int, default=16, help="volumes of the first set")
    parser.add_argument("--volumes", type=int, default=48, help="volumes of a set that are scored")
    parser.add_argument("--columns", help="table of a medulla's columns (CSV)")
    parser.add_argument("--facets", help="table of an eye's facets (CSV)")
    parser.add_argument("--lobes", type=int, default=0, help="simulated lobes")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--windows", type=int, default=6, help="windows for each seed")
    args = parser.parse_args()
    print(describe_machine() + "\n")
    if args.set:
        table = pd.DataFrame(of_ways(args.set, args.tuned_on, args.volumes)).drop(columns="volume")
        print_table(
            table, ["set", "way"], with_interval, "Mean, 95 % bootstrap interval over volumes"
        )
    rows = list(of_volumes(args.lobes))
    rows += of_columns(args.columns, args.seeds, args.windows) if args.columns else []
    rows += of_facets(args.facets, args.seeds) if args.facets else []
    if rows:
        table = pd.DataFrame([{"lattice": name} | row for name, row in rows])
        print_table(table, ["lattice"], with_least, "Mean (least) of each")
    return 0


def with_least(table: pd.DataFrame) -> list[str]:
    return [f"{table[name].mean():.3g} ({table[name].min():.3g})" for name in table]


def with_interval(table: pd.DataFrame) -> list[str]:
    rows = means_over_volumes(table, seed=0).itertuples()
    return [f"{row.mean:.3f} ({row.low:.3f} to {row.high:.3f})" for row in rows]


def print_table(
    table: pd.DataFrame, by: list[str], cells: Callable[[pd.DataFrame], list[str]], what: str
) -> None:
    """Print a row for each group of rows: how many they are, and a cell for each column."""
    names = [name for name in table if name not in by]
    print(f"{what}:\n\n| " + " | ".join([*by, "runs", *names]) + " |")
    print("| --- " * (len(by) + 1 + len(names)) + "|")
    for group, rows in table.groupby(by, sort=False):
        print("| " + " | ".join([*group, str(len(rows)), *cells(rows[names])]) + " |")


if __name__ == "__main__":
    sys.exit(main())
