"""Predictions scored against the truth, one volume after the other."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.columns.finding import columns_of
from utils.evaluation.columns import score_columns
from utils.evaluation.conditions import describe_conditions
from utils.evaluation.confusion import THRESHOLD
from utils.evaluation.instances import Truth, score_found
from utils.evaluation.prediction_files import PredictionFiles
from utils.evaluation.surfaces import score_surfaces
from utils.evaluation.voxels import score_voxels
from utils.prediction.trained_network import NetworkPredictions
from utils.simulation import SimulatedVolume
from utils.storage import VolumeFile


@dataclass(frozen=True)
class ToScore:
    """Predictions, ready to be made or read, and the truth to score them against."""

    source: NetworkPredictions | PredictionFiles
    file: VolumeFile
    volumes: tuple[int, ...]
    """Indices of those that are scored."""

    @property
    def data(self) -> dict[str, Any]:
        """What the volumes are, as plain JSON."""
        return {
            "file": str(self.file.path),
            "seed": self.file.seed,
            "shape": list(self.file.shape),
            "volumes": list(self.volumes),
            "training_file_of_this_seed": self.source.trained_on,
            "config": self.file.config.to_dict(),
        }

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know."""
        notes = []
        if self.source.trained_on is not None:
            name = self.source.trained_on
            notes.append(f"{name}, which the network was trained on, has the seed of this file")
        if len(self.volumes) < len(self.file):
            notes.append(f"{len(self.volumes)} of the {len(self.file)} volumes were scored")
        return notes


@dataclass(frozen=True)
class ScoredVolume:
    """One scored volume."""

    row: dict[str, float]
    """``volume`` (its index), scores by name (NaN where one has no meaning), the conditions under
    which it was taken, and the ``seconds`` of its prediction."""
    slices: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Image, mask and probability (X, Y) at ``z``."""
    z: int
    """The slice with most labelled voxels."""


def score_volumes(
    work: ToScore,
    *,
    tolerance: float | None,
    spacing: tuple[float, ...] | None,
    columns: bool = False,
    what: str,
) -> list[ScoredVolume]:
    """Predict and score the volumes one after the other; then the file of the truth is closed.

    Args:
        work: what predicts, and the truth.
        tolerance: of surface Dice, in voxels; None leaves the surfaces out.
        spacing: micrometres along x, y, z; None takes those of the predictions.
        columns: find single columns and score them as well.
        what: words beside the bar that shows the progress.
    """
    results = []
    with work.file:
        for index in tqdm(work.volumes, what, unit="volume"):
            volume = work.file.read_volume(index)
            start = time.perf_counter()
            probabilities, known = work.source.predict(index, volume)
            seconds = time.perf_counter() - start
            size = known if spacing is None else spacing
            result = score_volume(
                index, volume, probabilities, seconds=seconds, tolerance=tolerance, spacing=size
            )
            if columns:
                found = columns_of(probabilities, (1.0, 1.0, 1.0), threshold=THRESHOLD)
                result.row.update(score_found(found, volume, Truth.of(volume)))
            results.append(result)
    return results


def score_volume(
    index: int,
    volume: SimulatedVolume,
    probabilities: np.ndarray,
    *,
    seconds: float,
    tolerance: float | None,
    spacing: tuple[float, ...] | None,
) -> ScoredVolume:
    """Score the prediction of one volume.

    Args:
        index: of the volume.
        volume: the truth.
        probabilities: (X, Y, Z) 0..1.
        seconds: what the prediction took.
        tolerance: of surface Dice, in voxels; None leaves the surfaces out.
        spacing: micrometres along x, y, z, if known.
    """
    mask, found = volume.mask, probabilities >= THRESHOLD
    scores = dataclasses.asdict(score_voxels(probabilities, mask, volume.sheet))
    scores["iou_gain"] = scores["iou"] - scores["baseline_iou"]
    scores["sheet_iou_gain"] = scores["sheet_iou"] - scores["sheet_baseline_iou"]
    if tolerance is not None:
        surfaces = score_surfaces(found, mask > 0, tolerance=tolerance, voxel_size=spacing)
        scores |= dataclasses.asdict(surfaces)
    scores |= score_columns(found, volume)
    conditions = dataclasses.asdict(describe_conditions(volume))
    z = int(np.argmax(np.count_nonzero(mask, axis=(0, 1))))
    planes = (array[..., z].copy() for array in (volume.image, mask, probabilities))
    return ScoredVolume(
        row={"volume": index, **scores, **conditions, "seconds": round(seconds, 3)},
        slices=tuple(planes),
        z=z,
    )
