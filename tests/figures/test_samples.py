"""Stills of simulated volumes, and of images; the picture of one is tested with its data set."""

from pathlib import Path

import numpy as np
from PIL import Image

from utils.figures import samples
from utils.figures.__main__ import main
from utils.simulation import SimulatedVolume


def test_samples_are_drawn(small_volume: SimulatedVolume, tmp_path: Path) -> None:
    assert (
        samples.save_samples_panel([small_volume] * 3, tmp_path / "s.png", list("abc"))
        .stat()
        .st_size
        > 10_000
    )


def test_the_panel_is_made_by_a_command(tmp_path: Path) -> None:
    assert main(["samples-2d", "--count", "5", "--directory", str(tmp_path)]) == 0
    with Image.open(tmp_path / "samples_2d.png") as picture:
        wide, high = picture.size
        assert wide > 800 and len(np.unique(np.asarray(picture))) > 100
    main(["samples-2d", "--count", "1", "--directory", str(tmp_path)])
    with Image.open(tmp_path / "samples_2d.png") as picture:
        assert picture.size[1] < high
