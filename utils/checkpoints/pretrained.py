"""Networks that come with the program: ``assets/pretrained/NAME.pth`` and a card, ``NAME.md``.

The file holds what prediction needs and nothing else, as plain state that loads with
``weights_only=True``. Kernels are kept in bfloat16 and become float32 when they are loaded; vectors
(biases, scales and statistics of batch norms) stay float32. Every number of a card comes from the
records of the run: the checkpoint, ``config.json``, ``logs.json`` and an evaluation's
``summary.json``.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.replacing import make_folder, replacing

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "pretrained"
"""Where names are looked up."""
MOST_BYTES = 3_000_000
"""A file must be smaller: it is part of every clone."""
KEPT = (
    "format",
    "model_config",
    "normalizer",
    "spacing_voxels",
    "patch_size",
    "epoch",
    "metrics",
)
"""Entries of a checkpoint that go into the file as they are, beside flags, data and weights."""
PLACES = ("log_path", "data_dir", "resume", "experiment_title")
"""Flags that say where something lies on one machine, not what was trained."""
SCORE_NAMES = {
    "iou": "IoU, whole volume",
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
}
"""The scores of ``summary.json`` that a card shows, in its order and words."""
LIMITS = """\
- It has seen simulated volumes only. No labelled real stack was at hand, so nothing is known of its
  accuracy on one; near the sampling limit it sees columns in texture.
- It knows columns about {spacing:.1f} voxels apart; `--scale` brings a stack there.
- Columns that are left out of the image (2 of 11 in default volumes) are found only where their
  neighbours give them away."""


@dataclass(frozen=True)
class Records:
    """What a run left behind, plain JSON; ``evaluation`` is None as long as there is none."""

    config: Mapping[str, Any]
    log: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, log_directory: Path, evaluation: Path | None) -> Records:
        """Read a log directory and, if given, the folder or ``summary.json`` of an evaluation.

        Raises UserError that names the file which is missing or damaged.
        """
        if evaluation is not None and evaluation.is_dir():
            evaluation = evaluation / "summary.json"
        return cls(
            _read_json(log_directory / "config.json"),
            _read_json(log_directory / "logs.json"),
            None if evaluation is None else _read_json(evaluation),
        )


def pretrained_names(folder: Path = FOLDER) -> list[str]:
    """Return the names that stand for a network, sorted."""
    return sorted(path.stem for path in folder.glob("*.pth"))


def find_pretrained(checkpoint: str | Path, folder: Path = FOLDER) -> Path | None:
    """Return the file of the network called ``checkpoint``; None for a path and unknown names."""
    name = str(checkpoint)
    return folder / f"{name}.pth" if name in pretrained_names(folder) else None


def pack(state: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain state of the file of a network.

    Args:
        state: a checkpoint, as ``load_checkpoint`` returns it.
        data: what it was trained on, as in ``config.json``.
    """
    weights = {
        name: tensor.to(torch.bfloat16).contiguous() if _is_kernel(tensor) else tensor.contiguous()
        for name, tensor in state["model_state"].items()
    }
    flags = {k: _portable(v) for k, v in state.get("flags", {}).items() if k not in PLACES}
    kept = {name: state[name] for name in KEPT if name in state}
    return {**kept, "flags": flags, "data": _portable(data), "model_state": weights}


def unpack_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with all that is bfloat16 as float32."""
    return {
        name: tensor.float() if getattr(tensor, "dtype", None) == torch.bfloat16 else tensor
        for name, tensor in weights.items()
    }


def save_pretrained(
    name: str,
    state: Mapping[str, Any],
    records: Records,
    *,
    folder: Path = FOLDER,
    hardware: str | None = None,
    remark: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write ``folder/name.pth`` and its card ``folder/name.md``; return both paths.

    Args:
        name: letters, digits, ``_`` and ``-``.
        state: a checkpoint, as ``load_checkpoint`` returns it.
        records: of the same run.
        folder: made if it is not there.
        hardware: the machine in words, beyond what the records know.
        remark: a sentence for the card.
        overwrite: replace both files if they are there.

    Raises:
        UserError: for a name that is none or taken, an evaluation of another network, and a
            file that would not be smaller than :data:`MOST_BYTES`; nothing is written then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{name!r} is no name: letters, digits, _ and - make one")
    weights, card = folder / f"{name}.pth", folder / f"{name}.md"
    if weights.exists() and not overwrite:
        raise UserError(f"{weights} exists already; --overwrite replaces it and its card")
    if records.evaluation is not None:
        _check_evaluation(state, records.evaluation)
    packed = io.BytesIO()
    torch.save(pack(state, records.config.get("data", {})), packed)
    size = len(packed.getvalue())
    if size >= MOST_BYTES:
        raise UserError(
            f"{name}: {size:,} bytes in bfloat16, and less than {MOST_BYTES:,} are allowed; "
            "train a network of fewer channels"
        )
    text = describe(name, state, records, size, hardware=hardware, remark=remark)
    make_folder(folder)
    with replacing(weights) as temporary:
        temporary.write_bytes(packed.getvalue())
    with replacing(card) as temporary:
        temporary.write_text(text)
    return weights, card


def describe(
    name: str,
    state: Mapping[str, Any],
    records: Records,
    size: int,
    *,
    hardware: str | None = None,
    remark: str | None = None,
) -> str:
    """Return the card of a network, Markdown; ``size`` is its file's in bytes."""
    parts = [
        f"# {name}",
        f"`python predict.py --checkpoint {name} --input STACK --output MASK` uses it. "
        f"{size:,} bytes; kernels in bfloat16, computed with in float32 or bfloat16.",
        *([remark] if remark else []),
        "## Network",
        _describe_network(state, records),
        "## Data",
        _describe_data(records.config.get("data", {})),
        "## Training",
        _describe_training(state, records, hardware),
        "## Scores",
        _describe_scores(name, records.evaluation),
        "## Limits",
        LIMITS.format(spacing=sum(state["spacing_voxels"]) / len(state["spacing_voxels"])),
    ]
    return "\n\n".join(parts) + "\n"


def _is_kernel(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1


def _portable(value: Any) -> Any:
    """Return plain state in which paths from the root are their last part."""
    if isinstance(value, Mapping):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(entry) for entry in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; the card is made from it") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged or no JSON") from error


def _check_evaluation(state: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Raise UserError unless the evaluation speaks of this network."""
    try:
        model = {k: v for k, v in evaluation["model"].items() if k in state["model_config"]}
        epoch, _ = evaluation["epoch"], evaluation["scores"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("--evaluation: no summary.json of evaluate.py") from error
    if model != state["model_config"] or epoch != state["epoch"]:
        raise UserError(
            f"--evaluation: is of another network (epoch {epoch}, {model}); the checkpoint's is "
            f"of epoch {state['epoch']}, {state['model_config']}"
        )


def _describe_network(state: Mapping[str, Any], records: Records) -> str:
    config = ", ".join(f"{key} {value}" for key, value in state["model_config"].items())
    parameters = records.config.get("parameters")
    counted = f"{parameters:,} parameters. " if parameters else ""
    spacing = " x ".join(f"{edge:.2f}" for edge in state["spacing_voxels"])
    low, high = (state["normalizer"][key] for key in ("low_percent", "high_percent"))
    return _wrap(
        f"{counted}{config}. Input: one channel, percentiles {low:g} and {high:g} of the whole "
        f"stack mapped to 0 and 1; columns {spacing} voxels apart; windows of "
        f"{state['patch_size']}."
    )


def _describe_data(data: Mapping[str, Any]) -> str:
    """List what stood in ``config.json``, a line a file or stream."""
    lines = []
    for role, entries in _portable(data).items():
        for entry in entries if isinstance(entries, list) else [entries]:
            facts = entry.items() if isinstance(entry, Mapping) else [("", entry)]
            lines.append(f"- {role}: " + ", ".join(f"{k} {v}".strip() for k, v in facts))
    return "\n".join(lines) or "Not recorded."


def _describe_training(state: Mapping[str, Any], records: Records, hardware: str | None) -> str:
    config, epochs = records.config, records.log.get("epochs", [])
    hours = sum(record.get("seconds", 0.0) for record in epochs) / 3600
    until = sum(r.get("seconds", 0.0) for r in epochs if r["epoch"] <= state["epoch"]) / 3600
    compute, machine = config.get("compute", {}), config.get("machine", {})
    versions = ", ".join(f"{k} {v}" for k, v in config.get("versions", {}).items())
    where = hardware or f"{machine.get('cores')} cores, {machine.get('processor')}"
    facts = [
        f"- epoch {state['epoch']} of {len(epochs)} trained; {until:.1f} of {hours:.1f} hours; the "
        f"run ended: {records.log.get('exit', {}).get('reason')}",
        f"- hardware: {where}; {compute.get('device')}, {compute.get('precision')}",
        f"- versions: {versions}; program {config.get('git_revision')}",
    ]
    return "\n".join([*facts, "", "```bash", _command(config), "```"])


def _command(config: Mapping[str, Any]) -> str:
    """Return the command that trains such a network, with every flag that had a value."""
    words = [f"python {config.get('script', 'train_basic_3dunet.py')}"]
    for flag, value in config.get("flags", {}).items():
        if flag in PLACES or value is None or value is False or value == "":
            continue
        value = _portable(value)
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"--{flag}" if value is True else f"--{flag} {shown}")
    lines = textwrap.wrap(
        " ".join(word.replace(" ", "\0") for word in words),
        96,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\0", " ")


def _describe_scores(name: str, evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not evaluated yet."
    data, scored = evaluation.get("data", {}), str(evaluation.get("checkpoint"))
    stored = scored == name or Path(scored).name == f"{name}.pth"
    which = "this file" if stored else "its checkpoint, before rounding to bfloat16"
    shape = " x ".join(map(str, data.get("shape", ())))
    rows = [
        f"| {words} | {_number(score['mean'])} | {_number(score['low'])} to "
        f"{_number(score['high'])} |"
        for key, words in SCORE_NAMES.items()
        if (score := evaluation["scores"].get(key)) and score["mean"] is not None
    ]
    return "\n".join(
        [
            _wrap(
                f"Of {which}, on {len(data.get('volumes', ()))} whole volumes of {shape} voxels "
                f"(`{Path(str(data.get('file'))).name}`, seed {data.get('seed')}), windows of "
                f"{evaluation.get('window')} with overlap {evaluation.get('overlap')}. Means, with "
                "95 % bootstrap intervals over volumes."
            ),
            "",
            "| score | mean | 95 % |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
