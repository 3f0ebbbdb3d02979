"""Splits and merges planted in a closed-form lattice, and what the image says of them."""

import numpy as np
import pandas as pd
import pytest

from tests.columns.test_instances import STEPS
from utils.columns import finding
from utils.columns.blocks import Room
from utils.columns.corrections import Corrections
from utils.columns.finding import columns_of
from utils.columns.lattice import fit_lattice
from utils.columns.mending import mend_from_lattice
from utils.columns.table import measure_columns

SHAPE = (66, 58, 40)
SPACING, RADIUS = 9.0, 3.2


def lattice_of_rods() -> tuple[np.ndarray, np.ndarray]:
    """Return labels of 37 upright rods on a hexagonal lattice, and their centres (37, 2)."""
    p, q = np.mgrid[-3:4, -3:4].reshape(2, -1)
    p, q = (x[np.abs(p - q) <= 3] for x in (p, q))
    centres = np.stack([p - q / 2, np.sqrt(0.75) * q], axis=1) * SPACING + [33, 29]
    x, y, z = np.indices(SHAPE)
    away = np.hypot(x[None] - centres[:, 0, None, None, None], y - centres[:, 1, None, None, None])
    labels = np.where(away.min(axis=0) <= RADIUS, away.argmin(axis=0) + 1, 0).astype(np.int32)
    return np.where((z >= 5) & (z < 35), labels, 0), centres


LABELS, CENTRES = lattice_of_rods()
MIDDLE = int(np.linalg.norm(CENTRES - [33, 29], axis=1).argmin()) + 1
BESIDE = int(np.linalg.norm(CENTRES - [33 + SPACING, 29], axis=1).argmin()) + 1


def mended(labels, image, steps=STEPS):
    """Return what is left of ``labels`` when they are mended, and how many times."""
    labels = labels.copy()
    measured = measure_columns(labels, steps)
    lattice = fit_lattice(measured.centre, measured.axis, paths=measured.paths)

    def bright(voxels):
        return image[tuple(np.moveaxis(np.clip(voxels, 0, np.array(image.shape) - 1), -1, 0))]

    times = mend_from_lattice(labels, measured, lattice, steps, bright)
    return labels, times


def same(one, other):
    """Return whether two labels are one but for their numbers."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


def split(gap=1, upper=20):
    """Return labels of which the rod in the middle is in two pieces, ``gap`` voxels apart."""
    labels = LABELS.copy()
    rod = labels == MIDDLE
    rod[..., :upper] = False
    labels[rod] = len(CENTRES) + 1
    labels[..., upper - gap : upper][labels[..., upper - gap : upper] == MIDDLE] = 0
    return labels


def fused():
    """Return labels and image of which two rods are one, with a bar between them."""
    labels = LABELS.copy()
    labels[labels == BESIDE] = MIDDLE
    x, y, z = np.indices(SHAPE)
    bar = (np.abs(y - 29) < 3) & (x > 33) & (x < 33 + SPACING) & (z >= 5) & (z < 35)
    labels[bar] = MIDDLE
    labels[labels > BESIDE] -= 1  # their numbers have no gap
    return labels


def test_a_split_is_joined_where_the_image_is_bright_between():
    labels = split()
    found, times = mended(labels, LABELS > 0)
    assert times == (1, 0) and found.max() == len(CENTRES)
    assert same(found, np.where(labels > len(CENTRES), MIDDLE, labels))
    dark, times = mended(labels, labels > 0)
    assert times == (0, 0)
    np.testing.assert_array_equal(dark, labels)


def test_halves_side_by_side_are_joined():
    labels, x = LABELS.copy(), np.indices(SHAPE)[0]
    labels[(labels == MIDDLE) & (x > 33)] = len(CENTRES) + 1
    found, times = mended(labels, LABELS > 0)
    assert times == (1, 0) and same(found, LABELS)


def test_a_merge_is_cut_where_it_covers_both_sites():
    labels = fused()
    found, times = mended(labels, labels > 0)
    assert times == (0, 1) and found.max() == len(CENTRES) == len(np.unique(found)) - 1
    for rod in (MIDDLE, BESIDE):  # each has one number, which no other has
        own = np.unique(found[LABELS == rod])
        assert len(own) == 1 and set(np.unique(LABELS[found == own[0]])) == {0, rod}


def test_a_wide_column_beside_a_gap_stays_whole():
    labels = fused()
    labels[LABELS == BESIDE] = 0  # what is left reaches out towards the free site
    found, times = mended(labels, labels > 0)
    assert times == (0, 0)
    np.testing.assert_array_equal(found, labels)


def test_columns_that_are_right_stay_as_they_are():
    gaps = np.where(LABELS > 3, LABELS - 3, 0)
    for labels in (LABELS, gaps, np.zeros_like(LABELS), np.minimum(LABELS, 1)):
        found, times = mended(labels, labels > 0)
        assert times == (0, 0)
        np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("turn", [(2, 0, 1), (1, 0, 2)])
def test_turning_mirroring_and_renumbering_change_nothing(turn):
    labels = fused()
    rod = (labels == int(labels[12, 29, 20])) & (np.indices(SHAPE)[2] >= 20)
    labels[rod] = labels.max() + 1  # a split too, far from the merge
    plain, times = mended(labels, labels > 0)
    assert times == (1, 1)
    numbers = np.append(0, 1 + np.random.default_rng(0).permutation(labels.max())).astype(np.int32)
    turned = np.ascontiguousarray(numbers[labels].transpose(turn)[::-1])
    found, again = mended(turned, turned > 0)
    assert again == times and same(found, plain.transpose(turn)[::-1])


def test_voxels_need_not_be_cubes():
    for labels, expected in ((fused(), (0, 1)), (split(), (1, 0))):
        image = (labels > 0) | (LABELS > 0)
        found, times = mended(labels[..., ::2], image[..., ::2], (0.5, 0.5, 1.0))
        assert times == expected and found.max() == len(CENTRES)
        assert same(found, mended(labels, image)[0][..., ::2])


@pytest.mark.parametrize("room", [Room(), None])
def test_what_the_program_found_is_mended_and_labels_of_others_are_not(monkeypatch, room, tmp_path):
    room, labels = room or Room(tmp_path), split()
    array = room.array(SHAPE, np.int32)
    array[:] = labels
    monkeypatch.setattr(finding, "_instances", lambda *args: (array, 0))
    height = np.where(LABELS > 0, 0.9, 0.0).astype(np.float32)
    height[(LABELS > 0) & (labels == 0)] = 0.4  # less than a column has, but no hole
    found = columns_of(height, STEPS, room=room)
    assert found.labels is array and found.lattice.patch.all()
    assert (
        len(found.measured.axis) == len(CENTRES)
        and "mended 1 splits and 0 merges" in found.notes[-1]
    )
    middle = int(found.labels[33, 29, 10])
    array[:] = labels
    rows = pd.DataFrame({"column_id": [middle], "p": [5], "q": [7]})
    fixed = columns_of(height, STEPS, room=room, corrections=Corrections(rows=rows))
    np.testing.assert_array_equal(fixed.labels, found.labels)
    assert fixed.lattice.pq[middle - 1].tolist() == [5, 7]
    monkeypatch.undo()
    corrected = columns_of(height, STEPS, corrections=Corrections(labels=labels))
    for kept in (columns_of(labels, STEPS), corrected):
        assert kept.labels.max() == len(CENTRES) + 1 and same(kept.labels, labels)
        assert not any("mended" in note for note in kept.notes)
