"""The command line: help, one-line mistakes, and what it writes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_and_time
from utils.figures import __main__ as command_line
from utils.stacks import StackLayout, write_stack


def test_help_is_quick() -> None:
    result, seconds = run_and_time([sys.executable, "-m", "utils.figures", "--help"])
    assert result.returncode == 0 and seconds < 2  # of which numpy takes most
    assert "demo" in result.stdout
    assert "matplotlib" not in result.stderr


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["samples", "--voxels", "0", "--directory", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_command_line_names_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "assets")
    assert (
        command_line.main(["samples", "--voxels", "32", "--count", "1", "--directory", folder]) == 0
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert Path(line).exists()


def test_samples_of_preset_wide_are_a_picture_of_their_own(tmp_path: Path) -> None:
    flags = ["samples", "--preset", "wide", "--voxels", "64", "--count", "1"]
    assert command_line.main([*flags, "--directory", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["samples_wide.png"]


def test_planes_of_a_stack_with_masks_of_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.arange(12 * 10 * 8, dtype=np.uint16).reshape(12, 10, 8)
    layout = StackLayout(image.shape, image.dtype, (0.5, 0.5, 2.0))
    write_stack(tmp_path / "a.tif", [image], layout)
    for name in ("m", "n"):
        mask = (image[2:, :6, 3:7] % 3 == 0).astype(np.uint8)
        write_stack(tmp_path / f"{name}.tif", [mask], StackLayout(mask.shape, mask.dtype))
    drawn = []
    monkeypatch.setattr(
        command_line.stacks,
        "save_overlays",
        lambda rows, path, **options: drawn.append((rows, options)) or path,
    )
    masks = [str(tmp_path / name) for name in ("m.tif", "n.tif")]
    flags = ["stack", "--input", str(tmp_path / "a.tif"), "--output", "p.png", "--mask", *masks]
    boxes = ["--crop", "3:7,:6,2:", "3:7,:6,2:"]
    assert command_line.main([*flags, *boxes, "--z", "4", "6"]) == 0
    (rows, options), *_ = drawn
    assert [[title for *_, title in row] for row in rows] == [
        ["m, z = 4", "m, z = 6"],
        ["n, z = 4", "n, z = 6"],
    ]
    np.testing.assert_array_equal(rows[1][1][0], image[2:, :6, 6])
    np.testing.assert_array_equal(rows[1][0][1], image[2:, :6, 4] % 3 == 0)
    assert options["spacing"] == pytest.approx((0.5, 0.5))
    capsys.readouterr()
    for wrong, message in (
        ([*boxes, "--z", "7"], "--z 7: not in the box"),
        (["--crop", "3:7,:6,2:", "--z", "4"], "1 boxes for 2 masks"),
        (["--z", "4"], "but its box has"),
    ):
        assert command_line.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err
