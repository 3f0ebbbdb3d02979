"""Instances from maps and masks of known columns."""

import numpy as np
import pytest

from utils.columns.instances import (
    Moments,
    depth,
    find_instances,
    reshape,
    same_way,
    smooth_axes,
    spreading,
    sums_of,
)

STEPS = (1.0, 1.0, 1.0)


def rods(gap=9.0, radius=3.2, bar=()):
    """A map of 5 x 5 upright rods (48, 48, 30): 1 on the axes, 0.5 at the radius, less outside."""
    x, y, _ = np.indices((48, 48, 30)).astype(float)
    centres = [(6 + gap * i, 6 + gap * j) for i in range(5) for j in range(5)]
    across = np.min([np.hypot(x - a, y - b) for a, b in centres], axis=0)
    height = np.clip(1 - 0.5 * across / radius, 0, 1)
    height[..., :5] = height[..., 25:] = 0
    return height.astype(np.float32), centres


def numbers_at(labels, centres, z=15):
    return [int(labels[int(a), int(b), z]) for a, b in centres]


def test_rods_that_stand_apart_are_one_instance_each():
    height, centres = rods()
    labels = find_instances(height, height >= 0.5, STEPS)
    assert labels.max() == 25 and sorted(numbers_at(labels, centres)) == list(range(1, 26))
    np.testing.assert_array_equal(labels > 0, height >= 0.5)


@pytest.mark.parametrize("of", [lambda height: height, lambda height: depth(height >= 0.5, STEPS)])
def test_rods_that_touch_are_told_apart(of):
    height, centres = rods(radius=5.0)
    foreground = height >= 0.5
    labels = find_instances(of(height), foreground, STEPS)
    assert sorted(numbers_at(labels, centres)) == list(range(1, 26)) and labels.max() == 25


def test_two_rods_under_one_crest_are_cut():
    height, centres = rods()
    height[15:25, 4:9, 10:20] = 1.0  # from one rod to the next, as high as both
    height[15:25, 5:8, 5:25] = 1.0
    labels = find_instances(height, height >= 0.5, STEPS)
    assert len(set(numbers_at(labels, centres))) == 25


def test_pieces_of_a_rod_are_joined_and_fragments_dropped():
    height, centres = rods()
    height[..., 14:16][10:20, 10:20] = 0  # one rod in two pieces
    height[44:46, 1:3, 10:12] = 1.0  # a speck within the stack
    labels = find_instances(height, height >= 0.5, STEPS)
    assert labels[15, 15, 10] == labels[15, 15, 20] > 0
    assert labels[44, 1, 10] == 0 and labels.max() == 25


def test_the_shape_of_neighbours_settles_what_is_doubtful():
    height, centres = rods()
    height[11:20, 11:20, 20:] = np.where(height[11:20, 11:20, 20:] > 0.5, 0.4, 0)  # a weak end
    height[36:39, 33, 10:20] = 0.6  # a weak lump beside a rod
    labels = find_instances(height, height >= 0.5, STEPS)
    assert labels[15, 15, 22] == 0 < labels[37, 33, 15]
    shaped = reshape(labels, height, 0.5, STEPS)
    assert shaped[15, 15, 22] == shaped[15, 15, 15] > 0 and shaped[38, 33, 15] == 0
    assert numbers_at(shaped, centres) == numbers_at(labels, centres)
    few = np.where(labels > 3, 0, labels)
    np.testing.assert_array_equal(reshape(few, height, 0.5, STEPS), few)


def test_an_instance_of_which_nothing_stays_leaves_no_number():
    height, centres = rods()
    labels = find_instances(height, height >= 0.5, STEPS)
    lost = labels[15, 15, 15]
    height[labels == lost] = 0.1
    shaped = reshape(labels, height, 0.5, STEPS)
    kept = [n - (n > lost) if n != lost else 0 for n in numbers_at(labels, centres)]
    assert numbers_at(shaped, centres) == kept
    np.testing.assert_array_equal(np.unique(shaped), np.arange(25))


def test_turning_the_map_turns_the_labels():
    height, _ = rods(radius=5.0)
    turned = height.transpose(2, 0, 1)[::-1]
    labels = find_instances(turned, turned >= 0.5, STEPS)
    plain = find_instances(height, height >= 0.5, STEPS).transpose(2, 0, 1)[::-1]
    pairs = np.unique(np.stack([labels.ravel(), plain.ravel()]), axis=1, return_counts=True)
    shared = sorted(pairs[1][(pairs[0] > 0).all(axis=0)])[-25:]
    assert sum(shared) >= 0.97 * np.count_nonzero(plain)


@pytest.mark.parametrize("voxels", [0, 1, 500])
def test_no_voxel_one_voxel_and_one_blob(voxels):
    mask = np.zeros((20, 20, 20), bool)
    mask.ravel()[:voxels] = True
    labels = find_instances(depth(mask, STEPS), mask, STEPS)
    assert labels.max() == min(voxels, 1)


def test_depth_is_the_distance_to_the_outside():
    mask = np.zeros((30, 30, 30), bool)
    mask[5:25, 5:25, 5:25] = True
    found = depth(mask, (1.0, 2.0, 1.0))
    assert found[14, 14, 14] == pytest.approx(10, abs=0.7)
    assert depth(np.ones((4, 4, 4), bool), STEPS).max() == 0  # nothing is outside


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    labels, steps = rng.integers(0, 4, (6, 7, 8)), (1.0, 2.0, 0.5)
    sums = sums_of(labels[..., :3], 3, 0) + sums_of(labels[..., 3:], 3, 3)
    for found in (Moments.of(labels, steps), Moments.of_sums(sums, steps)):
        for k in range(3):
            own = np.argwhere(labels == k + 1) * steps
            assert found.count[k] == len(own)
            np.testing.assert_allclose(found.centre[k], own.mean(axis=0))
            np.testing.assert_allclose(found.covariance[k], np.cov(own.T, bias=True), atol=1e-12)


def test_axes_of_a_cap_point_outward_and_are_smoother_than_each_alone():
    rng = np.random.default_rng(1)
    flat = np.stack(np.meshgrid(np.linspace(-0.6, 0.6, 9), np.linspace(-0.6, 0.6, 9)), axis=-1)
    true = np.concatenate([flat.reshape(-1, 2), np.ones((81, 1))], axis=1)
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    noisy = true + rng.normal(0, 0.08, true.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    covariance = np.eye(3) + 8 * noisy[:, :, None] * noisy[:, None, :]
    found = smooth_axes(Moments(np.full(81, 100), 50 * true, covariance))
    cosine, before = (np.sum(true * a, axis=1) for a in (found, noisy))
    assert (cosine > 0.99).all() and np.arccos(cosine).mean() < 0.5 * np.arccos(before).mean()
    signs = np.where(rng.random(81) < 0.5, -1, 1)[:, None]
    np.testing.assert_allclose(same_way(signs * noisy, 50 * true), noisy)
    assert spreading(true, 50 * true) == 1 and spreading(-true, 50 * true) == -1


def test_instances_a_voxel_wide_have_an_axis_whatever_rounding_makes_of_their_width():
    centres = np.random.default_rng(0).random((6, 3)) * 50
    covariance = np.tile(np.diag([-1e-12, -2e-12, 4.0]), (6, 1, 1))
    found = smooth_axes(Moments(np.full(6, 9), centres, covariance))
    np.testing.assert_allclose(np.abs(found), np.tile([0, 0, 1], (6, 1)), atol=1e-6)


def test_the_axis_of_columns_flatter_than_wide_is_across_them():
    """Lenses or cones of an eye may be discs: their longest extent lies in the sheet."""
    turn = np.linspace(-0.6, 0.6, 9)
    flat = np.stack(np.meshgrid(turn, turn), axis=-1).reshape(-1, 2)
    true = np.concatenate([flat, np.ones((81, 1))], axis=1)
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    along = np.cross(true, np.random.default_rng(0).normal(size=true.shape))
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    discs = 9 * np.eye(3) - 7 * true[:, :, None] * true[:, None, :]
    discs += 2 * along[:, :, None] * along[:, None, :]  # none is round
    found = smooth_axes(Moments(np.full(81, 100), 50 * true, discs))
    assert (np.sum(true * found, axis=1) > 0.99).all()
