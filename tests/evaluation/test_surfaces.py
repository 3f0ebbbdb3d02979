import math

import numpy as np
import pytest
from scipy import ndimage

from utils.evaluation.surfaces import SurfaceScores, score_surfaces


def box(low, high, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def surface_points(mask, size):
    """Surface voxels as points: the slow way, by looking at the six neighbours of each."""
    padded = np.pad(mask, 1)
    points = []
    for voxel in np.argwhere(mask):
        around = [padded[tuple(voxel + 1 + step)] for step in np.vstack([np.eye(3), -np.eye(3)])
                  .astype(int)]  # fmt: skip
        if not all(around):
            points.append(voxel * np.array(size))
    return np.array(points)


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.5, 0.25, 2.0)])
def test_scores_are_those_of_all_pairs_of_surface_voxels(size):
    noise = np.random.default_rng(0).normal(size=(2, 14, 12, 10))
    found, mask = (ndimage.gaussian_filter(n, 1.5) > 0.05 for n in noise)
    found[0] = False  # one more face at the border of one of them
    a, b = surface_points(found, size), surface_points(mask, size)
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    there, back = distances.min(axis=1), distances.min(axis=0)
    scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=size)
    worst = max(np.percentile(there, 95), np.percentile(back, 95))
    close = (there <= max(size)).sum() + (back <= max(size)).sum()
    assert scores.hd95_um == pytest.approx(worst, rel=1e-5)
    assert scores.surface_dice_um == pytest.approx(close / (len(a) + len(b)), rel=1e-5)


def test_a_box_shifted_by_one_voxel_is_within_the_tolerance():
    found, mask = box((3, 3, 4), (8, 8, 9)), box((3, 3, 3), (8, 8, 8))
    assert score_surfaces(found, mask, tolerance=1.0) == SurfaceScores(
        1.0, 1.0, pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True)
    )
    strict = score_surfaces(found, mask, tolerance=0.5)
    assert 0 < strict.surface_dice < 1 and strict.hd95 == 1


def test_micrometres_of_cubes_are_scaled_voxels():
    found, mask = box((3, 3, 5), (8, 8, 10)), box((3, 3, 3), (8, 8, 8))
    scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(0.3, 0.3, 0.3))
    assert scores.hd95 == 2 and scores.hd95_um == pytest.approx(0.6)
    assert scores.surface_dice == scores.surface_dice_um < 1


def test_rounding_does_not_decide_at_the_tolerance():
    """A shift of one voxel of 0.1 or 0.3 um stays within a tolerance of one voxel."""
    found, mask = box((3, 3, 4), (8, 8, 9)), box((3, 3, 3), (8, 8, 8))
    scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(0.1, 0.2, 0.3))
    assert scores.surface_dice_um == 1


def test_empty_masks_follow_the_policy():
    empty, full = box((0, 0, 0), (0, 0, 0), (3, 4, 12)), box((1, 1, 1), (2, 2, 2), (3, 4, 12))
    nothing = score_surfaces(empty, empty, tolerance=1.0, voxel_size=(1.0, 2.0, 1.0))
    assert nothing == SurfaceScores(0.0, 1.0, 0.0, 1.0)
    for found, mask in ((empty, full), (full, empty)):
        scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(1.0, 2.0, 1.0))
        assert scores.hd95 == 13.0 and scores.surface_dice == 0
        assert scores.hd95_um == pytest.approx(math.sqrt(9 + 64 + 144))
        assert scores.surface_dice_um == 0
