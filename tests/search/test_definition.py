"""Study files: those that are shipped are right, and what is wrong with others is said."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.search.definition import (
    ROOT,
    as_flag,
    check_extra,
    read_study_file,
    script_defaults,
    script_parser,
    trial_arguments,
)

SHIPPED = sorted((ROOT / "experiments").glob("*.toml"))
GOOD = """
question = "Why?"
script = "train_basic_3dunet.py"
sampler = "tpe"
n_trials = 5
[fixed]
epochs = 3
resblocks = true
tensorboard = false
train_files = ["a.h5", "b.h5"]
[search]
depth = [2, 3]
start_lr = { low = 1e-4, high = 1e-2, log = true }
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(text)
        return path

    return write


def test_the_studies_of_the_reference_are_shipped() -> None:
    names = {path.stem for path in SHIPPED}
    assert names == {
        *("depth_channels", "stacks", "kernel_loss", "residual_blocks", "boundary_weight"),
        *("search", "seeds"),
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_suits_its_script(path: Path) -> None:
    definition = read_study_file(path)
    defaults = script_defaults(definition.script)
    assert definition.question.endswith("?")
    assert path.read_text().startswith("# ")
    ends = [
        [wanted["low"], wanted["high"]] if isinstance(wanted, dict) else wanted
        for wanted in definition.search.values()
    ]
    for values in itertools.islice(itertools.product(*ends), 50):
        point = dict(zip(definition.search, values, strict=True))
        flags = vars(script_parser(definition.script)(trial_arguments(definition, point)))
        for name, value in {**definition.fixed, **point}.items():
            assert name in defaults
            assert flags[name] == value, name


def test_fields_and_arguments(write) -> None:
    definition = read_study_file(write(GOOD))
    assert (definition.name, definition.sampler, definition.pruner) == ("study", "tpe", "median")
    assert definition.search == {
        "depth": [2, 3],
        "start_lr": {"low": 1e-4, "high": 1e-2, "log": True},
    }
    arguments = trial_arguments(definition, {"depth": 3, "start_lr": 0.002}, ["--seed", "7"])
    flags = script_parser(definition.script)(arguments)
    assert (flags.depth, flags.start_lr, flags.seed, flags.epochs) == (3, 0.002, 7, 3)
    assert flags.resblocks and not flags.tensorboard and flags.train_files == ["a.h5", "b.h5"]
    assert json.loads(json.dumps(definition.plain())) == definition.plain()
    assert definition.size() == math.inf


def test_a_grid_has_every_combination(write) -> None:
    text = 'sampler = "grid"\n[search]\ndepth = [2, 3]\nseed = [0, 1, 2]\n'
    definition = read_study_file(write(text))
    assert definition.size() == 6 and definition.pruner == "none"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sampler =", "smapler =", "unknown key smapler; did you mean sampler?"),
        ('"tpe"', '"best"', 'sampler = "best": must be one of grid, tpe, random'),
        ("train_basic_3dunet.py", "evaluate.py", "must be one of train_basic_3dunet.py"),
        ("n_trials = 5", "n_trials = 0", "n_trials = 0: must be a whole number from 1 on"),
        ("n_trials = 5", "pruner = 5", "pruner = 5: must be one of none, median, hyperband"),
        ("epochs = 3", "epochs = 3.5", "[fixed] argument --epochs: invalid int value: '3.5'"),
        ("epochs = 3", "epochs = 0", "[fixed] --epochs 0: must be at least 1"),
        ("epochs = 3", "epohcs = 3", "no flag --epohcs; did you mean epochs?"),
        ("epochs = 3", "depth = 3", "depth stands in [fixed] and in [search]"),
        ("epochs = 3", 'log_path = "x"', "[fixed] log_path: the search names the trials itself"),
        ("resblocks = true", "resblocks = 1", "[fixed] resblocks = 1: must be true or false"),
        ("epochs = 3", "epochs = true", "[fixed] epochs = true: must be a number or text"),
        ("depth = [2, 3]", "dept = [2, 3]", "[search] dept: train_basic_3dunet.py has no flag"),
        ("depth = [2, 3]", "depth = 2", "[search] depth = 2: must be a list such as [3, 4]"),
        ("depth = [2, 3]", "depth = []", "[search] depth = []: must be a list"),
        ("depth = [2, 3]", "depth = [2, 2]", "a value stands twice"),
        ("depth = [2, 3]", "depth = [[2]]", "must hold numbers, text, true and false only"),
        ("depth = [2, 3]", "depth = [2, 0]", "[search] depth = 0: --depth 0: must lie in 1..16"),
        ("depth = [2, 3]", 'loss_type = ["mse"]', '[search] loss_type = "mse": argument'),
        ("low = 1e-4, ", "", "a range has low and high"),
        ("low = 1e-4", "low = 1", "low <= high"),
        ("low = 1e-4", "low = 0.0", "low > 0"),
        ("low = 1e-4", "lo = 1e-4", "a range has low and high"),
        ("low = 1e-4", "low = true", "low must be a number"),
        ("low = 1e-4", "low = nan", "--start_lr nan: must be larger than 0"),
        ("log = true", "log = true, step = 0.1", "`step` is not supported when `log` is true"),
        ("depth = [2, 3]", "depth = { low = 1, high = 4, step = 0.5 }", "step must be whole"),
        ('"tpe"', '"grid"', "a grid needs a list"),
        ("[search]", "[serach]", "unknown key serach; did you mean search?"),
        ("[fixed]", "fixed = 3\n[more]", "unknown key more"),
        ("n_trials = 5", "n_trials = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(write, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as caught:
        read_study_file(write(GOOD.replace(old, new)))
    message = str(caught.value)
    assert said in message and "study.toml" in message and "\n" not in message


def test_a_study_without_anything_to_try(write) -> None:
    with pytest.raises(UserError, match="search. is missing or empty"):
        read_study_file(write(GOOD.partition("[search]")[0]))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--depth", "3"], "--depth after --: the study tries it"),
        (["--depth=3"], "--depth after --: the study tries it"),
        (["--experiment_title=x"], "the search names the trials itself"),
        (["--resume"], "a trial begins anew"),
        (["--epoch", "3"], "flags after --: unrecognized arguments"),
        (["--epochs", "many"], "flags after --: argument --epochs"),
    ],
)
def test_flags_of_the_command_line_that_do_not_suit(write, extra: list[str], said: str) -> None:
    definition = read_study_file(write(GOOD))
    check_extra(definition, ["--epochs", "9", "--data_dir=elsewhere", "--no-tensorboard"])
    with pytest.raises(UserError) as caught:
        check_extra(definition, extra)
    assert said in str(caught.value)


def test_switches_are_given_only_where_they_differ() -> None:
    defaults = {"plain": False, "shown": True, "many": ["a"], "size": 3}
    assert as_flag("plain", False, defaults) == as_flag("shown", True, defaults) == []
    assert as_flag("plain", True, defaults) == ["--plain"]
    assert as_flag("shown", False, defaults) == ["--no-shown"]
    assert as_flag("many", ["b", "c"], defaults) == ["--many", "b", "c"]
    assert as_flag("size", -1, defaults) == ["--size=-1"]
