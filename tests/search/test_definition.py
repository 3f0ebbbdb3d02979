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
    read_study_file,
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
    defaults = vars(script_parser(definition.script)([]))
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
    definition = read_study_file(write(GOOD), ["--seed", "7"])
    assert (definition.name, definition.sampler, definition.pruner) == ("study", "tpe", "median")
    assert definition.search == {
        "depth": [2, 3],
        "start_lr": {"low": 1e-4, "high": 1e-2, "log": True},
    }
    arguments = trial_arguments(definition, {"depth": 3, "start_lr": 0.002})
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
        ("sampler =", "smapler =", "unknown key smapler; there are question, script"),
        ('"tpe"', '"best"', 'sampler = "best": must be one of grid, tpe, random'),
        ("train_basic_3dunet.py", "evaluate.py", "must be one of train_basic_3dunet.py"),
        ("n_trials = 5", "n_trials = 0", "n_trials = 0: must be a whole number from 1 on"),
        ("n_trials = 5", "pruner = 5", "pruner = 5: must be one of none, median, hyperband"),
        ("epochs = 3", "epochs = 3.5", "toml: argument --epochs: invalid int value: '3.5'"),
        ("epochs = 3", "epohcs = 3", "unrecognized arguments: --epohcs=3"),
        ("epochs = 3", "depth = 3", "depth is tried: it cannot be fixed"),
        ("epochs = 3", 'log_path = "x"', "log_path: the search names the trials itself"),
        ("resblocks = true", "resblocks = 1", "argument --resblocks: ignored explicit argument"),
        ("epochs = 3", "epochs = true", "argument --epochs: expected one argument"),
        ("depth = [2, 3]", "dept = [2, 3]", "unrecognized arguments: --dept=2"),
        ("depth = [2, 3]", "depth = 2", "depth = 2: must be a list such as [3, 4]"),
        ("depth = [2, 3]", "depth = []", "depth = []: must be a list"),
        ("depth = [2, 3]", "depth = [2, 2.5]", "argument --depth: invalid int value: '2.5'"),
        ("depth = [2, 3]", 'loss_type = ["mse"]', "argument --loss_type: invalid choice: 'mse'"),
        ("low = 1e-4, ", "", "is no range: 'low'"),
        ("low = 1e-4", "low = 1", "low <= high"),
        ("low = 1e-4", "low = 0.0", "low > 0"),
        ("log = true", "log = true, stop = 1", "unexpected keyword argument 'stop'"),
        ("log = true", "log = true, step = 0.1", "`step` is not supported when `log` is true"),
        ('"tpe"', '"grid"', "a grid needs a list"),
        ("[search]", "[serach]", "unknown key serach"),
        ("[fixed]", "fixed = 3\n[more]", "unknown key more"),
        ("[fixed]", "fixed = 3\n[search.x]", "[fixed] and [search]"),
        ("n_trials = 5", "n_trials = ", "study.toml: Invalid value (at line 5"),
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
        (["--depth", "3"], "depth is tried"),
        (["--depth=3"], "depth is tried"),
        (["--experiment_title=x"], "the search names the trials itself"),
        (["--resume"], "resume: the search names the trials itself, and goes on"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),
        (["--epochs", "many"], "argument --epochs"),
    ],
)
def test_flags_of_the_command_line_that_do_not_suit(write, extra: list[str], said: str) -> None:
    path = write(GOOD)
    read_study_file(path, ["--epochs", "9", "--data_dir=elsewhere", "--no-tensorboard"])
    with pytest.raises(UserError) as caught:
        read_study_file(path, extra)
    assert said in str(caught.value)


def test_switches_are_given_only_where_they_differ() -> None:
    defaults = {"plain": False, "shown": True, "many": ["a"], "size": 3}
    assert as_flag("plain", False, defaults) == as_flag("shown", True, defaults) == []
    assert as_flag("plain", True, defaults) == ["--plain"]
    assert as_flag("shown", False, defaults) == ["--no-shown"]
    assert as_flag("many", ["b", "c"], defaults) == ["--many", "b", "c"]
    assert as_flag("size", -1, defaults) == ["--size=-1"]
