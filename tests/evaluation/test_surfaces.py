import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from utils.evaluation.surfaces import score_surfaces


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
    assert scores["hd95_um"] == pytest.approx(worst, rel=1e-5)
    assert scores["surface_dice_um"] == pytest.approx(close / (len(a) + len(b)), rel=1e-5)


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.5, 0.25, 2.0)])
def test_scores_are_those_of_monai(size):
    noise = np.random.default_rng(1).normal(size=(2, 14, 12, 10))
    found, mask = (ndimage.gaussian_filter(n, 1.5) > 0.05 for n in noise)
    pair = [torch.from_numpy(m)[None, None] for m in (found, mask)]
    options = {"include_background": True, "spacing": size}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI passes on its own old argument
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
        dice = compute_surface_dice(*pair, class_thresholds=[max(size) * (1 + 1e-6)], **options)
    scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=size)
    assert scores["hd95_um"] == pytest.approx(float(hd95), rel=1e-5)
    assert scores["surface_dice_um"] == pytest.approx(float(dice), rel=1e-5)


def test_an_annotated_box_is_scored_as_if_it_were_the_volume():
    noise = np.random.default_rng(2).normal(size=(2, 14, 12, 10))
    found, mask = (ndimage.gaussian_filter(n, 1.5) > 0.05 for n in noise)
    known = box((3, 2, 1), (12, 9, 8), (14, 12, 10))
    whole = score_surfaces(found & known, mask & known, tolerance=1.0, known=known)
    part = (slice(3, 12), slice(2, 9), slice(1, 8))
    assert whole["hd95"] == score_surfaces(found[part], mask[part], tolerance=1.0)["hd95"]
    assert (
        whole["surface_dice"]
        == score_surfaces(found[part], mask[part], tolerance=1.0)["surface_dice"]
    )


def test_a_lone_annotated_plane_is_scored_as_an_image():
    noise = np.random.default_rng(3).normal(size=(2, 14, 12, 10))
    found, mask = (ndimage.gaussian_filter(n, 1.5) > 0.05 for n in noise)
    known = np.zeros(mask.shape, bool)
    known[..., 4] = True
    plane = score_surfaces(found & known, mask & known, tolerance=1.0, known=known)
    image = score_surfaces(found[..., 4], mask[..., 4], tolerance=1.0)
    assert (plane["hd95"], plane["surface_dice"]) == (image["hd95"], image["surface_dice"])
    assert 0 < image["surface_dice"] < 1


def test_a_box_shifted_by_one_voxel_is_within_the_tolerance():
    found, mask = box((3, 3, 4), (8, 8, 9)), box((3, 3, 3), (8, 8, 8))
    scores = score_surfaces(found, mask, tolerance=1.0)
    assert scores["hd95"] == scores["surface_dice"] == 1
    assert math.isnan(scores["hd95_um"]) and math.isnan(scores["surface_dice_um"])
    strict = score_surfaces(found, mask, tolerance=0.5)
    assert 0 < strict["surface_dice"] < 1 and strict["hd95"] == 1


def test_micrometres_of_cubes_are_scaled_voxels():
    found, mask = box((3, 3, 5), (8, 8, 10)), box((3, 3, 3), (8, 8, 8))
    scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(0.3, 0.3, 0.3))
    assert scores["hd95"] == 2 and scores["hd95_um"] == pytest.approx(0.6)
    assert scores["surface_dice"] == scores["surface_dice_um"] < 1


def test_rounding_does_not_decide_at_the_tolerance():
    """A shift of one voxel of 0.1 or 0.3 um stays within a tolerance of one voxel."""
    found, mask = box((3, 3, 4), (8, 8, 9)), box((3, 3, 3), (8, 8, 8))
    scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(0.1, 0.2, 0.3))
    assert scores["surface_dice_um"] == 1


def test_empty_masks_follow_the_policy():
    empty, full = box((0, 0, 0), (0, 0, 0), (3, 4, 12)), box((1, 1, 1), (2, 2, 2), (3, 4, 12))
    nothing = score_surfaces(empty, empty, tolerance=1.0, voxel_size=(1.0, 2.0, 1.0))
    assert list(nothing.values()) == [0.0, 1.0, 0.0, 1.0]
    for found, mask in ((empty, full), (full, empty)):
        scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(1.0, 2.0, 1.0))
        assert scores["hd95"] == 13.0 and scores["surface_dice"] == 0
        assert scores["hd95_um"] == pytest.approx(math.sqrt(9 + 64 + 144))
        assert scores["surface_dice_um"] == 0
