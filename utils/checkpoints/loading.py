"""Checkpoints read as plain data, and the networks that come with the program, known by name.

Those are ``assets/pretrained/NAME.pth`` and a card, ``NAME.md``. The file holds what prediction
needs and nothing else, as plain state that loads with ``weights_only=True``. Kernels are kept in
bfloat16 and become float32 when they are loaded; vectors (biases, scales and statistics of batch
norms) stay float32. Every number of a card comes from the records of the run: the checkpoint,
``config.json``, ``logs.json`` and an evaluation's ``summary.json``.
"""

import io
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.provenance import CHECKPOINT_FORMAT
from utils.replacing import make_folder, read_json, replacing

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "pretrained"  # names are looked up here
MOST_BYTES = 3_000_000  # a file must be smaller: it is part of every clone
KEPT = "format model_config normalizer spacing_voxels patch_size epoch metrics trust".split()
"""Entries of a checkpoint that go into the file as they are, beside its weights."""
FLAGS = ("objective", "augment")  # of the training, that prediction asks about
PLACES = ("log_path", "data_dir", "resume", "experiment_title")
"""Flags that say where something lies on one machine, not what was trained."""
SCORE_NAMES = {
    "iou": "IoU, whole volume",
    "iou_auto": "IoU at the threshold that predict.py chooses",
    "baseline_iou": "IoU of a mask of the whole sheet",
    "iou_gain": "the difference",
    "sheet_iou": "IoU inside the sheet",
    "sheet_auc": "AUC inside the sheet",
    "dice": "Dice, whole volume",
    "precision": "precision",
    "recall": "recall",
    "total_error": "share of wrong voxels",
    "hd95": "HD95 (voxels)",
    "surface_dice": "surface Dice",
    "recall_rendered": "recall in rendered columns",
    "recall_left_out": "recall in columns left out of the image",
    "covered_rendered": "rendered columns at least half covered",
    "covered_left_out": "left-out columns at least half covered",
    "recall_labelled": "recall in labelled columns",
    "covered_labelled": "labelled columns at least half covered",
}
"""The scores of ``summary.json`` that a card shows, in its order and words."""
PACKAGED = "checkpoint.pth"  # in a package of bioimage.io (``utils.checkpoints.packages``)


def pretrained_names(folder: Path = SHIPPED) -> list[str]:
    """Return the names that stand for a network, sorted."""
    return sorted(path.stem for path in folder.glob("*.pth"))


def find_pretrained(checkpoint: str | Path, folder: Path = SHIPPED) -> Path | None:
    """Return the file of the network called ``checkpoint``; None for a path and unknown names."""
    name = str(checkpoint)
    return folder / f"{name}.pth" if name in pretrained_names(folder) else None


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


def save_pretrained(
    name: str,
    state: Mapping[str, Any],
    log_directory: Path,
    evaluation: Path | None = None,
    *,
    folder: Path = SHIPPED,
    hardware: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write ``folder/name.pth`` and its card ``folder/name.md``; return both paths.

    ``state`` is a checkpoint, as ``load_checkpoint`` returns it, and ``log_directory`` that of its
    run. ``evaluation`` is a folder of ``evaluate.py``'s results, without which the card has no
    scores; ``hardware`` the machine in words, instead of what the log directory knows of it.

    Raises UserError for a name that is none or taken, records that are missing or damaged, an
    evaluation of another network, and a file that would not be smaller than :data:`MOST_BYTES`;
    nothing is written then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{name!r} is no name: letters, digits, _ and - make one")
    weights, card = folder / f"{name}.pth", folder / f"{name}.md"
    if weights.exists() and not overwrite:
        raise UserError(f"{weights} exists already; --overwrite replaces it and its card")
    packed = pack(state, torch.bfloat16)
    size = f"{len(packed):,} bytes"
    if len(packed) >= MOST_BYTES:
        allowed = f"less than {MOST_BYTES:,} are allowed; train a network of fewer channels"
        raise UserError(f"{name}: {size} in bfloat16, and {allowed}")
    use = (
        f"`python predict.py --checkpoint {name} --input STACK --output MASK` uses it. "
        f"{size}; kernels in bfloat16, computed with in float32 or bfloat16."
    )
    text = describe(name, use, state, log_directory, evaluation, hardware)
    make_folder(folder)
    for path, content in ((weights, packed), (card, text.encode())):
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return weights, card


def pack(state: Mapping[str, Any], kernels: torch.dtype) -> bytes:
    """Return a file with what prediction needs of a checkpoint, its kernels as ``kernels``."""
    weights = {
        name: tensor.to(kernels) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in state["model_state"].items()
    }
    kept = {name: state[name] for name in KEPT if name in state}
    kept["flags"] = {name: state.get("flags", {}).get(name) for name in FLAGS}
    packed = io.BytesIO()
    torch.save({**kept, "model_state": weights}, packed)
    return packed.getvalue()


CARD = """\
# {name}

{use}

## Network

{parameters:,} parameters. {network}. Input: one channel, percentiles {low:g} and {high:g} of the
whole stack mapped to 0 and 1; columns {spacing} voxels apart; windows of {patch_size}.

## Data

{data}

## Training

{training}

## Scores

{scores}

## Limits

- {seen}
- It knows columns about {mean_spacing:.1f} voxels apart; `--scale` brings a stack there.
- Columns that are left out of the image (2 of 11 in default volumes) are found only where their
  neighbours give them away.
"""


SIMULATED = """\
It has seen simulated volumes only. No labelled real stack was at hand, so nothing is known of its
  accuracy on one; near the sampling limit it sees columns in texture."""
LABELLED = """\
It has been trained on the labelled stacks above: nothing is known of its accuracy on stacks of
  other stains and microscopes."""


def describe(
    name: str,
    use: str,
    state: Mapping[str, Any],
    log_directory: Path,
    evaluation: Path | None = None,
    hardware: str | None = None,
) -> str:
    """Return a card as Markdown that begins with ``use``; else as :func:`save_pretrained`."""
    config, log = (read_json(log_directory / name) for name in ("config.json", "logs.json"))
    lengths, data = state["spacing_voxels"], config.get("data", {})
    labelled = '"annotated":' in json.dumps(data.get("train"))
    return CARD.format(
        name=name,
        use=use,
        parameters=config["parameters"],
        network=", ".join(f"{key} {value}" for key, value in state["model_config"].items()),
        low=state["normalizer"]["low_percent"],
        high=state["normalizer"]["high_percent"],
        spacing=" x ".join(f"{edge:.2f}" for edge in lengths),
        patch_size=state["patch_size"],
        data=_describe_data(data),
        training=_describe_training(state["epoch"], config, log, hardware),
        scores=_describe_scores(name, state, evaluation),
        seen=LABELLED if labelled else SIMULATED,
        mean_spacing=sum(lengths) / len(lengths),
    )


def _portable(value: Any) -> str:
    """Return a flag's value as words, paths from the root without their folders."""
    if isinstance(value, list):
        several = value and isinstance(value[0], str | list)
        return (" " if several else ",").join(map(_portable, value))
    parts = str(value).split("=")  # of a pair IMAGE=LABELS
    return "=".join(Path(part).name if part.startswith("/") else part for part in parts)


def _describe_data(data: Mapping[str, Any]) -> str:
    """List the files and streams of ``config.json``, a line each; of streams presets and shares."""
    lines = []
    for role, entries in data.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            stream = entry.get("on_the_fly", [])
            words = [f"{k} {_portable(value)}" for k, value in entry.items() if k != "on_the_fly"]
            for part in stream if isinstance(stream, list) else [stream]:
                shape = " x ".join(map(str, part["shape"]))
                name = part.get("preset", "wide" if "sheet" in part else "reference")
                share = f"share {part.get('share', 1):g}, {shape} voxels"
                words.append(f"volumes of preset {name} on the fly, {share}")
            lines.append(f"- {role}: " + ", ".join(words))
    return "\n".join(lines)


def _describe_training(
    best: int, config: Mapping[str, Any], log: Mapping[str, Any], hardware: str | None
) -> str:
    """Return how long it trained, from what, on what, and its command, a flag a line."""
    epochs, machine, compute = log["epochs"], config["machine"], config["compute"]
    hours = sum(record["seconds"] for record in epochs) / 3600
    until = sum(r["seconds"] for r in epochs if r["epoch"] <= best) / 3600
    where = hardware or f"{machine['cores']} cores, {machine['processor']}"
    versions = ", ".join(f"{library} {version}" for library, version in config["versions"].items())
    lines = [
        f"- epoch {best} of {len(epochs)} trained; {until:.1f} of {hours:.1f} hours; the run "
        f"ended: {log['exit']['reason']}",
        f"- hardware: {where}; {compute['device']}, {compute['precision']}",
        f"- versions: {versions}; program {config['git_revision']}",
    ]
    if ancestor := config.get("ancestor"):
        path, epoch = _portable(ancestor["checkpoint"]), ancestor["epoch"]
        lines.append(f"- began with {path}, epoch {epoch}, weights of SHA-256 {ancestor['sha256']}")
    words = [f"python {config['script']}"]
    for flag, value in config["flags"].items():
        if flag not in PLACES and value not in (None, "") and value is not False:  # 0 is a value
            words.append(f"--{flag}" if value is True else f"--{flag} {_portable(value)}")
    return "\n".join([*lines, "", "```bash", " \\\n    ".join(words), "```"])


def _describe_scores(name: str, state: Mapping[str, Any], evaluation: Path | None) -> str:
    """Return the table of scores; raises UserError unless they are those of this network."""
    if evaluation is None:
        return "Not evaluated yet."
    summary = read_json(evaluation / "summary.json")
    epoch, model = summary.get("epoch"), summary.get("model") or {}
    if epoch != state["epoch"] or not state["model_config"].items() <= model.items():
        other = f"is of another network (epoch {epoch}, {model})"
        own = f"the checkpoint's is of epoch {state['epoch']}, {state['model_config']}"
        raise UserError(f"{evaluation / 'summary.json'}: {other}; {own}")
    data, scored = summary["data"], Path(summary["checkpoint"])
    stored = str(scored) == name or scored.name == f"{name}.pth"
    which = "this file" if stored else "its checkpoint, before rounding to bfloat16"
    if "stacks" in data:
        what = f"labelled stacks (`{_portable(data['file'])}`)"
    else:
        shape = " x ".join(map(str, data["shape"]))
        what = f"whole volumes of {shape} voxels (`{Path(data['file']).name}`, seed {data['seed']})"
    lines = [
        f"Of {which}, on {len(data['volumes'])} {what}, windows of {summary['window']} with "
        f"overlap {summary['overlap']}. Means, with 95 % bootstrap intervals over volumes.",
        *("", "| score | mean | 95 % |", "| --- | --- | --- |"),
    ]
    for key, words in SCORE_NAMES.items():
        found = summary["scores"].get(key, {})
        numbers = [found.get(column) for column in ("mean", "low", "high")]
        if numbers[0] is not None:
            mean, low, high = ("-" if n is None else f"{n:.3f}" for n in numbers)
            lines.append(f"| {words} | {mean} | {low} to {high} |")
    return "\n".join(lines)
