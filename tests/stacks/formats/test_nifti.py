import nibabel
import nrrd
import numpy as np
import pytest

from tests.stacks.stacks import random_stack, slabs_of
from utils.stacks import (
    StackLayout,
    open_stack,
    write_stack,
)


def test_a_placement_in_space_is_carried(tmp_path):
    array = random_stack()
    affine = np.array([[0, 0.5, 0, 3], [-0.25, 0, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    header = {
        "space": "right-anterior-superior",
        "space directions": affine[:3, :3],
        "space origin": affine[:3, 3],
        "space units": ["mm"] * 3,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    for name in ("a.nii.gz", "a.nrrd"):
        with open_stack(tmp_path / name) as stack:
            np.testing.assert_array_equal(stack.read(), array)
            layout = StackLayout.like(stack, np.uint8)
            write_stack(tmp_path / f"b_{name}", slabs_of(array), layout)
    np.testing.assert_allclose(nibabel.load(tmp_path / "b_a.nii.gz").affine, affine)
    written = nrrd.read_header(str(tmp_path / "b_a.nrrd"))
    np.testing.assert_allclose(written["space directions"], affine[:3, :3])
    np.testing.assert_allclose(written["space origin"], affine[:3, 3])
    with open_stack(tmp_path / "b_a.nrrd") as stack:
        assert stack.spacing == pytest.approx((500, 250, 2000)[: len(stack.shape)])


def test_scaled_nifti(tmp_path):
    image = nibabel.Nifti1Image(random_stack(dtype=np.float32) / 7, np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    with open_stack(tmp_path / "a.nii") as stack:
        assert stack.dtype == np.float32 and stack.spacing is None
        np.testing.assert_allclose(stack.read(2, 4), image.get_fdata()[..., 2:4], atol=1e-3)


def test_packed_files_are_read_in_any_order(tmp_path):
    array = random_stack((20, 30, 40), np.uint16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with open_stack(tmp_path / "a.nii.gz") as stack:
        assert stack.loaded == 0
        for start, stop in ((0, 7), (5, 12), (30, 40), (1, 3), (0, 40)):
            np.testing.assert_array_equal(stack.read(start, stop), array[..., start:stop])
