"""The flag parser: whole numbers and one-line errors."""

from __future__ import annotations

import argparse

import pytest

from utils.flags import FlagParser, views_of, voxel_ranges, voxel_size, whole_number


def test_whole_numbers() -> None:
    assert [whole_number(text) for text in ("30000000", "30e6", "0", "-2")] == [
        30_000_000, 30_000_000, 0, -2,
    ]  # fmt: skip
    for text in ("1.5", "1e-3", "many"):
        with pytest.raises(ValueError):
            whole_number(text)


def test_voxel_ranges() -> None:
    assert voxel_ranges("20:40,:128,64:,:") == ((20, 40), (None, 128), (64, None), (None, None))
    for text in ("", "3", "1:2:3", "a:b", "1.5:2"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}'.*20:40,:128,64:"):
            voxel_ranges(text)


def test_voxel_size() -> None:
    assert voxel_size("1,0.5,.25") == (1.0, 0.5, 0.25)
    for text in ("", "a", "1,0,1", "1,nan,1", "1,,1"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}'.*such as 1,0.5,0.5"):
            voxel_size(text)


def test_views() -> None:
    found = [views_of(tta) for tta in (None, "flips", "flips,scales")]
    assert found == [(), ("flips",), ("flips", "scales")]


def test_parser_errors_are_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = FlagParser(prog="train.py")
    parser.add_argument("--depth", type=int, default=4, help="levels")
    parser.add_argument("--crops", type=int, default=None, help="all when not given")
    parser.add_argument("--blocks", action="store_true", help="a switch")
    for bad in (["--depth", "x"], ["--dep", "3"], ["--width", "3"]):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(bad)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("train.py: ") and error.count("\n") == 1
        assert bad[0] in error
    assert "levels (default: 4)" in parser.format_help()
    assert "None" not in parser.format_help() and "False" not in parser.format_help()
