"""The table of flags and the scripts that choose from it."""

from __future__ import annotations

import pytest

import train_basic_2dunet
import train_basic_3dunet
from utils.training.flag_table import CHOICES, HELP, TYPES, devices_number, make_parser

SCRIPTS = (train_basic_3dunet, train_basic_2dunet)


def flags_of(script: object) -> dict[str, object]:
    return {name: value for topic in script.FLAGS.values() for name, value in topic.items()}


def test_each_entry_of_the_table_is_a_flag_of_a_script() -> None:
    flags = flags_of(train_basic_3dunet) | flags_of(train_basic_2dunet)
    assert set(HELP) == set(flags)
    assert set(CHOICES) | set(TYPES) <= set(flags)


def test_flags_of_both_scripts_have_the_same_default() -> None:
    first, second = map(flags_of, SCRIPTS)
    differing = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    assert differing == {"num_workers"}


def test_the_default_tells_how_a_flag_is_read() -> None:
    flags = {"one": {"resume": False, "tensorboard": True, "train_files": ["a", "b"]}}
    flags["two"] = {"depth": 4, "ema": 0.0, "log_path": "./logs", "optimizer": "adam"}
    flags["three"] = {"max_minutes": None, "patches_per_epoch": None, "MAX_PARAMS": 5}
    parser = make_parser("", flags)
    defaults = {name: value for topic in flags.values() for name, value in topic.items()}
    assert vars(parser.parse_args([])) == defaults
    given = "--resume --no-tensorboard --train_files c --depth 2 --ema 1 --log_path 3 --optimizer "
    given += "adamw --max_minutes 2 --patches_per_epoch 7 --MAX_PARAMS 3e6"
    assert list(vars(parser.parse_args(given.split())).values()) == [
        *(True, False, ["c"]),
        *(2, 1.0, "3", "adamw"),
        *(2.0, 7, 3_000_000),
    ]


@pytest.mark.parametrize(
    "flag", ["--depth 1.5", "--ema x", "--optimizer sgd", "--train_files", "--devices two"]
)
def test_what_cannot_be_read_is_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_basic_3dunet.parse_flags(flag.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and flag.split()[0] in error


def test_devices_flag() -> None:
    assert devices_number("auto") is None and devices_number("3") == 3
