"""Size, directions and place of voxels: their arithmetic, and their way through all formats."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stacks.stacks import random_stack, save
from utils.stacks import StackLayout, open_stack, write_stack
from utils.stacks.endings import not_kept
from utils.stacks.place import Place

SIZES = (0.25, 0.5, 2.0)
FIRST = (12.5, -7.0, 3.25)
PLACED = ("a.tif", "a.ome.tif", "a.nrrd", "a.nii", "a.nii.gz", "a.zarr")
"""Formats that hold a place; the first two and the last no directions."""
TURNED = ("a.nrrd", "a.nii", "a.nii.gz")
SPACE = "right-anterior-superior"
finite = st.floats(-100, 100, allow_nan=False)
sizes = st.tuples(*[st.floats(0.01, 100)] * 3)


def turned(seed: int = 0) -> np.ndarray:
    """Return directions at random, mirrored for every other seed, times the sizes."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return rotation * (-1 if seed % 2 else 1) * np.array(SIZES)


def through(tmp_path: Path, place: Place, *names: str) -> Place:
    """Return the place that is left when a stack went through files of these names."""
    array = random_stack()
    layout = StackLayout(array.shape, array.dtype, place.spacing, place=place)
    for step, name in enumerate(names):
        path = tmp_path / f"{step}_{name}"
        write_stack(path, [array], layout)
        with open_stack(path) as stack:
            np.testing.assert_array_equal(stack.read(), array)
            layout = StackLayout.like(stack, array.dtype)
    assert layout.place is not None
    return layout.place


@pytest.mark.parametrize(("one", "other"), list(itertools.product(PLACED, PLACED)))
def test_a_place_goes_from_format_to_format(tmp_path: Path, one: str, other: str) -> None:
    place = Place(np.diag(SIZES), np.array(FIRST))
    found = through(tmp_path, place, one, other)
    assert found.spacing == pytest.approx(SIZES, rel=1e-4)
    np.testing.assert_allclose(found.first * found.unit, FIRST, rtol=1e-4)
    assert not found.turned and not_kept(f"x{other}", place) is None


@pytest.mark.parametrize(("one", "other"), list(itertools.product(TURNED, TURNED)))
@pytest.mark.parametrize("space", ["right-anterior-superior", "left-posterior-superior"])
def test_directions_go_from_format_to_format(
    tmp_path: Path, one: str, other: str, space: str
) -> None:
    for seed in range(4):
        place = Place(turned(seed), np.array(FIRST), 1.0, space)
        found = through(tmp_path, place, one, other).in_space(space)
        np.testing.assert_allclose(found.steps, place.steps, atol=1e-5)
        np.testing.assert_allclose(found.first, FIRST, rtol=1e-5)
        assert not_kept(f"x{other}", place) is None


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
def test_without_directions_0_stays_at_its_voxel_and_it_is_said(tmp_path: Path, name: str) -> None:
    place = Place(turned(1), np.array(FIRST), 1.0, SPACE)
    found = through(tmp_path, place, name)
    zero = np.linalg.solve(place.steps, -place.first)
    np.testing.assert_allclose(np.linalg.solve(found.steps, -found.first), zero, rtol=1e-4)
    assert found.spacing == pytest.approx(SIZES, rel=1e-4)
    assert "does not hold the directions" in str(not_kept(name, place))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.h5", "place and directions"),
        ("a.npy", "voxel size and place and directions"),
        ("a.tif", "directions"),
    ],
)
def test_what_a_format_cannot_hold_is_said(name: str, said: str) -> None:
    assert f"does not hold the {said}" in str(not_kept(name, Place(turned(), np.array(FIRST))))
    assert not_kept(name, Place.aligned({})) is None


@pytest.mark.parametrize("name", [*PLACED[:-1]])
def test_a_ratio_without_a_unit_stays_one(tmp_path: Path, name: str) -> None:
    found = through(tmp_path, Place.aligned(dict(zip("XYZ", SIZES, strict=True)), np.nan), name)
    assert found.spacing is None and found.sizes == pytest.approx(SIZES, rel=1e-4)
    assert "no unit" in str(found.note())


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.tif", "XY"), ("a.ome.tif", "XY"), ("a.ome.tif", "Z"), ("a.nrrd", "XY"), ("a.nrrd", "Z")],
)
def test_one_unknown_axis_does_not_forget_the_others(tmp_path: Path, name: str, known: str) -> None:
    sizes = {a: n for a, n in zip("XYZ", SIZES, strict=True) if a in known}
    found = through(tmp_path, Place.aligned(sizes), name)
    assert found.spacing is None and found.known == pytest.approx(sizes)
    assert "no voxel size along" in str(found.note())


def test_other_names_of_axes_give_no_directions(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_stack(path, [random_stack()], StackLayout((7, 6, 5), np.dtype(np.uint8), SIZES))
    with open_stack(path, axes="XYZ") as stack:
        assert stack.spacing == SIZES[::-1] and not stack.place.turned
        assert not_kept("x.tif", stack.place) is None


@given(sizes, sizes, st.integers(0, 9), st.tuples(finite, finite, finite))
def test_a_new_size_keeps_directions_and_where_0_lies(old, new, seed, first) -> None:
    place = Place(turned(seed) / SIZES * old, np.array(first))
    found = place.resized(new)
    assert found.spacing == pytest.approx(new)
    np.testing.assert_allclose(found.steps / new, place.steps / old, atol=1e-6)
    zeros = [np.linalg.solve(p.steps, -p.first) for p in (place, found)]
    np.testing.assert_allclose(zeros[1], zeros[0], rtol=1e-5, atol=1e-5)


@given(st.sampled_from([np.nan, 1.0, 1e3]), st.integers(0, 9))
def test_a_size_that_is_the_stacks_own_changes_nothing(unit: float, seed: int) -> None:
    place = Place(turned(seed), np.array(FIRST), unit, SPACE)
    own = np.array(SIZES) * (1 if np.isnan(unit) else unit) * (1 + 1e-6)
    found = place.resized(own)
    assert found.steps is place.steps and found.first is place.first
    assert found.spacing == pytest.approx(own)


@pytest.mark.parametrize("unit", [None, "micron", "mm"])
@pytest.mark.parametrize("ending", ["nii", "nrrd"])
def test_the_flag_that_is_advised_does_no_harm(
    tmp_path: Path, unit: str | None, ending: str
) -> None:
    """Header and flag say the same numbers; with ``mm`` the header is wrong by a thousand."""
    affine = np.diag([-0.5, -0.5, 1.5, 1.0])
    affine[:3, 3] = 100, 120, 30
    array = random_stack()
    if ending == "nii":
        image = nibabel.Nifti1Image(array, affine)
        image.header.set_xyzt_units(unit or "unknown")
        nibabel.save(image, tmp_path / "a.nii")
    else:
        header = {"space directions": affine[:3, :3], "space origin": affine[:3, 3]}
        header |= {"space": SPACE, **({"space units": [unit] * 3} if unit else {})}
        nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    with open_stack(tmp_path / f"a.{ending}", voxel_size=(1.5, 0.5, 0.5)) as stack:
        assert stack.spacing == pytest.approx((0.5, 0.5, 1.5)) and stack.warning() is None
        write_stack(tmp_path / f"b.{ending}", [array], StackLayout.like(stack, np.uint8))
    if ending == "nii":
        image = nibabel.load(tmp_path / "b.nii")
        written, unit = image.affine, image.header.get_xyzt_units()[0]
    else:
        fields = nrrd.read_header(str(tmp_path / "b.nrrd"))
        written, unit = np.eye(4), fields["space units"][0]
        written[:3, :3], written[:3, 3] = fields["space directions"].T, fields["space origin"]
    assert unit in ("micron", "um")
    np.testing.assert_allclose(written, affine, rtol=1e-6)


@settings(max_examples=10)
@given(sizes)
def test_images_keep_their_sizes(tmp_path_factory, size) -> None:
    folder = tmp_path_factory.mktemp("images")
    array = random_stack((7, 6))
    for name in PLACED:
        with open_stack(save(folder / name, array, spacing=size[:2])) as stack:
            assert stack.spacing == pytest.approx(size[:2], rel=1e-3)
