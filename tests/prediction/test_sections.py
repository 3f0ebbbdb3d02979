"""Planes gathered from slabs, beside slices of the whole."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.prediction import sections

LENGTHS = st.integers(1, 9)


def slabs(whole: np.ndarray, depth: int) -> Iterator[np.ndarray]:
    for start in range(0, whole.shape[-1], depth):
        yield whole[..., start : start + depth]


@given(st.tuples(LENGTHS, LENGTHS, LENGTHS), LENGTHS, st.integers(1, 9), st.data())
def test_planes_of_a_stack_are_its_slices(
    shape: tuple[int, ...], depth: int, most: int, data: st.DataObject
) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape)
    x, y, z = (data.draw(st.integers(0, n - 1)) for n in shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "MOST_PIXELS", most)
        found = sections.cut(slabs(whole, depth), shape, (x, y, z))
    a, b, c = (-(-n // most) for n in shape)
    expected = [whole[::a, ::b, z], whole[::a, y, ::c], whole[x, ::b, ::c]]
    assert all(max(plane.shape) <= most for plane in found)
    for plane, twin in zip(found, expected, strict=True):
        np.testing.assert_array_equal(plane, twin)


def test_an_image_is_its_own_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MOST_PIXELS", 6)
    whole = np.arange(13 * 20).reshape(13, 20)
    (plane,) = sections.cut(slabs(whole, 3), whole.shape, (6, 10))
    np.testing.assert_array_equal(plane, whole[::3, ::4])


@given(st.integers(0, 1000), st.sampled_from([(7, 5, 9), (6, 8)]), LENGTHS)
def test_each_plane_through_the_middle_meets_the_mask(
    seed: int, shape: tuple[int, ...], depth: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < rng.choice([0.02, 0.3])).astype(np.uint8)
    middle, marked = sections.middle_of(slabs(mask, depth), shape)
    assert marked == mask.sum()
    for axis, (place, length) in enumerate(zip(middle, shape, strict=True)):
        if marked:
            assert mask.take(place, axis).any()
            twin = np.sort(np.nonzero(mask)[axis])[(marked - 1) // 2]
            assert place == twin
        else:
            assert place == length // 2
