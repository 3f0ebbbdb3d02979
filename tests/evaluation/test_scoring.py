"""All scores of a volume by name, the slice that is shown, and what made it easy or hard."""

from dataclasses import replace

import numpy as np
import pytest

from utils.evaluation.scoring import describe_conditions, score_volume, sheet_curvature
from utils.simulation import sample_rng, simulate_volume

GIVEN = {"seconds": 1.23456, "tolerance": None, "spacing": None}


def test_the_truth_scores_one_in_everything(small_volume):
    truth = small_volume.mask.astype(np.float32)
    found = score_volume(3, small_volume, truth, **GIVEN)
    assert found.row["volume"] == 3 and found.row["iou"] == found.row["sheet_auc"] == 1
    assert found.row["iou_gain"] == 1 - found.row["baseline_iou"] > 0
    assert "hd95" not in found.row
    assert found.row["seconds"] == 1.235
    assert found.row["gain"] == small_volume.parameters.gain
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


@pytest.mark.parametrize("radius", [0.7, 1.0, 1.4])
def test_a_sphere_is_curved_by_one_over_its_radius(tiny_config, radius):
    config = replace(tiny_config, axis_scales=(radius, radius))
    volume = simulate_volume(config, sample_rng(0, 1))
    assert sheet_curvature(volume) == pytest.approx(1 / radius, rel=1e-5)


def test_curvature_of_an_ellipsoid_follows_its_axes(tiny_config):
    """Beside the textbook's formula in the ellipsoid's own axes, found from the stored frames."""
    volume = simulate_volume(tiny_config, sample_rng(0, 2))
    frame = np.stack([volume.e_r[0], volume.e_theta[0], volume.e_phi[0]], axis=1)
    lengths, axes = np.linalg.eigh(frame @ frame.T)
    a, b, c = np.sqrt(lengths)
    assert sorted(volume.parameters.axis_scales) == pytest.approx([a, b, c], rel=1e-4)
    inside = np.all((volume.entry_points >= 0) & (volume.entry_points <= 1), axis=1)
    centre = np.array(volume.parameters.centre)
    x, y, z = ((volume.entry_points[inside] - centre) @ axes).T
    # Mean curvature of x^2/a^2 + y^2/b^2 + z^2/c^2 = 1 (MathWorld, Ellipsoid), sign outwards.
    scale = (x**2 / a**4 + y**2 / b**4 + z**2 / c**4) ** 1.5
    mean = (a**2 + b**2 + c**2 - x**2 - y**2 - z**2) / (2 * (a * b * c) ** 2 * scale)
    assert sheet_curvature(volume) == pytest.approx(mean.mean(), rel=1e-3)


def test_conditions_are_the_stored_parameters(tiny_config):
    volume = simulate_volume(tiny_config, sample_rng(0, 3))
    conditions = describe_conditions(volume)
    assert conditions["gain"] == volume.parameters.gain
    assert conditions["spacing_voxels"] == pytest.approx(32 * volume.parameters.spacing)
    assert conditions["curvature"] == sheet_curvature(volume)


def test_of_preset_wide_the_spacing_alone_is_known(tiny_wide):
    volume = simulate_volume(tiny_wide, sample_rng(0, 0))
    conditions = describe_conditions(volume)
    assert conditions.pop("spacing_voxels") == pytest.approx(volume.path_spacing.mean(), rel=1e-5)
    assert np.isnan(list(conditions.values())).all()
