"""All scores of a volume by name, and the slice that is shown."""

from dataclasses import replace

import numpy as np

from utils.evaluation.scoring import score_volume

GIVEN = {"seconds": 1.23456, "tolerance": None, "spacing": None}


def test_the_truth_scores_one_in_everything(small_volume):
    truth = small_volume.mask.astype(np.float32)
    found = score_volume(3, small_volume, truth, **GIVEN)
    assert found.row["volume"] == 3 and found.row["iou"] == found.row["sheet_auc"] == 1
    assert found.row["iou_gain"] == 1 - found.row["baseline_iou"] > 0
    assert "hd95" not in found.row
    assert found.row["seconds"] == 1.235
    labelled = small_volume.mask.sum(axis=(0, 1))
    assert labelled[found.z] == labelled.max()
    for shown, whole in zip(
        found.slices, (small_volume.image, small_volume.mask, truth), strict=True
    ):
        np.testing.assert_array_equal(shown, whole[..., found.z])
    worn = replace(small_volume, instances=np.zeros_like(small_volume.instances))
    surfaces = score_volume(0, worn, truth, **{**GIVEN, "tolerance": 1.0, "spacing": (1, 1, 2)})
    assert surfaces.row["surface_dice"] == 0 and surfaces.row["iou"] == 0
    assert surfaces.row["hd95_um"] > surfaces.row["hd95"] > 0
