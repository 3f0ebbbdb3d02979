"""Files of pictures are whole or not at all; colours."""

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
