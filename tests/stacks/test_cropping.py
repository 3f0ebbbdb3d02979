"""Boxes cut out of stacks: their voxels, spacing and place."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
import zarr

from utils.errors import UserError
from utils.stacks import StackLayout, crop_stack, open_stack, write_stack

IMAGE = np.arange(9 * 8 * 7, dtype=np.uint16).reshape(9, 8, 7)
SPACING = (0.5, 0.6, 2.0)
RANGES = ((2, 6), (None, 5), (3, None))
CORNER = (3, 0, 2)
"""First voxel of that box along x, y, z."""


def cut(source: Path, target: Path, ranges: tuple = RANGES) -> Path:
    """Write a box of one file as another; return its path."""
    with open_stack(source) as stack:
        box = crop_stack(stack, ranges)
        write_stack(target, [box.read()], StackLayout.like(box, np.uint16))
    return target


def save(path: Path, spacing: tuple[float, ...] | None = SPACING) -> Path:
    write_stack(path, [IMAGE], StackLayout(IMAGE.shape, IMAGE.dtype, spacing))
    return path


def imagej_origin(path: Path) -> list[float]:
    with tifffile.TiffFile(path) as file:
        return [file.imagej_metadata.get(f"{axis}origin", 0) for axis in "xyz"]


def translations(path: Path) -> list[list[float]]:
    """Return those of each level along x, y, z; zeros where there is none."""
    (multiscale,) = zarr.open_group(str(path), mode="r").attrs["multiscales"]
    return [
        next((s["translation"] for s in d["coordinateTransformations"][1:]), [0.0] * 3)[::-1]
        for d in multiscale["datasets"]
    ]


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
    with open_stack(tmp_path / "a.tif") as stack, pytest.raises(UserError, match=message):
        crop_stack(stack, ranges)


def test_the_place_in_space_moves_along(tmp_path: Path) -> None:
    directions = np.array([[0.5, 0.1, 0], [0, 0.6, 0], [0, 0, 2.0]])
    header = {"space": "left-posterior-superior", "space origin": [10.0, 20.0, 30.0]}
    header |= {"space directions": directions, "kinds": ["space"] * 3}
    nrrd.write(str(tmp_path / "a.nrrd"), IMAGE, header)
    affine = np.array([[0, 0.6, 0, 5.0], [0.5, 0, 0, 6.0], [0, 0, 2.0, 7.0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(IMAGE, affine), tmp_path / "a.nii")
    for ending in ("nrrd", "nii"):
        cut(tmp_path / f"a.{ending}", tmp_path / f"b.{ending}")
    written = nrrd.read_header(str(tmp_path / "b.nrrd"))
    expected = [10 + 3 * 0.5, 20 + 3 * 0.1, 30 + 2 * 2.0]
    np.testing.assert_allclose(written["space origin"], expected)
    np.testing.assert_allclose(written["space directions"], directions)
    corner = nibabel.load(tmp_path / "b.nii").affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner, affine @ [3, 0, 2, 1], rtol=1e-6)


def test_imagej_calls_the_first_voxel_of_the_whole_its_origin(tmp_path: Path) -> None:
    box = cut(save(tmp_path / "a.tif"), tmp_path / "b.tif")
    assert imagej_origin(box) == [-3, 0, -2]  # in voxels, as Fiji's own cropping sets it
    again = cut(box, tmp_path / "c.tif", ((1, 3), (2, 4), (1, 3)))
    assert imagej_origin(again) == [-4, -2, -3]
    assert imagej_origin(cut(again, tmp_path / "d.tif", ((None, None),) * 3)) == [-4, -2, -3]
    whole = cut(tmp_path / "a.tif", tmp_path / "e.tif", ((None, None),) * 3)
    with tifffile.TiffFile(whole) as file:
        assert not {"xorigin", "yorigin", "zorigin"} & set(file.imagej_metadata)
    assert imagej_origin(cut(save(tmp_path / "f.tif", None), tmp_path / "g.tif")) == [-3, 0, -2]


def test_an_origin_that_is_no_number_is_none(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "xorigin": "left", "yorigin": float("nan"), "zorigin": 4}
    tifffile.imwrite(tmp_path / "a.tif", IMAGE.T, imagej=True, metadata=metadata)
    box = cut(tmp_path / "a.tif", tmp_path / "b.tif", ((1, 3), (None, None), (2, None)))
    assert imagej_origin(box) == [-2, 0, 3]


def test_ome_zarr_says_where_a_box_was_cut_out(tmp_path: Path) -> None:
    long = np.zeros((600, 8, 7), np.uint16)
    write_stack(tmp_path / "a.ome.zarr", [long], StackLayout(long.shape, long.dtype, SPACING))
    assert translations(tmp_path / "a.ome.zarr")[0] == [0.0] * 3
    box = cut(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr")
    first = np.array(CORNER) * SPACING
    np.testing.assert_allclose(translations(box)[0], first)
    again = cut(box, tmp_path / "c.ome.zarr", ((1, 2), (2, 4), (1, 3)))
    np.testing.assert_allclose(translations(again)[0], first + np.array([1, 2, 1]) * SPACING)
    save(tmp_path / "d.zarr", None)
    assert translations(cut(tmp_path / "d.zarr", tmp_path / "e.zarr"))[0] == [3, 0, 2]


def test_a_box_written_in_another_format_keeps_its_corner(tmp_path: Path) -> None:
    source = save(tmp_path / "a.tif")
    corner = np.array(CORNER) * SPACING
    header = nrrd.read_header(str(cut(source, tmp_path / "b.nrrd")))
    np.testing.assert_allclose(header["space origin"], corner)
    np.testing.assert_allclose(header["space directions"], np.diag(SPACING))
    assert list(header["space units"]) == ["um"] * 3
    image = nibabel.load(cut(source, tmp_path / "b.nii.gz"))
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [*corner, 1], rtol=1e-6)
    np.testing.assert_allclose(translations(cut(source, tmp_path / "b.zarr"))[0], corner)
    for name in ("b.nrrd", "b.nii.gz", "b.zarr"):
        with open_stack(tmp_path / name) as stack:
            assert stack.spacing == pytest.approx(SPACING)
            np.testing.assert_array_equal(stack.read(), IMAGE[3:, :5, 2:6])
    again = cut(tmp_path / "b.nrrd", tmp_path / "c.tif", ((1, 2),) * 3)
    np.testing.assert_allclose(imagej_origin(again), [-4, -1, -3], rtol=1e-6)


def test_an_image_keeps_its_corner(tmp_path: Path) -> None:
    image = IMAGE[..., 0].copy()
    write_stack(tmp_path / "a.tif", [image], StackLayout(image.shape, image.dtype, (0.5, 0.6)))
    for name in ("b.tif", "b.ome.tif", "b.nrrd", "b.nii", "b.zarr"):
        cut(tmp_path / "a.tif", tmp_path / name, ((1, 4), (2, 6)))
        with open_stack(tmp_path / name) as stack:
            np.testing.assert_array_equal(stack.read(), image[2:6, 1:4])
    assert imagej_origin(tmp_path / "b.tif") == [-2, -1, 0]
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii").affine[:2, 3], [1, 0.6])
    np.testing.assert_allclose(translations(tmp_path / "b.zarr")[0], [1, 0.6])


def test_a_single_plane_keeps_its_place(tmp_path: Path) -> None:
    """It is read as an image, whose header still speaks of three axes in space."""
    header = {"space dimension": 3, "space origin": [10.0, 20.0, 30.0], "kinds": ["space"] * 3}
    header |= {"space directions": np.diag(SPACING)}
    nrrd.write(str(tmp_path / "a.nrrd"), IMAGE[..., :1], header)
    box = cut(tmp_path / "a.nrrd", tmp_path / "b.nrrd", ((1, 4), (2, 6)))
    values, written = nrrd.read(str(box))
    np.testing.assert_array_equal(values, IMAGE[2:6, 1:4, 0])
    np.testing.assert_allclose(written["space origin"], [11, 20.6, 30])


def test_a_corrected_voxel_size_leaves_0_at_its_voxel(tmp_path: Path) -> None:
    """Directions stay; lengths were measured with the wrong size and follow it."""
    affine = np.array([[0, 0.6, 0, 6.0], [-0.5, 0, 0, 5.0], [0, 0, 2.0, 7.0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(IMAGE, affine), tmp_path / "a.nii")
    with open_stack(tmp_path / "a.nii", voxel_size=(3, 1, 1)) as stack:
        write_stack(tmp_path / "b.nii", [stack.read()], StackLayout.like(stack, np.uint16))
        box = crop_stack(stack, RANGES)
        write_stack(tmp_path / "c.nii", [box.read()], StackLayout.like(box, np.uint16))
    with open_stack(tmp_path / "b.nii") as stack:
        assert stack.spacing == pytest.approx((1, 1, 3))
    whole = nibabel.load(tmp_path / "b.nii").affine
    np.testing.assert_allclose(whole[:3, :3], [[0, 1, 0], [-1, 0, 0], [0, 0, 3]], atol=1e-6)
    zero = np.linalg.inv(affine) @ [0, 0, 0, 1]
    np.testing.assert_allclose(np.linalg.inv(whole) @ [0, 0, 0, 1], zero, rtol=1e-6, atol=1e-5)
    corner = nibabel.load(tmp_path / "c.nii").affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner, whole @ [*CORNER, 1], rtol=1e-6)


def test_a_voxel_size_that_the_file_has_too_keeps_its_place(tmp_path: Path) -> None:
    affine = np.array([[-0.5, 0, 0, 5.0], [0, 0.6, 0, 6.0], [0, 0, 2.0, 7.0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(IMAGE, affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    with open_stack(tmp_path / "a.nii", voxel_size=(2, 0.60001, 0.5)) as stack:
        write_stack(tmp_path / "b.nii", [stack.read()], StackLayout.like(stack, np.uint16))
    np.testing.assert_allclose(nibabel.load(tmp_path / "b.nii").affine, affine, rtol=1e-4)
