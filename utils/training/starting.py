"""Trainings that do not begin from nothing: from another network (--init), or where one stopped.

With --resume the flags of the run that goes on are the defaults; a flag that is given may differ
from them only where the trained network stays the same thing (:data:`MAY_CHANGE`).
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from utils.checkpoints.loading import load_checkpoint
from utils.errors import UserError
from utils.prediction.trained_network import TrainedNetwork, read_network
from utils.replacing import read_json
from utils.simulation.volume import config_from_dict
from utils.training.experiment import LAST
from utils.training.options import NETWORK_FLAGS

RATE = 1 / 3  # of the default rate: weights that are good already are left by large steps
EPOCHS = 30  # default of --epochs: a shorter plan than from nothing
MAY_CHANGE = frozenset(
    "resume experiment_title log_path checkpoint_policy tensorboard "
    "epochs max_minutes early_stopping_patience "
    "data_dir train_files val_files train_file validation_file test_file overwrite "
    "num_workers device devices num_nodes precision compile deterministic "
    "MIN_PARAMS MAX_PARAMS".split()
)
"""Flags that a resumed run may have otherwise: where it runs, how long, and where its files lie.

Data files may have moved, but must be the same by name, seed and number of samples. Another
--precision, --device or --compile goes on with the same float32 weights, not to the same bits.
"""


def ancestor_defaults(init: str, start_lr: float) -> dict[str, Any]:
    """Return the defaults of flags for a training from ``init``, whose own rate is ``start_lr``.

    Raises UserError where no network is found.
    """
    config = read_network(init).config
    network = {flag: config[field] for field, flag in NETWORK_FLAGS.items() if field in config}
    return {**network, "start_lr": RATE * start_lr, "epochs": EPOCHS}


def check_network_flags(flags: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Raise UserError for a flag of the network that was given otherwise than the ancestor's."""
    differences = [
        f"--{flag} is {getattr(flags, flag)}, and {defaults[flag]} there"
        for flag in NETWORK_FLAGS.values()
        if flag in defaults and getattr(flags, flag) != defaults[flag]
    ]
    if differences:
        raise UserError(
            f"--init {flags.init}: the network is that one's: {'; '.join(differences)}. Leave "
            "these flags out"
        )


def known_network(flags: argparse.Namespace, directory: Path) -> TrainedNetwork | None:
    """Return the network that a training with --init begins with, or is resumed with.

    The ancestor may be gone when a run in ``directory`` goes on.
    """
    last = directory / "checkpoints" / LAST
    begun = flags.resume and last.exists()
    return read_network(last if begun else flags.init) if flags.init else None


def inherit(model: nn.Module, init: str, dims: int) -> TrainedNetwork:
    """Give ``model``, of ``dims`` axes, the weights of ``init``; return that network.

    Raises UserError unless it is of the same configuration.
    """
    network = read_network(init)
    theirs = network.config.get("spatial_dims")
    if theirs != dims:
        raise UserError(
            f"--init {init}: is a {theirs}D network, and this script trains {dims}D ones"
        )
    network.restore(model, "cpu", dims).train()
    return network


def recorded_flags(directory: Path, script: str) -> dict[str, Any]:
    """Return the flags of the run in ``directory``, as its ``config.json`` has them.

    Raises UserError where there is no such run, or ``script`` (a file name) is not its script.
    """
    path = directory / "config.json"
    if not path.exists():
        raise UserError(
            f"--resume: {path} does not exist, so there is no run to go on with; check "
            "--experiment_title and --log_path, or leave --resume out to begin one"
        )
    config = read_json(path)
    owner = config.get("script") if "flags" in config else "another program"
    if owner != script:
        raise UserError(f"--resume: {directory} was made by {owner}; resume it with that script")
    return config["flags"]


def check_unchanged(
    flags: argparse.Namespace, recorded: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Raise UserError that names each flag that must not differ from the ``recorded`` ones.

    A flag that the run did not know yet had its value of ``defaults``.
    """
    given = json.loads(json.dumps(vars(flags)))  # tuples are lists in the record
    differences = [
        f"--{name}: was {recorded.get(name, defaults.get(name))}, is {value}"
        for name, value in given.items()
        if name not in MAY_CHANGE and value != recorded.get(name, defaults.get(name))
    ]
    if differences:
        raise UserError(
            f"--resume goes on with the same network, data, loss and optimiser; "
            f"{'; '.join(differences)}. Leave these flags out, or begin a new experiment"
        )


def check_data(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise UserError unless both descriptions of the data agree but for the files' folders."""
    if _comparable(recorded) != _comparable(found):
        raise UserError(
            f"--resume: the data differ (files, seeds or samples): was {json.dumps(recorded)}, "
            f"is {json.dumps(found)}"
        )


def find_resumption(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the last checkpoint of a run, None where it has saved none yet, and words on it.

    Raises CheckpointError where it cannot be read.
    """
    path = directory / "checkpoints" / LAST
    if not path.exists():
        return None, "starts from the beginning: the run has not saved a checkpoint yet"
    state = load_checkpoint(path)
    return state, f"goes on after epoch {state['epoch']} from {path}"


def _comparable(value: Any, name: str = "") -> Any:
    """Return the entry ``name`` of a description as it is compared.

    Without versions and folders, and with what an older record does not know of volumes on the fly
    at its default.
    """
    if name == "file" and value:
        return Path(value).name
    if name == "on_the_fly":
        parts = [dict(part) for part in (value if isinstance(value, list) else [value])]
        shares = [(part.pop("preset", None), part.pop("share", 1)) for part in parts]
        return shares, [config_from_dict(part) for part in parts]
    if isinstance(value, Mapping):
        return {key: _comparable(v, key) for key, v in value.items() if key != "version"}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return value
