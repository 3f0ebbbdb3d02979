"""Files of pictures are whole or not at all; colours; slices of volumes and their brightness."""

from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.figures import canvas


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_text("old")

    class Failing:
        def savefig(self, temporary: Path, dpi: int) -> None:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(UserError, match="p.png: cannot be written .disk full"):
        canvas.save_figure(Failing(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_blue_ramp_grows_brighter() -> None:
    ramp = canvas.blue(np.linspace(0.0, 1.0, 50))
    assert np.all(np.diff(ramp.sum(axis=1)) > 0)
    assert not ramp[0].any()


def test_densest_slice_is_that_with_most_labels() -> None:
    mask = np.zeros((4, 4, 5), dtype=np.uint8)
    mask[:2, 0, 3], mask[0, 0, 1] = 1, 1
    assert canvas.densest_slice(mask) == 3


def test_display_scaling_goes_from_0_to_1_and_survives_a_constant() -> None:
    image = np.linspace(3.0, 9.0, 1000).reshape(10, 10, 10)
    scaled = canvas.scale_to_display(image)
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    assert not canvas.scale_to_display(np.full((3, 3), 7.0)).any()
