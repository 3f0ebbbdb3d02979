"""Predictions scored against the truth, one volume after the other, and how hard each was."""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from utils.columns.finding import columns_of
from utils.evaluation.columns import Truth, score_columns, score_found
from utils.evaluation.confusion import THRESHOLD, score_surfaces, score_voxels
from utils.evaluation.stacks import LabelledSet, LabelledVolume, PredictionFiles
from utils.prediction.trained_network import NetworkPredictions
from utils.simulation import SimulatedVolume
from utils.simulation.volume import WideParameters
from utils.storage import VolumeFile

CONDITIONS = ("gain", "std_intensity", "contrast", "spacing_voxels", "curvature")


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
            labelled = isinstance(volume, LabelledVolume)
            start = time.perf_counter()
            if labelled and isinstance(work.source, NetworkPredictions):
                with work.file.opened(index) as pair:
                    probabilities, known = work.source.predict_stack(pair.image)
            else:
                probabilities, known = work.source.predict(index, volume)
            seconds = time.perf_counter() - start
            given = {"tolerance": tolerance, "spacing": known if spacing is None else spacing}
            result = score_volume(index, volume, probabilities, seconds=seconds, **given)
            if columns and (not labelled or volume.told_apart):
                edges = volume.edges if labelled else (1.0, 1.0, 1.0)
                found = columns_of(probabilities, edges, threshold=THRESHOLD)
                result.row.update(score_found(found, volume, Truth.of(volume)))
            if labelled:
                result.row["stack"] = work.file.names[index]
            results.append(result)
    return results


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


def describe_conditions(volume: SimulatedVolume) -> dict[str, float]:
    """Return :data:`CONDITIONS` of one volume; of preset wide all but the spacing are NaN.

    ``gain`` is photons per unit of image, the fewer the noisier; ``std_intensity`` the sigma of the
    clouds' lognormal intensity, how unevenly columns are labelled; ``spacing_voxels`` the mean
    nearest-neighbour distance of the entry points, in voxels (mean of the axes); ``curvature`` that
    of :func:`sheet_curvature`.
    """
    parameters = volume.parameters
    known = {"spacing_voxels": parameters.spacing * float(np.mean(volume.image.shape))}
    if not isinstance(parameters, WideParameters):
        known |= {name: getattr(parameters, name) for name in CONDITIONS[:3]}
        known["curvature"] = sheet_curvature(volume)
    return {name: known.get(name, math.nan) for name in CONDITIONS}


def sheet_curvature(volume: SimulatedVolume) -> float:
    """Return the ellipsoid's mean curvature where the columns stand, in 1 / edge of the cube.

    Averaged over the entry points inside the cube (over all, if none is). A sphere has one over its
    radius everywhere, and its columns turn by spacing x curvature radians from one to the next. On
    p^T A p = 1 with g = A p, mean curvature is (|g|^2 tr A - g^T A g) / (2 |g|^3) (Goldman 2005,
    Curvature formulas for implicit curves and surfaces). A needs no angles: every column's frame is
    the sphere's orthonormal one scaled by the axes and turned, so that A^-1 is the frame's
    e_r e_r^T + e_theta e_theta^T + e_phi e_phi^T, and e_r runs from the ellipsoid's centre to p.
    """
    points = volume.entry_points
    inside = np.all((points >= 0) & (points <= 1), axis=1)
    chosen = inside if inside.any() else np.ones(len(points), bool)
    frames = np.stack([volume.e_r, volume.e_theta, volume.e_phi], axis=1).astype(np.float64)
    shape = np.linalg.inv(np.einsum("nki,nkj->ij", frames, frames) / len(frames))
    gradients = volume.e_r[chosen].astype(np.float64) @ shape
    square = np.sum(gradients**2, axis=1)
    bent = np.einsum("ni,ij,nj->n", gradients, shape, gradients)
    return float(np.mean((square * np.trace(shape) - bent) / (2 * square**1.5)))
