"""Recipes are defaults: given flags win; schedules with a planned end are not cut."""

from __future__ import annotations

import pytest

import train_basic_2dunet
import train_basic_3dunet
from utils.training.options import TrainingOptions
from utils.training.recipes import FAST, RECIPES, REFERENCE, describe_recipe, recipe_values

SCRIPTS = (train_basic_3dunet, train_basic_2dunet)


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
