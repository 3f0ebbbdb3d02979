"""Boxes cut out of stacks: their voxels, spacing and place."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from utils.prediction.cropping import crop_stack
from utils.prediction.microscope_files import StackError, StackLayout, open_stack, write_stack

IMAGE = np.arange(9 * 8 * 7, dtype=np.uint16).reshape(9, 8, 7)
SPACING = (0.5, 0.6, 2.0)
RANGES = ((2, 6), (None, 5), (3, None))


def test_a_box_reads_like_a_slice_and_keeps_its_voxels(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.tif", [IMAGE], StackLayout(IMAGE.shape, IMAGE.dtype, SPACING))
    with open_stack(tmp_path / "a.tif") as stack:
        box = crop_stack(stack, RANGES)
        assert box.shape == (6, 5, 4) and box.spacing == pytest.approx(SPACING)
        np.testing.assert_array_equal(box.read(), IMAGE[3:, :5, 2:6])
        np.testing.assert_array_equal(box.read(1, 3), IMAGE[3:, :5, 3:5])
        whole = crop_stack(stack, ((None, None),) * 3)
        np.testing.assert_array_equal(whole.read(), IMAGE)


def test_an_image_is_cropped_along_y_and_x(tmp_path: Path) -> None:
    image = IMAGE[..., 0].copy()
    write_stack(tmp_path / "a.tif", [image], StackLayout(image.shape, image.dtype))
    with open_stack(tmp_path / "a.tif") as stack:
        np.testing.assert_array_equal(crop_stack(stack, ((1, 4), (0, 2))).read(), image[:2, 1:4])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (((0, 8), (0, 8), (0, 9)), "0:8 along z: must lie within 0:7"),
        (((0, 7), (5, 5), (0, 9)), "5:5 along y"),
        (((0, 7), (-1, 5), (0, 9)), "-1:5 along y"),
        (((0, 8), (0, 9)), "3 axes, but --crop 2 ranges; give z0:z1,y0:y1,x0:x1"),
    ],
)
def test_what_is_no_box_is_named(tmp_path: Path, ranges: tuple, message: str) -> None:
    write_stack(tmp_path / "a.tif", [IMAGE], StackLayout(IMAGE.shape, IMAGE.dtype))
    with open_stack(tmp_path / "a.tif") as stack, pytest.raises(StackError, match=message):
        crop_stack(stack, ranges)


def test_the_place_in_space_moves_along(tmp_path: Path) -> None:
    directions = np.array([[0.5, 0.1, 0], [0, 0.6, 0], [0, 0, 2.0]])
    header = {"space": "left-posterior-superior", "space origin": [10.0, 20.0, 30.0]}
    header |= {"space directions": directions, "kinds": ["space"] * 3}
    nrrd.write(str(tmp_path / "a.nrrd"), IMAGE, header)
    affine = np.array([[0, 0.6, 0, 5.0], [0.5, 0, 0, 6.0], [0, 0, 2.0, 7.0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(IMAGE, affine), tmp_path / "a.nii")
    for ending in ("nrrd", "nii"):
        with open_stack(tmp_path / f"a.{ending}") as stack:
            box = crop_stack(stack, RANGES)
            write_stack(tmp_path / f"b.{ending}", [box.read()], StackLayout.like(box, np.uint16))
    written = nrrd.read_header(str(tmp_path / "b.nrrd"))
    expected = [10 + 3 * 0.5, 20 + 3 * 0.1, 30 + 2 * 2.0]
    np.testing.assert_allclose(written["space origin"], expected)
    np.testing.assert_allclose(written["space directions"], directions)
    corner = nibabel.load(tmp_path / "b.nii").affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner, affine @ [3, 0, 2, 1], rtol=1e-6)
