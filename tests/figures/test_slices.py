"""Slices of volumes: the fullest one, and brightness from 0 to 1."""

import numpy as np

from utils.figures import slices


def test_densest_slice_is_that_with_most_labels() -> None:
    mask = np.zeros((4, 4, 5), dtype=np.uint8)
    mask[:2, 0, 3], mask[0, 0, 1] = 1, 1
    assert slices.densest_slice(mask) == 3


def test_display_scaling_goes_from_0_to_1_and_survives_a_constant() -> None:
    image = np.linspace(3.0, 9.0, 1000).reshape(10, 10, 10)
    scaled = slices.scale_to_display(image)
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    assert not slices.scale_to_display(np.full((3, 3), 7.0)).any()
