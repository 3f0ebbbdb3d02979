"""Planes of a stack with masks on them, and the preview, checked on panels and pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.figures import canvas, stacks
from utils.prediction.sections import Sections, cut, middle_of


def overlay(seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 20), np.uint8)
    mask[5:15, 8:12] = 1
    return rng.random((30, 20)), mask, f"plane {seed}"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_overlays_show_the_mask_in_red_and_a_coarser_image(tmp_path: Path) -> None:
    rows = [[overlay(0), overlay(1)]]
    plain = pixels(stacks.save_overlays(rows, tmp_path / "a.png", spacing=(0.5, 0.5)))
    red = (plain[..., 0] > plain[..., 1] + 60) & (plain[..., 0] > plain[..., 2] + 60)
    height, width = red.shape
    halves = [red[:, k * width // 4 : (k + 1) * width // 4].mean() for k in range(4)]
    assert halves[0] == halves[2] == 0 and min(halves[1], halves[3]) > 0.01
    coarse = pixels(stacks.save_overlays(rows, tmp_path / "b.png", spacing=(0.5, 0.5), step=5))
    blue = [p[:, : width // 4].std() for p in (plain, coarse)]
    assert blue[0] != blue[1]


def test_a_finer_image_than_there_is_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 voxel"):
        stacks.save_overlays([[overlay()]], tmp_path / "a.png", step=0.5)


def sections(shape: tuple[int, ...], spacing: tuple[float, ...] | None, fill: Any) -> Sections:
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[fill] = 1
    middle, marked = middle_of([mask], shape)
    planes = cut([image], shape, middle), cut([mask], shape, middle)
    return Sections(shape, spacing, (0,) * len(shape), middle, marked, *planes)


def reddish(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return (pixels[..., 0] > pixels[..., 1] + 90) & (pixels[..., 0] > pixels[..., 2] + 90)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures in the order in which they are written."""
    kept: list[Any] = []
    save = canvas.save_figure

    def keep(figure: Any, path: Path) -> Path:
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(canvas, "save_figure", keep)
    return kept


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((40, 30, 20), (0.5, 0.5, 2.0)),
        ((40, 30, 4), (1.0, 1.0, 1.0)),
        ((8, 30, 90), None),
    ],
)
def test_all_planes_have_one_scale(
    tmp_path: Path, figures: list[Any], shape: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    found = sections(shape, spacing, np.s_[3:6, 8:20, 1:3])
    path = stacks.save_preview(found, tmp_path / "a.png", "a.tif")
    panels = [axes for axes in figures[0].axes if axes.axison]
    size = np.array(shape) * (spacing or (1, 1, 1))
    scales = []
    for axes, (right, down) in zip(panels, [(0, 1), (2, 1), (0, 2)], strict=True):
        box = axes.get_window_extent()
        scales += [box.width / size[right], box.height / size[down]]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("xyz"[right], "xyz"[down])
    assert max(scales) / min(scales) == pytest.approx(1, abs=0.02)
    x, y, z = found.middle
    titles = [axes.get_title() for axes in panels]
    assert titles == [f"z = {z}", f"x = {x}", f"y = {y}"]
    (bar,) = (text.get_text() for text in panels[0].texts)
    assert bar.endswith("\u00b5m" if spacing else "voxels")
    length = np.ptp(panels[0].lines[0].get_xdata())
    assert length == pytest.approx(float(bar.split()[0]))
    assert reddish(path).sum() > 50


def test_the_outline_stands_around_the_mask(tmp_path: Path, figures: list[Any]) -> None:
    stacks.save_preview(
        sections((40, 30), (2.0, 2.0), np.s_[10:20, 5:12]), tmp_path / "a.png", "a.tif"
    )
    (axes,) = figures[0].axes
    (outline,) = axes.collections[0].get_paths()
    low, high = outline.get_extents().get_points()
    np.testing.assert_allclose(low, [20, 10], atol=1.01)
    np.testing.assert_allclose(high, [40, 24], atol=1.01)
    assert axes.get_ylim() == (60, 0)


@pytest.mark.parametrize("fill", [np.s_[:0], np.s_[:]])
def test_an_empty_mask_has_no_outline_and_a_full_one_the_edge(tmp_path: Path, fill: Any) -> None:
    found = sections((12, 10, 9), None, fill)
    red = reddish(stacks.save_preview(found, tmp_path / "a.png", "a.tif"))
    assert red.any() == (found.marked > 0)
