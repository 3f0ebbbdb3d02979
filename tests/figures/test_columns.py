"""Pictures of single columns, checked on what is drawn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.columns.test_instances import STEPS, rods
from utils.columns.finding import FoundColumns, Landmarks, columns_of
from utils.columns.table import MAPPED, check_colour
from utils.errors import UserError
from utils.figures import canvas, columns
from utils.prediction.sections import middle_of


@pytest.fixture(scope="module")
def found() -> FoundColumns:
    """Rods 5 x 5, nearly square, of which the middle one is missing."""
    height, _ = rods()
    height[20:29, 20:29] = 0
    return columns_of(height, STEPS, landmarks=Landmarks(dorsal=(0.0, 1.0, 0.0)))


def stack_of(volume: np.ndarray, origin: tuple[int, ...] = (0, 0, 0)) -> Any:
    """Return what of a stack the pictures ask for."""
    return SimpleNamespace(origin=origin, read=lambda start, stop: volume[..., start:stop])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures in the order in which they are written."""
    kept: list[Any] = []
    save = canvas.save_figure

    def keep(figure: Any, path: Path, **options: Any) -> Path:
        kept.append(figure)
        return save(figure, path, **options)

    monkeypatch.setattr(canvas, "save_figure", keep)
    return kept


def test_the_map_has_a_full_cell_a_column_and_a_hollow_one_for_the_missing(
    tmp_path: Path, figures: list[Any], found: FoundColumns
) -> None:
    columns.save_lattice_map(found, tmp_path / "a.png", "a.tif")
    axes = figures[0].axes[0]
    full, hollow = axes.collections
    assert len(full.get_paths()) == 24 and len(hollow.get_paths()) == 1
    assert len(hollow.get_facecolor()) == 0
    np.testing.assert_allclose(np.sort(full.get_array()), np.sort(found.measured.length))
    centres = np.array([path.vertices[:6].mean(axis=0) for path in full.get_paths()])
    near = np.linalg.norm(centres - hollow.get_paths()[0].vertices[:6].mean(axis=0), axis=1)
    assert (np.abs(near - 1) < 1e-6).sum() == 6, "six hexagons lie about the one that is missing"
    words = {text.get_text() for text in axes.texts}
    assert {"0,0", "y"} <= words
    title = figures[0].get_suptitle()
    assert "dorsal (p + q) upwards" in title and "free: origin, hemisphere" in title
    assert "votes" in axes.get_title() and "1 inferred" in axes.get_title()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("diameter", "diameter (voxels)"),
        ("lattice_residual", "lattice residual (steps)"),
        ("peak_3", "peak of channel 3 (grey values)"),
        (None, "mean of channel 3 (grey values)"),
    ],
)
def test_the_map_is_coloured_by_any_field(
    tmp_path: Path, figures: list[Any], found: FoundColumns, field: str | None, words: str
) -> None:
    known = {"mean_3": np.arange(24.0), "peak_3": np.arange(24.0) ** 2}
    measured = replace(found.measured, channels=found.measured.channels | known)
    columns.save_lattice_map(replace(found, measured=measured), tmp_path / "a.png", "a", field)
    values = measured.values(found.steps, found.lattice)
    assert {*values} == {*MAPPED, *known}
    shown = figures[0].axes[0].collections[0].get_array()
    np.testing.assert_allclose(shown, values[field or "mean_3"])
    assert figures[0].axes[-1].get_ylabel() == words
    check_colour(field, [3])
    with pytest.raises(UserError, match="--colour mean_4"):
        check_colour("mean_4", [3])


def test_a_cell_has_another_colour_than_its_neighbours(found: FoundColumns) -> None:
    colours = columns.column_colours(found)
    pairs = found.lattice.pairs[found.lattice.cut == 0]
    assert len(pairs) > 30 and (colours[pairs[:, 0]] != colours[pairs[:, 1]]).any(axis=1).all()


def test_the_map_is_seen_from_where_the_axes_point(found: FoundColumns) -> None:
    to_map = columns._to_map(found, 1)
    own = found.lattice.patch == 1
    hand = np.cross(found.lattice.steps[own][:, :, 0], found.lattice.steps[own][:, :, 1])
    away = np.sign((hand * found.measured.axis[own]).sum())
    assert np.sign(np.linalg.det(to_map)) == away
    np.testing.assert_allclose(to_map @ [1, 1], [0, 1], atol=1e-12)


def test_planes_show_outlines_labels_and_a_view(
    tmp_path: Path, figures: list[Any], found: FoundColumns
) -> None:
    middle, _ = middle_of([found.labels], found.labels.shape)
    stack = stack_of(np.zeros(found.labels.shape, np.float32), origin=(0, 0, 100))
    path = columns.save_planes(found, stack, tmp_path / "a.png", "a.tif")
    across_z, view = figures[0].axes[0], figures[0].axes[3]
    assert across_z.get_title() == f"z = {100 + middle[2]}"
    over = across_z.images[1].get_array()
    drawn = np.unique(over[over[..., 3] > 0][:, :3], axis=0)
    np.testing.assert_allclose(drawn, np.unique(columns.column_colours(found), axis=0), atol=1e-6)
    texts = [text for text in across_z.texts if "," in text.get_text()]
    assert len(texts) == 24
    for text in texts:
        x, y = text.get_position()
        label = found.labels[int(x), int(y), middle[2]]
        assert label and text.get_text() == "{},{}".format(*found.lattice.pq[label - 1])
    assert len(view.collections[0].get_segments()) == 2 * 24
    with Image.open(path) as picture:
        assert min(picture.size) > 500


@pytest.mark.parametrize("columns_left", [0, 1, 3])
def test_pictures_without_a_lattice_say_so(
    tmp_path: Path, figures: list[Any], columns_left: int
) -> None:
    volume = np.zeros((12, 10, 9), np.uint8)
    for k in range(columns_left):
        volume[4 * k + 1, 4:6, 2:7] = 1
    found = columns_of(volume, STEPS)
    columns.save_planes(found, stack_of(volume), tmp_path / "p.png", "a")
    columns.save_lattice_map(found, tmp_path / "m.png", "a")
    assert f"{columns_left} columns" in figures[0].get_suptitle()
    assert "no lattice" in figures[1].get_suptitle()
