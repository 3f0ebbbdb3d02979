import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import random_stack, slabs_of
from utils.errors import UserError
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


@pytest.mark.parametrize("kind", [nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("packed", [False, True])
def test_other_kinds_of_files(tmp_path, kind, packed):
    array, affine = random_stack(dtype=np.uint16), np.diag([-0.25, 0.5, 2.0, 1.0])
    image = kind(array, affine)
    image.header.set_xyzt_units("micron")
    single = kind is nibabel.Nifti2Image
    names = ["a.nii"] if single else ["a.img", "a.hdr"]
    names = [f"{name}.gz" if packed else name for name in names]
    nibabel.save(image, tmp_path / names[0])
    for name in names:
        with open_stack(tmp_path / name) as stack:
            assert stack.spacing == pytest.approx((0.25, 0.5, 2.0)) and stack.warning() is None
            np.testing.assert_array_equal(stack.read(1, 4), array[..., 1:4])
            np.testing.assert_allclose(stack.place.steps, affine[:3, :3])
    if not single:
        (tmp_path / names[0]).unlink()
        with pytest.raises(UserError, match=r"a\.hdr.*cannot be read .*a\.img"):
            open_stack(tmp_path / names[1]).read()


def test_analyze_has_sizes_without_a_unit(tmp_path):
    array = random_stack(dtype=np.int16)
    nibabel.save(nibabel.Spm2AnalyzeImage(array, np.diag([-0.25, 0.5, 2.0, 1])), tmp_path / "a.img")
    with open_stack(tmp_path / "a.hdr") as stack:
        np.testing.assert_array_equal(stack.read(), array)
        assert stack.spacing is None and stack.edges == pytest.approx((1, 2, 8))
        assert "no unit" in stack.warning()


@pytest.mark.parametrize(("pixdim", "said"), [(1.0, False), (3.0, True)])
def test_an_affine_comes_before_the_sizes_beside_it(tmp_path, pixdim, said):
    array = random_stack()
    image = nibabel.Nifti1Image(array, np.diag([-0.25, 0.5, 2.0, 1.0]))
    image.header.set_xyzt_units("micron")
    image.header["pixdim"][1:4] = pixdim
    head = image.header.copy()
    head["magic"], head["vox_offset"] = b"n+1", 352
    voxels = array.tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(head.binaryblock + bytes(4) + voxels)
    with open_stack(tmp_path / "a.nii") as stack:
        np.testing.assert_array_equal(stack.read(), array)
        assert stack.spacing == pytest.approx((0.25, 0.5, 2.0))
        assert ("pixdim differs" in (stack.warning() or "")) == said


def test_a_long_axis_takes_nifti_2(tmp_path):
    array = np.zeros((40000, 2, 2), np.uint8)
    write_stack(tmp_path / "a.nii", [array], StackLayout(array.shape, array.dtype, (1, 2, 3)))
    assert isinstance(nibabel.load(tmp_path / "a.nii"), nibabel.Nifti2Image)
    with open_stack(tmp_path / "a.nii") as stack:
        assert stack.shape == array.shape and stack.spacing == pytest.approx((1, 2, 3))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    st.sampled_from([("micron", 1), ("mm", 1e3), ("meter", 1e6)]),
    st.tuples(*[st.floats(0.01, 100)] * 3),
    st.integers(0, 99),
    st.sampled_from("<>"),
)
def test_what_nibabel_writes_reads_the_same(tmp_path_factory, kind, unit, sizes, seed, order):
    path = tmp_path_factory.mktemp("nifti") / "a.nii"
    array = random_stack(dtype=np.int16, seed=seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * sizes, (3, -4, 5)
    image = kind(array, affine, header=kind.header_class(endianness=order))
    image.header.set_xyzt_units(unit[0])
    nibabel.save(image, path)
    with open_stack(path) as stack:
        np.testing.assert_array_equal(stack.read(), array)
        assert stack.spacing == pytest.approx(np.array(sizes) * unit[1], rel=1e-4)
        np.testing.assert_allclose(stack.place.steps, affine[:3, :3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.AnalyzeImage])
def test_a_file_without_a_place_gets_none(tmp_path, kind):
    image = kind(random_stack(dtype=np.int16), None)
    image.header.set_zooms((0.5, 0.5, 1.5))
    path = tmp_path / ("a.img" if kind is nibabel.AnalyzeImage else "a.nii")
    nibabel.save(image, path)
    with open_stack(path) as stack:
        assert stack.place.sizes == pytest.approx((0.5, 0.5, 1.5))
        assert not stack.place.turned and stack.place.way == (0, 0, 0)
