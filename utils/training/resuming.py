"""Going on with a training that has ended or was killed: its flags, its state, and what may differ.

With --resume the flags of the run that goes on are the defaults; a flag that is given may differ
from them only where the trained network stays the same thing (:data:`MAY_CHANGE`).
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError

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


def recorded_flags(directory: Path, script: str) -> dict[str, Any]:
    """Return the flags of the run in ``directory``, as its ``config.json`` has them.

    Raises UserError where there is no such run, or ``script`` (a file name) is not its script.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
        flags, owner = config["flags"], config["script"]
    except FileNotFoundError:
        raise UserError(
            f"--resume: {path} does not exist, so there is no run to go on with; check "
            "--experiment_title and --log_path, or leave --resume out to begin one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--resume: {path} cannot be read ({error})") from error
    if owner != script:
        raise UserError(f"--resume: {directory} was made by {owner}; resume it with that script")
    return flags


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
    from utils.checkpoints.loading import load_checkpoint
    from utils.training.experiment import LAST

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
        from utils.simulation.volume import config_from_dict

        parts = [dict(part) for part in (value if isinstance(value, list) else [value])]
        shares = [(part.pop("preset", None), part.pop("share", 1)) for part in parts]
        return shares, [config_from_dict(part) for part in parts]
    if isinstance(value, Mapping):
        return {key: _comparable(v, key) for key, v in value.items() if key != "version"}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return value
