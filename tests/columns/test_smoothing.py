"""Maps smoothed along columns of known direction."""

import numpy as np
import pytest

from tests.columns.test_instances import STEPS, rods
from utils.columns import finding
from utils.columns.finding import columns_of
from utils.columns.smoothing import FARTHEST, STEP, smooth_along


def long_rods():
    """A map of 5 x 5 upright rods (48, 48, 64) that is the same in all planes."""
    height, centres = rods()
    return np.repeat(height[..., 15:16], 64, axis=2), centres


def test_lines_follow_the_columns():
    height, _ = long_rods()
    np.testing.assert_allclose(smooth_along(height, STEPS), height, atol=1e-6)  # fills the stack
    height[..., :8] = height[..., 56:] = 0
    smooth = smooth_along(height, STEPS)
    assert smooth.dtype == np.float32
    np.testing.assert_allclose(smooth[12:36, 12:36, 32], height[12:36, 12:36, 32], atol=0.02)
    holed = height.copy()
    holed[12:19, 12:19, 30:32] = 0  # one sample of the lines that pass
    steps = round(FARTHEST / STEP)
    expected = height[15, 15, 32] * 2 * steps / (2 * steps + 1)
    assert smooth_along(holed, STEPS)[15, 15, 31] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("shape", [(48, 48, 10), (1, 1, 1), (5, 3, 2)])
def test_thin_sheets_and_specks_stay_as_they_are(shape):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    sheet = np.zeros((*shape[:2], 3 * shape[2]), np.float32)
    sheet[..., shape[2] : 2 * shape[2]] = values
    np.testing.assert_array_equal(smooth_along(sheet, STEPS), sheet)
    np.testing.assert_array_equal(smooth_along(0 * sheet, STEPS), 0 * sheet)


def test_columns_without_holes_are_taken_as_they_are(monkeypatch):
    height, _ = long_rods()
    height[..., :8] = height[..., 56:] = 0
    assert np.abs(smooth_along(height, STEPS) - height).max() > 0.1  # at the ends
    labels = columns_of(height, STEPS).labels
    monkeypatch.setattr(finding, "smooth_along", lambda values, steps: values)
    np.testing.assert_array_equal(labels, columns_of(height, STEPS).labels)


@pytest.mark.parametrize("as_mask", [False, True])
def test_long_bent_columns_with_holes_come_out_whole(as_mask):
    x, y, z = np.indices((64, 64, 80)).astype(float)
    bend = 0.003 * (z - 40) ** 2
    centres = [(12 + 9 * i, 14 + 9 * j) for i in range(5) for j in range(5)]
    across = np.min([np.hypot(x - a - bend, y - b) for a, b in centres], axis=0)
    height = np.clip(1 - 0.5 * across / 3.2, 0, 1)
    height[..., :8] = height[..., 72:] = 0
    gone = np.random.default_rng(0).random((16, 16, 20)) < 0.2  # blocks of 4^3 voxels
    holed = np.where(np.kron(gone, np.ones((4, 4, 4))) > 0, 0.2, height).astype(np.float32)
    volume = (holed >= 0.5).astype(np.uint8) if as_mask else holed
    found = columns_of(volume, STEPS)
    assert found.labels.max() <= 26  # 41 of the map and 62 of the mask if nothing is smoothed
    at = [
        {int(found.labels[round(a + 0.003 * (k - 40) ** 2), b, k]) for k in (16, 28, 40, 64)} - {0}
        for a, b in centres
    ]
    assert sum(len(numbers) == 1 for numbers in at) >= 24
