"""The table of flags, the scripts that choose from it, and recipes, over which given flags win."""

from __future__ import annotations

import pytest

import train_basic_2dunet
import train_basic_3dunet
from utils.training.flag_table import (
    CHOICES,
    FAST,
    HELP,
    RECIPES,
    REFERENCE,
    TYPES,
    describe_recipe,
    devices_number,
    make_parser,
    recipe_values,
)
from utils.training.options import TrainingOptions

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


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_value_of_a_recipe_is_a_flag_that_is_accepted(script: object, name: str) -> None:
    flags = script.parse_flags(["--recipe", name])
    assert {flag: vars(flags)[flag] for flag in RECIPES[name]} == RECIPES[name]
    assert recipe_values(flags) == RECIPES[name]
    TrainingOptions.from_flags(flags)
    plain = script.parse_flags([])
    others = set(vars(plain)) - set(RECIPES[name]) - {"recipe", "early_stopping_patience"}
    assert all(vars(plain)[flag] == vars(flags)[flag] for flag in others)
    assert recipe_values(plain) == {}


def test_given_flags_win_whatever_their_order() -> None:
    for arguments in (["--recipe", "fast", "--depth", "3"], ["--depth=3", "--recipe=fast"]):
        flags = train_basic_3dunet.parse_flags([*arguments, "--optimizer", "adam"])
        assert (flags.depth, flags.optimizer) == (3, "adam")
        assert flags.start_channels == FAST["start_channels"]
        assert set(recipe_values(flags)) == set(FAST) - {"depth", "optimizer"}
        line = describe_recipe(flags)
        assert line.startswith("fast: arch unet") and "overruled: " in line
        overruled = line.partition("overruled: ")[2]
        assert set(overruled.split(", ")) == {"depth", "optimizer"}


def test_the_reference_is_what_the_defaults_are_but_for_the_order() -> None:
    flags = train_basic_3dunet.parse_flags([])
    differing = {name for name, value in REFERENCE.items() if vars(flags)[name] != value}
    assert differing == {"no_shuffle"}
    assert "every flag as given" in describe_recipe(flags)


@pytest.mark.parametrize(
    ("arguments", "patience"),
    [
        ("", 15),
        ("--epochs 40", 15),
        ("--lr_schedule cosine", 100),
        ("--lr_schedule onecycle --epochs 40", 40),
        ("--lr_schedule onecycle --early_stopping_patience 15", 15),
        ("--recipe fast --epochs 7", 7),
        ("--recipe fast --lr_schedule plateau --epochs 7", 15),
    ],
)
def test_a_planned_end_is_not_cut_unless_patience_is_given(arguments: str, patience: int) -> None:
    assert train_basic_3dunet.parse_flags(arguments.split()).early_stopping_patience == patience


@pytest.mark.parametrize("arguments", ["--recipe slow", "--recipe", "--log_path"])
def test_mistakes_in_what_is_read_first(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_basic_3dunet.parse_flags(arguments.split())
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1 and arguments.split()[0] in error
