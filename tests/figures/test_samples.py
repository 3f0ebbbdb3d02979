"""A still of simulated volumes."""

from pathlib import Path

from utils.figures import samples
from utils.simulation import SimulatedVolume


def test_samples_are_drawn(small_volume: SimulatedVolume, tmp_path: Path) -> None:
    assert (
        samples.save_samples_panel([small_volume] * 3, tmp_path / "s.png", list("abc"))
        .stat()
        .st_size
        > 10_000
    )
