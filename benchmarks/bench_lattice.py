"""How often lattices of points alone are right: published columns, an eye, simulated lobes.

    python benchmarks/bench_lattice.py --columns columns.csv --facets lens_cone.csv --volumes 24

``--columns``: a table of a medulla's columns with p, q, pos_*, axis_*, proximal_* and distal_*;
``--facets``: a table of an eye's facets with side, p, q, lens_*_um and cone_*_um. Two of 11 columns
are left out at random. Judged: neighbour pairs among found columns. Delaunay: share of the true
pairs that are edges of a triangulation of the points on their best plane. Inferred: proposals
within 0.35 local spacings of a left-out column, and left-out columns that got one.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
from machine import describe_machine
from scipy.spatial import Delaunay, cKDTree

from utils.columns.lattice import fit_lattice
from utils.evaluation.lattice import score_lattice, true_pairs
from utils.simulation import VolumeConfig, sample_rng
from utils.simulation.geometry import draw_optic_lobe
from utils.simulation.lattice import neighbours_among

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
    plane = np.linalg.svd(points[kept] - points[kept].mean(axis=0), full_matrices=False)[2][:2]
    faces = Delaunay(points[kept] @ plane.T).simplices
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]]), axis=1)
    n = len(kept)
    row["Delaunay"] = float(np.isin(np.sort(among, axis=1) @ [n, 1], edges @ [n, 1]).mean())
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
    return row | {"columns": float(n), "CPU s": seconds}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--columns", help="table of a medulla's columns (CSV)")
    parser.add_argument("--facets", help="table of an eye's facets (CSV)")
    parser.add_argument("--volumes", type=int, default=24, help="simulated lobes")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--windows", type=int, default=6, help="windows for each seed")
    args = parser.parse_args()
    rows = list(of_volumes(args.volumes))
    rows += of_columns(args.columns, args.seeds, args.windows) if args.columns else []
    rows += of_facets(args.facets, args.seeds) if args.facets else []
    print(describe_machine() + "\n\nMean (least) of each:\n")
    table = pd.DataFrame([{"lattice": name} | row for name, row in rows])
    groups = table.groupby("lattice", sort=False)
    mean, least, count = groups.mean(), groups.min(), groups.size()
    print("| lattice | runs | " + " | ".join(mean.columns) + " |")
    print("| --- " * (len(mean.columns) + 2) + "|")
    for name in mean.index:
        cells = [f"{mean[c][name]:.3g} ({least[c][name]:.3g})" for c in mean.columns]
        print(f"| {name} | {count[name]} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
