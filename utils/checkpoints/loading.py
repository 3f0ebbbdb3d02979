"""Checkpoints read as plain data, by the path of a file or log directory, or a network's name."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.pretrained import find_pretrained, pretrained_names
from utils.errors import UserError
from utils.provenance import CHECKPOINT_FORMAT

PACKAGED = "checkpoint.pth"  # in a package of bioimage.io (``utils.checkpoints.packages``)


class CheckpointError(UserError):
    """A file that is no readable checkpoint of this project, named."""


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint as a plain dict on the CPU; code in the file is never run.

    ``path`` is a checkpoint file, a package of ours that holds one, a log directory (its
    ``best.pth``, else its ``last.pth``), or, where no such path exists, the name of a pretrained
    network (``assets/pretrained``).
    Keys: ``model_config``, ``model_state``, ``normalizer``, ``spacing_voxels``, ``patch_size``,
    ``epoch`` (epochs completed), ``metrics`` (the record of that epoch); ``last.pth`` also holds
    all that is needed to go on. Raises UserError where there is none, and CheckpointError for a
    foreign file.
    """
    path = Path(path)
    if not path.exists() and not find_pretrained(path):
        known = f"pretrained networks known by name: {', '.join(pretrained_names()) or 'none'}"
        raise UserError(f"the checkpoint {path} does not exist ({known})")
    path = path if path.exists() else find_pretrained(path)
    if path.is_dir():
        files = [path / "checkpoints" / name for name in ("best.pth", "last.pth")]
        if not any(map(Path.exists, files)):
            raise UserError(f"{path} holds no checkpoints/best.pth or checkpoints/last.pth")
        path = next(filter(Path.exists, files))
    state = _load_plain(path)
    if not isinstance(state, dict) or not isinstance(state.get("model_state"), dict):
        raise CheckpointError(f"{path} is not a checkpoint of this project")
    if state.get("format") != CHECKPOINT_FORMAT:
        found = f"checkpoint format {state.get('format')}"
        raise CheckpointError(f"{path} has {found}; this program reads {CHECKPOINT_FORMAT}")
    weights = state["model_state"].items()
    plain = {n: w.float() if w.dtype == torch.bfloat16 else w for n, w in weights}
    return {**state, "model_state": plain}


def _load_plain(path: Path) -> Any:
    """Return the plain data in a file, on the CPU; CheckpointError for whatever else it holds.

    Bytes that are damaged or foreign make torch's parsers raise nearly every kind of exception, and
    warn of pickles that it did not write.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source: Path | io.BytesIO = path
            if zipfile.is_zipfile(path):  # so are checkpoints, with other files in them
                with zipfile.ZipFile(path) as files:
                    if PACKAGED in files.namelist():
                        source = io.BytesIO(files.read(PACKAGED))
            return torch.load(source, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path}: may not be read ({error.strerror})") from error
    except MemoryError:
        raise
    except Exception as error:
        foreign = f"damaged, or of another program: packages of this one hold {PACKAGED}"
        raise CheckpointError(f"{path} is no readable checkpoint ({foreign})") from error


def log_directory(checkpoint: str | Path) -> Path:
    """Return where a checkpoint's records are, as a path that may not exist.

    That is a log directory itself, the one above ``checkpoints/``, else a file's own folder; of a
    pretrained network ``logs/NAME``.
    """
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if not path.exists() and find_pretrained(checkpoint):
        return Path("logs") / path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent
