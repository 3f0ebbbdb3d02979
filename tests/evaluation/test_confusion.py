"""Metrics against plain numpy twins and MONAI's, their pooling, surfaces, and the empty cases."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice, get_confusion_matrix
from scipy import ndimage

from utils.evaluation.confusion import (
    Confusion,
    area_under_curve,
    confusion,
    count_voxels,
    score_surfaces,
    score_voxels,
)


def plain_counts(probabilities: np.ndarray, mask: np.ndarray) -> tuple[int, int, int, int]:
    """Count voxel by voxel."""
    tp = fp = fn = tn = 0
    for p, label in zip(probabilities.ravel(), mask.ravel(), strict=True):
        if p >= 0.5:
            tp, fp = tp + int(label == 1), fp + int(label == 0)
        else:
            fn, tn = fn + int(label == 1), tn + int(label == 0)
    return tp, fp, fn, tn


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probabilities = rng.random((2, 1, 5, 6, 7)).astype(np.float32)
    probabilities[0, 0, 0, 0] = 0.5
    return probabilities, (rng.random((2, 1, 5, 6, 7)) < 0.3).astype(np.float32)


def test_counts_equal_the_plain_twin_for_numpy_and_torch(case: tuple) -> None:
    probabilities, mask = case
    expected = plain_counts(probabilities, mask)
    assert tuple(count_voxels(probabilities, mask).tolist()) == expected
    counted = count_voxels(torch.from_numpy(probabilities), torch.from_numpy(mask))
    assert tuple(counted.tolist()) == expected
    assert counted.dtype == torch.int64
    assert confusion(probabilities, mask.astype(np.uint8)) == Confusion(*expected)


def test_voxels_of_a_negative_mask_are_not_counted(case: tuple) -> None:
    probabilities, mask = case
    sparse = mask.copy()
    sparse[:, :, 1:4] = -1
    expected = plain_counts(probabilities, sparse)
    assert sum(expected) == (sparse >= 0).sum() < sparse.size
    assert tuple(count_voxels(probabilities, sparse).tolist()) == expected
    assert confusion(probabilities, np.full_like(mask, -1)) == Confusion()


def test_counts_equal_monai(case: tuple) -> None:
    probabilities, mask = case
    found = torch.from_numpy(probabilities >= 0.5).float()
    tp, fp, tn, fn = get_confusion_matrix(found, torch.from_numpy(mask)).sum((0, 1)).tolist()
    assert confusion(probabilities, mask) == Confusion(int(tp), int(fp), int(fn), int(tn))


def test_metrics_equal_numpy_closed_forms(case: tuple) -> None:
    probabilities, mask = case
    found, labelled = probabilities >= 0.5, mask > 0
    metrics = confusion(probabilities, mask).metrics()
    assert metrics == pytest.approx(
        {
            "iou": (found & labelled).sum() / (found | labelled).sum(),
            "dice": 2 * (found & labelled).sum() / (found.sum() + labelled.sum()),
            "total_error": (found != labelled).mean(),
            "false_positive_rate": found[~labelled].mean(),
            "false_negative_rate": 1 - found[labelled].mean(),
        }
    )


def test_a_probability_of_one_half_is_foreground() -> None:
    assert confusion(np.array([0.5, 0.4999]), np.array([1, 1])) == Confusion(tp=1, fn=1)


def test_logits_are_not_mistaken_for_probabilities() -> None:
    logits = torch.tensor([0.1, -0.1])
    assert confusion(torch.sigmoid(logits), torch.tensor([1, 0])) == Confusion(tp=1, tn=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_pooling_adds_counts_and_metrics_stay_in_range(values: list[int]) -> None:
    first, second = Confusion(*values[:4]), Confusion(*values[4:])
    pooled = first + second
    assert pooled == second + first
    assert pooled.tp == first.tp + second.tp
    assert pooled.fp + pooled.tn == first.fp + first.tn + second.fp + second.tn
    assert all(0 <= value <= 1 for value in pooled.metrics().values())
    assert pooled.dice == pytest.approx(2 * pooled.iou / (1 + pooled.iou))


def test_pooled_iou_is_not_the_mean_of_ious() -> None:
    assert (Confusion(tp=1) + Confusion(tp=1, fp=2)).iou == pytest.approx(0.5)


def test_empty_cases() -> None:
    nothing = Confusion(tn=8)
    assert nothing.metrics() == {
        "iou": 1.0,
        "dice": 1.0,
        "total_error": 0.0,
        "false_positive_rate": 0.0,
        "false_negative_rate": 0.0,
    }
    assert Confusion(fp=1, tn=3).iou == 0.0
    assert Confusion(tp=2, fn=2).metrics()["false_positive_rate"] == 0.0


def test_counts_are_exact_beyond_float32() -> None:
    many = 2**24 + 1
    mask = np.ones(many, np.uint8)
    assert confusion(mask, mask).tp == many
    total = Confusion(tp=2**40, tn=1) + Confusion(tp=1)
    assert total.tp == 2**40 + 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        confusion(np.zeros((2, 3)), np.zeros((3, 2)))


def cube(low, high, size=10):
    mask = np.zeros((size, size, size), np.uint8)
    mask[low:high, low:high, low:high] = 1
    return mask


def test_a_perfect_prediction():
    mask, sheet = cube(3, 6), cube(2, 8)
    scores = score_voxels(mask.astype(np.float32), mask, sheet)
    assert scores["foreground"] == scores["found"] == 0.027
    perfect = (
        scores["iou"],
        scores["dice"],
        scores["precision"],
        scores["recall"],
        scores["sheet_iou"],
    )
    assert perfect == (1, 1, 1, 1, 1)
    assert scores["total_error"] == 0 and scores["sheet_auc"] == 1
    assert scores["sheet_false_positive_rate"] == 0
    assert scores["baseline_iou"] == scores["sheet_baseline_iou"] == 27 / 216


def test_scores_from_hand_counted_voxels():
    mask = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.uint8)
    sheet = np.array([0, 1, 1, 1, 1, 1, 1, 0, 0, 0], np.uint8)
    chance = np.array([0.9, 0.5, 0.6, 0.1, 0.7, 0.2, 0.3, 0.8, 0, 0], np.float32)
    scores = score_voxels(chance, mask, sheet)
    assert scores["iou"] == 3 / 6 and scores["dice"] == 6 / 9
    assert scores["precision"] == 3 / 5 and scores["recall"] == 3 / 4
    assert scores["total_error"] == 3 / 10
    assert scores["foreground"] == 0.4 and scores["found"] == 0.5
    assert scores["sheet_false_positive_rate"] == 1 / 3
    assert scores["baseline_iou"] == 3 / 7
    assert scores["sheet_iou"] == 2 / 4 and scores["sheet_baseline_iou"] == 3 / 6
    # Inside: 0.5 beats two of three, 0.6 two, 0.1 none.
    assert scores["sheet_auc"] == pytest.approx(4 / 9)


def test_the_threshold_of_predict_is_that_of_the_whole_map():
    mask = np.repeat(np.array([1, 0, 1, 0, 0], np.uint8), [30, 10, 20, 30, 10])
    chance = np.repeat(np.array([0.75, 0.75, 0.35, 0.35, 0.0], np.float32), [30, 10, 20, 30, 10])
    scores = score_voxels(chance, mask, None)
    # Expected: 30 of 57.5 from 0.5 on, 47.5 of 90 from 0.35 on.
    assert scores["iou"] == 30 / 60 and scores["iou_auto"] == 50 / 90


def test_the_sheet_itself_scores_the_baseline():
    mask, sheet = cube(3, 6), cube(2, 8)
    scores = score_voxels(sheet.astype(np.float32), mask, sheet)
    assert scores["iou"] == scores["baseline_iou"]
    assert scores["sheet_iou"] == scores["sheet_baseline_iou"]
    assert scores["sheet_auc"] == 0.5 and scores["sheet_false_positive_rate"] == 1


def test_scores_without_a_meaning_are_nan():
    nothing = np.zeros((4, 4, 4), np.uint8)
    scores = score_voxels(nothing.astype(np.float32), cube(1, 2, 4), nothing)
    undefined = (
        scores["precision"],
        scores["sheet_iou"],
        scores["sheet_baseline_iou"],
        scores["sheet_auc"],
    )
    assert all(math.isnan(score) for score in undefined)
    assert scores["recall"] == 0 and scores["iou"] == 0 and scores["baseline_iou"] == 0


def test_empty_masks_follow_the_policy():
    empty, full = np.zeros((4, 4, 4), np.uint8), cube(1, 3, 4)
    nothing = score_voxels(empty.astype(np.float32), empty, full)
    assert nothing["iou"] == nothing["dice"] == 1 and nothing["total_error"] == 0
    assert math.isnan(nothing["precision"]) and math.isnan(nothing["recall"])
    false = score_voxels(full.astype(np.float32), empty, full)
    assert false["iou"] == false["dice"] == false["precision"] == 0 and math.isnan(false["recall"])
    missed = score_voxels(empty.astype(np.float32), full, full)
    assert missed["iou"] == missed["dice"] == missed["recall"] == 0 and math.isnan(
        missed["precision"]
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans()),
        min_size=2,
        max_size=40,
    )
)
def test_area_under_curve_counts_pairs(items):
    ratings = np.array([rating for rating, _ in items], np.float32)
    mask = np.array([label for _, label in items], np.uint8)
    pairs = [(a > b) + 0.5 * (a == b) for a in ratings[mask == 1] for b in ratings[mask == 0]]
    area = area_under_curve(ratings, mask)
    if pairs:
        assert area == pytest.approx(np.mean(pairs))
    else:
        assert math.isnan(area)


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


def test_surfaces_of_empty_masks_follow_the_policy():
    empty, full = box((0, 0, 0), (0, 0, 0), (3, 4, 12)), box((1, 1, 1), (2, 2, 2), (3, 4, 12))
    nothing = score_surfaces(empty, empty, tolerance=1.0, voxel_size=(1.0, 2.0, 1.0))
    assert list(nothing.values()) == [0.0, 1.0, 0.0, 1.0]
    for found, mask in ((empty, full), (full, empty)):
        scores = score_surfaces(found, mask, tolerance=1.0, voxel_size=(1.0, 2.0, 1.0))
        assert scores["hd95"] == 13.0 and scores["surface_dice"] == 0
        assert scores["hd95_um"] == pytest.approx(math.sqrt(9 + 64 + 144))
        assert scores["surface_dice_um"] == 0
