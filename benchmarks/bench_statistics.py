"""Compare the statistics of simulated volumes with the reference generator's, as a table.

    python benchmarks/bench_statistics.py --volumes 200

The reference's quantiles were measured on 48 of its volumes. The tolerances on the medians are 30 %
for the labelled fraction, the raw median and the raw 99th percentile, 15 % for the others.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import rankdata
from tqdm import tqdm

from utils.simulation import VolumeConfig, sample_rng, simulate_volume

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
REFERENCE = {
    "labelled fraction": ((0.024, 0.051, 0.078, 0.102, 0.143), 0.30),
    "kept columns": ((192, 226, 256, 325, 403), 0.15),
    "raw median": ((1.25, 1.93, 2.83, 3.55, 4.63), 0.30),
    "raw 99th percentile": ((7.3, 11.0, 17.9, 24.7, 31.7), 0.30),
    "scaled median": ((0.108, 0.130, 0.152, 0.197, 0.228), 0.15),
    "scaled mean inside": ((0.465, 0.507, 0.539, 0.603, 0.682), 0.15),
    "scaled mean outside": ((0.133, 0.154, 0.174, 0.210, 0.246), 0.15),
    "AUC inside / outside": ((0.843, 0.872, 0.903, 0.920, 0.940), 0.15),
    "autocorrelation x": ((0.46, 0.50, 0.55, 0.63, 0.70), 0.15),
    "autocorrelation y": ((0.46, 0.50, 0.55, 0.63, 0.70), 0.15),
    "autocorrelation z": ((0.46, 0.50, 0.55, 0.63, 0.70), 0.15),
}


def statistics(seed: int, index: int) -> list[float]:
    """Return the statistics of one default volume, in the order of REFERENCE."""
    volume = simulate_volume(VolumeConfig(), sample_rng(seed, index))
    image, mask = volume.image, volume.mask.astype(bool)
    low, high = np.percentile(image, (1, 99))
    scaled = np.clip((image - low) / (high - low), 0, 1)
    ranks = rankdata(image[::2, ::2, ::2])
    inside = mask[::2, ::2, ::2].ravel()
    n = inside.sum()
    auc = (ranks.ravel()[inside].sum() - n * (n + 1) / 2) / (n * (len(inside) - n))
    logs = np.log(image + 1)
    row = [mask.mean(), len(volume.entry_points), np.median(image), high]
    row += [np.median(scaled), scaled[mask].mean(), scaled[~mask].mean(), auc]
    return row + [lag_one_autocorrelation(logs, axis) for axis in range(3)]


def lag_one_autocorrelation(image: np.ndarray, axis: int) -> float:
    first = np.delete(image, -1, axis=axis).ravel()
    second = np.delete(image, 0, axis=axis).ravel()
    return float(np.corrcoef(first, second)[0, 1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=4242)
    args = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        jobs = pool.map(statistics, [args.seed] * args.volumes, range(args.volumes))
        rows = np.array(list(tqdm(jobs, total=args.volumes)))
    print("| statistic | 5 % | 25 % | 50 % | 75 % | 95 % | reference 50 % | ratio | within |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    failed = 0
    for column, (name, (expected, tolerance)) in zip(rows.T, REFERENCE.items(), strict=True):
        measured = np.quantile(column, QUANTILES)
        ratio = measured[2] / expected[2]
        good = abs(ratio - 1) <= tolerance
        failed += not good
        cells = " | ".join(f"{v:.3g}" for v in measured)
        verdict = f"{tolerance:.0%}: {'yes' if good else 'NO'}"
        print(f"| {name} | {cells} | {expected[2]:.3g} | {ratio:.2f} | {verdict} |")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
