import math
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import fake_volume
from utils.evaluation.columns import cone_voxels, score_columns
from utils.simulation import VolumeConfig, WideConfig, sample_rng, simulate_volume


@pytest.fixture(scope="module")
def volume(tiny_config):
    return simulate_volume(tiny_config, sample_rng(5, 0))


def by_hand(found, volume):
    """Recall and covered columns of each type, column by column."""
    cones = cone_voxels(volume)
    results = {}
    for kind in range(4):
        voxels = hits = columns = covered = 0
        for k in np.flatnonzero(volume.column_type == kind):
            own = volume.instances == k + 1
            voxels, hits = voxels + own.sum(), hits + (own & found).sum()
            if own.sum() >= 0.5 * cones[k] and own.any():
                columns += 1
                covered += (own & found).sum() >= 0.5 * own.sum()
        results[kind] = (hits / voxels, columns, covered / columns if columns else math.nan)
    return results


def test_recall_is_counted_type_by_type(volume):
    found = np.random.default_rng(0).random(volume.instances.shape) < 0.5
    scores, expected = score_columns(found, volume), by_hand(found, volume)
    for name, kind in (("left_out", 0), ("A", 1), ("B", 2), ("C", 3)):
        got = [scores[f"{what}_{name}"] for what in ("recall", "columns", "covered")]
        assert got == pytest.approx(expected[kind], nan_ok=True)
    assert scores["columns_rendered"] == sum(expected[kind][1] for kind in (1, 2, 3)) > 0
    rendered = (volume.instances > 0) & (np.append(0, volume.column_type)[volume.instances] > 0)
    assert scores["recall_rendered"] == pytest.approx(found[rendered].mean())


def test_what_shows_only_rendered_columns_misses_all_left_out_ones(volume):
    left_out = np.flatnonzero(volume.column_type == 0) + 1
    found = (volume.instances > 0) & ~np.isin(volume.instances, left_out)
    row = score_columns(found, volume)
    assert row["recall_left_out"] == 0 and row["recall_rendered"] == 1
    assert row["covered_rendered"] == row["recall_A"] == row["recall_B"] == row["recall_C"] == 1


def test_a_whole_cone_holds_the_voxels_that_its_volume_says():
    fine = VolumeConfig(shape=(96, 96, 96), lattice_intervals=(10, 10))
    volume = simulate_volume(fine, sample_rng(5, 1))
    ends = volume.entry_points + volume.parameters.cone_length * volume.e_r
    reach = 1.5 * volume.parameters.cone_radius * max(1, volume.parameters.cone_taper)
    inside = np.all(
        (np.minimum(ends, volume.entry_points) > reach)
        & (np.maximum(ends, volume.entry_points) < 1 - reach),
        axis=1,
    )
    counts = np.bincount(volume.instances.ravel(), minlength=len(inside) + 1)[1:]
    assert inside.any()
    assert counts[inside] == pytest.approx(cone_voxels(volume)[inside], rel=0.05)


def test_types_that_are_not_there_have_no_recall():
    volume = fake_volume(sample_rng(0, 0))
    volume = replace(volume, column_type=np.ones_like(volume.column_type))
    scores = score_columns(volume.instances > 0, volume)
    assert math.isnan(scores["recall_left_out"]) and math.isnan(scores["covered_left_out"])
    assert scores["columns_left_out"] == 0 and scores["recall_A"] == 1


def test_columns_of_preset_wide_have_no_named_types(tiny_wide: WideConfig) -> None:
    volume = simulate_volume(tiny_wide, sample_rng(0, 0))
    scores = score_columns(volume.instances > 0, volume)
    assert scores["recall_rendered"] == scores["covered_rendered"] == 1.0
    assert scores["columns_rendered"] > 0
    for kind in "ABC":
        assert scores[f"columns_{kind}"] == 0 and np.isnan(scores[f"recall_{kind}"])
