"""Predictions scored against the truth, one volume after the other."""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from utils.columns.finding import columns_of
from utils.evaluation.columns import score_columns
from utils.evaluation.conditions import describe_conditions
from utils.evaluation.confusion import THRESHOLD, score_voxels
from utils.evaluation.instances import Truth, score_found
from utils.evaluation.labelled import LabelledSet, LabelledVolume
from utils.evaluation.prediction_files import PredictionFiles
from utils.evaluation.surfaces import score_surfaces
from utils.prediction.trained_network import NetworkPredictions
from utils.simulation import SimulatedVolume
from utils.storage import VolumeFile


@dataclass(frozen=True)
class ToScore:
    """Predictions, ready to be made or read, and the truth to score them against."""

    source: NetworkPredictions | PredictionFiles
    file: VolumeFile | LabelledSet
    volumes: tuple[int, ...]  # indices of those that are scored

    @property
    def data(self) -> dict[str, Any]:
        """What the volumes are, as plain JSON."""
        if isinstance(self.file, LabelledSet):
            stacks = [self.file.about[index] for index in self.volumes]
            return {"file": self.file.path, "volumes": list(self.volumes), "stacks": stacks}
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
        labelled = isinstance(self.file, LabelledSet)
        notes = [*(self.file.notes if labelled else ()), *self.source.said]
        if (name := self.source.trained_on) is not None:
            what = "is among these" if labelled else "has the seed of this file"
            notes.append(f"{name}, which the network was trained on, {what}")
        if len(self.volumes) < len(self.file):
            notes.append(f"{len(self.volumes)} of the {len(self.file)} volumes were scored")
        return notes


@dataclass(frozen=True)
class ScoredVolume:
    """One scored volume."""

    # volume (its index), of a labelled stack its name as stack, scores by name (NaN where one has
    # no meaning), the conditions under which it was taken if they are known, and the seconds of its
    # prediction
    row: dict[str, float]
    # image, mask and probability (X, Y) at z; NaN for what nobody annotated
    slices: tuple[np.ndarray, np.ndarray, np.ndarray]
    z: int  # the slice with most labelled voxels


def score_volumes(
    work: ToScore,
    *,
    tolerance: float | None,
    spacing: tuple[float, ...] | None,
    columns: bool = False,
    what: str,
) -> list[ScoredVolume]:
    """Predict and score the volumes one after the other; then the file of the truth is closed.

    ``tolerance`` of surface Dice is in voxels; None leaves the surfaces out. ``spacing`` is
    micrometres along x, y, z; None takes those of the predictions. With ``columns`` single ones
    are found and scored as well. ``what`` stands beside the progress bar.
    """
    results = []
    with work.file if isinstance(work.file, VolumeFile) else contextlib.nullcontext():
        for index in tqdm(work.volumes, what, unit="volume"):
            volume = work.file.read_volume(index)
            start = time.perf_counter()
            probabilities, known = _predict(work, index, volume)
            seconds = time.perf_counter() - start
            given = {"tolerance": tolerance, "spacing": known if spacing is None else spacing}
            result = score_volume(index, volume, probabilities, seconds=seconds, **given)
            labelled = isinstance(volume, LabelledVolume)
            if columns and (not labelled or volume.told_apart):
                edges = volume.edges if labelled else (1.0, 1.0, 1.0)
                found = columns_of(probabilities, edges, threshold=THRESHOLD)
                result.row.update(score_found(found, volume, Truth.of(volume)))
            if labelled:
                result.row["stack"] = work.file.names[index]
            results.append(result)
    return results


def _predict(work: ToScore, index: int, volume: Any) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Return probabilities and the voxel size, if it is known."""
    if isinstance(work.file, VolumeFile) or isinstance(work.source, PredictionFiles):
        return work.source.predict(index, volume)
    with work.file.opened(index) as pair:
        return work.source.predict_stack(pair.image)


def score_volume(
    index: int,
    volume: SimulatedVolume | LabelledVolume,
    probabilities: np.ndarray,
    *,
    seconds: float,
    tolerance: float | None,
    spacing: tuple[float, ...] | None,
) -> ScoredVolume:
    """Score the prediction of one volume, which took ``seconds``, as :func:`score_volumes`.

    ``volume`` is the truth, of labels as far as they tell it; ``probabilities`` are (X, Y, Z) or
    (X, Y), 0..1, and count nowhere where nobody annotated.
    """
    labelled = isinstance(volume, LabelledVolume)
    mask = volume.mask
    known = volume.known if labelled else np.ones(mask.shape, bool)
    found = (probabilities >= THRESHOLD) & known
    sheet = None if labelled else volume.sheet[known]
    row = {"volume": index, **score_voxels(probabilities[known], mask[known], sheet)}
    if tolerance is not None:
        box = ndimage.find_objects(known.view(np.int8))[0]
        size = {"tolerance": tolerance, "voxel_size": spacing}
        row |= score_surfaces(found[box], mask[box] > 0, known=known[box], **size)
    row |= score_columns(found, volume)
    row |= {} if labelled else describe_conditions(volume)
    row["seconds"] = round(seconds, 3)
    z, planes = 0, (volume.image, mask, np.where(known, probabilities, np.nan))
    if mask.ndim == 3:
        z = int(np.argmax(np.count_nonzero(mask, axis=(0, 1))))
        planes = tuple(array[..., z].copy() for array in planes)
    return ScoredVolume(row, planes, z)
