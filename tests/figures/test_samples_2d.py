"""The panel of 2D samples; the picture of one is tested with its data set."""

from pathlib import Path

import numpy as np
from PIL import Image

from utils.figures.__main__ import main


def test_the_panel_is_made_by_a_command(tmp_path: Path) -> None:
    assert main(["samples-2d", "--count", "5", "--directory", str(tmp_path)]) == 0
    with Image.open(tmp_path / "samples_2d.png") as picture:
        wide, high = picture.size
        assert wide > 800 and len(np.unique(np.asarray(picture))) > 100
    main(["samples-2d", "--count", "1", "--directory", str(tmp_path)])
    with Image.open(tmp_path / "samples_2d.png") as picture:
        assert picture.size[1] < high
