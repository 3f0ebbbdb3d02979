"""Stills of simulated volumes: what is cut, and that each column type is seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from utils.figures import samples
from utils.simulation import SimulatedVolume


def test_column_types_cut_through_the_axis(small_volume: SimulatedVolume, tmp_path: Path) -> None:
    assert samples.save_column_types(small_volume, tmp_path / "types.png").stat().st_size > 10_000
    lacking = replace(small_volume, column_type=np.ones_like(small_volume.column_type))
    with pytest.raises(ValueError, match="clumped"):
        samples.save_column_types(lacking, tmp_path / "none.png")


def test_plane_samples_the_volume_where_it_says() -> None:
    x, y, z = np.meshgrid(*(np.arange(n) + 0.5 for n in (10, 12, 14)), indexing="ij")
    directions = (np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    origin = np.array([0.5, 0.5, 0.5])
    cut = samples._plane(y + 100 * z + 0 * x, origin, directions, (-2.0, 2.0, -3.0, 3.0))
    u, v = np.arange(-2, 2, 0.25) + 0.125, np.arange(-3, 3, 0.25) + 0.125
    assert np.allclose(cut, (6 + u)[:, None] + 100 * (7 + v), rtol=1e-6)


def test_samples_are_drawn(small_volume: SimulatedVolume, tmp_path: Path) -> None:
    assert (
        samples.save_samples_panel([small_volume] * 3, tmp_path / "s.png", list("abc"))
        .stat()
        .st_size
        > 10_000
    )
