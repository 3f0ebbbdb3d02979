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
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, disk_errors
from utils.replacing import make_folder, replacing

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "pretrained"
"""Where names are looked up."""
MOST_BYTES = 3_000_000
"""A file must be smaller: it is part of every clone."""
KEPT = (
    *("format", "model_config", "normalizer", "spacing_voxels", "patch_size", "epoch", "metrics"),
    "trust",
)
"""Entries of a checkpoint that go into the file as they are, beside its weights and objective."""
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


def pretrained_names(folder: Path = FOLDER) -> list[str]:
    """Return the names that stand for a network, sorted."""
    return sorted(path.stem for path in folder.glob("*.pth"))


def find_pretrained(checkpoint: str | Path, folder: Path = FOLDER) -> Path | None:
    """Return the file of the network called ``checkpoint``; None for a path and unknown names."""
    name = str(checkpoint)
    return folder / f"{name}.pth" if name in pretrained_names(folder) else None


def unpack_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with all that is bfloat16 as float32."""
    return {
        name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        for name, tensor in weights.items()
    }


def save_pretrained(
    name: str,
    state: Mapping[str, Any],
    log_directory: Path,
    evaluation: Path | None = None,
    *,
    folder: Path = FOLDER,
    hardware: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write ``folder/name.pth`` and its card ``folder/name.md``; return both paths.

    Args:
        name: letters, digits, ``_`` and ``-``.
        state: a checkpoint, as ``load_checkpoint`` returns it.
        log_directory: of the run that left the checkpoint.
        evaluation: folder of ``evaluate.py``'s results; without it the card has no scores.
        folder: made if it is not there.
        hardware: the machine in words, instead of what the log directory knows of it.
        overwrite: replace both files if they are there.

    Raises:
        UserError: for a name that is none or taken, records that are missing or damaged, an
            evaluation of another network, and a file that would not be smaller than
            :data:`MOST_BYTES`; nothing is written then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{name!r} is no name: letters, digits, _ and - make one")
    weights, card = folder / f"{name}.pth", folder / f"{name}.md"
    if weights.exists() and not overwrite:
        raise UserError(f"{weights} exists already; --overwrite replaces it and its card")
    packed = pack(state, torch.bfloat16)
    size = len(packed)
    if size >= MOST_BYTES:
        raise UserError(
            f"{name}: {size:,} bytes in bfloat16, and less than {MOST_BYTES:,} are allowed; "
            "train a network of fewer channels"
        )
    use = (
        f"`python predict.py --checkpoint {name} --input STACK --output MASK` uses it. "
        f"{size:,} bytes; kernels in bfloat16, computed with in float32 or bfloat16."
    )
    text = describe(name, use, state, log_directory, evaluation, hardware)
    make_folder(folder)
    with replacing(weights) as temporary:
        temporary.write_bytes(packed)
    with replacing(card) as temporary:
        temporary.write_text(text)
    return weights, card


def describe(
    name: str,
    use: str,
    state: Mapping[str, Any],
    log_directory: Path,
    evaluation: Path | None = None,
    hardware: str | None = None,
) -> str:
    """Return the card of a network as Markdown; ``use`` is its first paragraph.

    The other arguments, and the UserErrors, are those of :func:`save_pretrained`.
    """
    config = _read_json(log_directory / "config.json")
    log = _read_json(log_directory / "logs.json")
    spacing = sum(state["spacing_voxels"]) / len(state["spacing_voxels"])
    parts = [
        f"# {name}",
        use,
        "## Network",
        _describe_network(state, config),
        "## Data",
        _describe_data(config.get("data", {})),
        "## Training",
        _describe_training(state, config, log, hardware),
        "## Scores",
        _describe_scores(name, state, evaluation),
        "## Limits",
        LIMITS.format(spacing=spacing),
    ]
    return "\n\n".join(parts) + "\n"


def pack(state: Mapping[str, Any], kernels: torch.dtype) -> bytes:
    """Return a file with what prediction needs of a checkpoint, its kernels as ``kernels``."""
    weights = {
        name: tensor.to(kernels) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in state["model_state"].items()
    }
    flags = {"objective": state.get("flags", {}).get("objective")}
    kept = {name: state[name] for name in KEPT if name in state}
    packed = io.BytesIO()
    torch.save({**kept, "flags": flags, "model_state": weights}, packed)
    return packed.getvalue()


def _read_json(path: Path) -> Any:
    try:
        with disk_errors(path):
            content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no record of ours") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged or no record of ours")
    return content


def _portable(value: Any) -> str:
    """Return a flag's value as words, paths from the root without their folders."""
    if isinstance(value, list):
        return " ".join(map(_portable, value))
    parts = str(value).split("=")  # of a pair IMAGE=LABELS
    return "=".join(Path(part).name if part.startswith("/") else part for part in parts)


def _describe_network(state: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    architecture = ", ".join(f"{key} {value}" for key, value in state["model_config"].items())
    spacing = " x ".join(f"{edge:.2f}" for edge in state["spacing_voxels"])
    low, high = state["normalizer"]["low_percent"], state["normalizer"]["high_percent"]
    return _wrap(
        f"{config['parameters']:,} parameters. {architecture}. Input: one channel, percentiles "
        f"{low:g} and {high:g} of the whole stack mapped to 0 and 1; columns {spacing} voxels "
        f"apart; windows of {state['patch_size']}."
    )


STREAM = "on_the_fly"
"""The key of a mixture of presets, whose every parameter stands in ``config.json``."""


def _describe_data(data: Mapping[str, Any]) -> str:
    """List what stands in ``config.json``, a line a file or stream."""
    lines = []
    for role, entries in data.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            words = [f"{key} {_portable(value)}" for key, value in entry.items() if key != STREAM]
            parts = entry.get(STREAM, [])
            for part in parts if isinstance(parts, list) else [parts]:
                shape = " x ".join(map(str, part["shape"]))
                name = part.get("preset", "wide" if "sheet" in part else "reference")
                words.append(f"volumes of preset {name} on the fly, share {part.get('share', 1):g}")
                words[-1] += f", {shape} voxels"
            lines.append(f"- {role}: " + ", ".join(words))
    return "\n".join(lines)


def _describe_training(
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    log: Mapping[str, Any],
    hardware: str | None,
) -> str:
    epochs = log["epochs"]
    hours = sum(record["seconds"] for record in epochs) / 3600
    until = sum(r["seconds"] for r in epochs if r["epoch"] <= state["epoch"]) / 3600
    compute, machine = config["compute"], config["machine"]
    versions = ", ".join(f"{library} {version}" for library, version in config["versions"].items())
    where = hardware or f"{machine['cores']} cores, {machine['processor']}"
    words = [f"python {config['script']}"]
    for flag, value in config["flags"].items():
        if flag not in PLACES and value is not None and value is not False and value != "":
            words.append(f"--{flag}" if value is True else f"--{flag} {_portable(value)}")
    command = textwrap.wrap(
        " ".join(words),
        96,
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    lines = [
        f"- epoch {state['epoch']} of {len(epochs)} trained; {until:.1f} of {hours:.1f} hours; the "
        f"run ended: {log['exit']['reason']}",
        *_describe_ancestor(config.get("ancestor")),
        f"- hardware: {where}; {compute['device']}, {compute['precision']}",
        f"- versions: {versions}; program {config['git_revision']}",
        "",
        "```bash",
        " \\\n".join(command),
        "```",
    ]
    return "\n".join(lines)


def _describe_ancestor(ancestor: Mapping[str, Any] | None) -> list[str]:
    """Return a line on the network that the training began with, if there was one."""
    if not ancestor:
        return []
    path, epoch = _portable(ancestor["checkpoint"]), ancestor["epoch"]
    return [f"- began with {path}, epoch {epoch}, weights of SHA-256 {ancestor['sha256']}"]


def _describe_scores(name: str, state: Mapping[str, Any], evaluation: Path | None) -> str:
    """Return the table of scores; raises UserError unless they are those of this network."""
    if evaluation is None:
        return "Not evaluated yet."
    summary = _read_json(evaluation / "summary.json")
    epoch, model = summary.get("epoch"), summary.get("model") or {}
    if epoch != state["epoch"] or not state["model_config"].items() <= model.items():
        raise UserError(
            f"{evaluation / 'summary.json'}: is of another network (epoch {epoch}, {model}); the "
            f"checkpoint's is of epoch {state['epoch']}, {state['model_config']}"
        )
    data, scored = summary["data"], Path(summary["checkpoint"])
    stored = str(scored) == name or scored.name == f"{name}.pth"
    which = "this file" if stored else "its checkpoint, before rounding to bfloat16"
    shape = " x ".join(map(str, data["shape"]))
    about = _wrap(
        f"Of {which}, on {len(data['volumes'])} whole volumes of {shape} voxels "
        f"(`{Path(data['file']).name}`, seed {data['seed']}), windows of {summary['window']} with "
        f"overlap {summary['overlap']}. Means, with 95 % bootstrap intervals over volumes."
    )
    rows = ["| score | mean | 95 % |", "| --- | --- | --- |"]
    for key, words in SCORE_NAMES.items():
        score = summary["scores"].get(key, {})
        if score.get("mean") is not None:
            mean, low, high = (_number(score[column]) for column in ("mean", "low", "high"))
            rows.append(f"| {words} | {mean} | {low} to {high} |")
    return "\n".join([about, "", *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
