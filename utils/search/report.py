"""What a study found: a row for each trial, as CSV and as a table; replicates taken together."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from utils.replacing import replacing
from utils.search.definition import StudyDefinition
from utils.search.study import counted_trials
from utils.training.replicates import interval

REPLICATE = "seed"
"""A searched flag of this name makes replicates: rows that differ in nothing else."""
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
WIDEST = 60
"""Characters of the reason in a printed table."""


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Return a row for each trial that was begun and not cut, in their order.

    ``iou`` is the best validation IoU of the trial, ``epoch`` where it was reached; ``values`` are
    the flags tried, ``curve`` the IoU of each epoch. What is not known is None.
    """
    return [_row(trial) for trial in counted_trials(study) if trial.state in STATES]


def _row(trial: FrozenTrial) -> dict[str, Any]:
    known = trial.user_attrs
    return {
        "trial": trial.number,
        "state": STATES[trial.state],
        "iou": known.get("best_iou"),
        "epoch": known.get("best_epoch"),
        "epochs": known.get("epochs"),
        "minutes": known["seconds"] / 60 if "seconds" in known else None,
        "parameters": known.get("parameters"),
        "values": dict(trial.params),
        "curve": known.get("curve", []),
        "reason": known.get("reason", ""),
        "directory": known.get("directory"),
    }


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write ``rows`` in full, a column for each flag; numbers as they are."""
    flags = list(dict.fromkeys(name for row in rows for name in row["values"]))
    front = ("trial", "state", "iou", "epoch", "epochs", "minutes", "parameters")
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*front, *flags, "reason", "directory"])
        for row in rows:
            tried = [_text(row["values"].get(name)) for name in flags]
            writer.writerow([*(_text(row[name]) for name in front), *tried, row["reason"],
                             row["directory"]])  # fmt: skip
    return path


def write_summary(
    definition: StudyDefinition,
    rows: Sequence[Mapping[str, Any]],
    means: Sequence[Mapping[str, Any]],
    path: Path,
) -> Path:
    """Write the study, its rows without their curves, the best one, and ``means`` as JSON."""
    plain = [{name: value for name, value in row.items() if name != "curve"} for row in rows]
    complete = [row for row in best_first(plain) if row["state"] == "complete"]
    content = {
        "question": definition.question,
        **definition.plain(),
        "best": complete[0] if complete else None,
        "replicates": list(means),
        "trials": plain,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    return path


def best_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return complete trials by falling IoU, then pruned ones, then the others."""
    order = list(STATES.values())
    return sorted(rows, key=lambda row: (order.index(row["state"]), -(row["iou"] or 0.0)))


def format_trials(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table that is printed, the best trial first."""
    flags = list(dict.fromkeys(name for row in rows for name in row["values"]))
    head = ["trial", "state", "IoU", "epoch", "minutes", "parameters", *flags, ""]
    lines = [
        [
            f"{row['trial']:04d}",
            row["state"],
            _number(row["iou"], "{:.4f}"),
            f"{row['epoch']}/{row['epochs']}" if row["epoch"] else "-",
            _number(row["minutes"], "{:.1f}"),
            _number(row["parameters"], "{:,}"),
            *(_short(row["values"].get(name)) for name in flags),
            row["reason"][:WIDEST] if row["state"] == "failed" else "",
        ]
        for row in best_first(rows)
    ]
    return format_table(head, lines)


def replicates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each setting apart from its seed, the best mean first.

    Beside the mean over ``n`` seeds stand the bounds ``low`` and ``high`` of its 95 % interval (see
    utils.training.replicates), None for a single one. Only complete trials count; without a
    searched seed there are none.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["state"] == "complete" and REPLICATE in row["values"]:
            setting = {k: v for k, v in row["values"].items() if k != REPLICATE}
            groups.setdefault(json.dumps(setting, sort_keys=True), []).append(row)
    found = []
    for group in groups.values():
        scores = interval([row["iou"] for row in group])
        setting = {k: v for k, v in group[0]["values"].items() if k != REPLICATE}
        found.append(
            {
                "values": setting,
                **{name: scores[name] for name in ("n", "mean", "low", "high")},
                "parameters": group[0]["parameters"],
            }
        )
    return sorted(found, key=lambda row: -row["mean"])


def format_replicates(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of means over seeds that is printed."""
    flags = list(dict.fromkeys(name for row in found for name in row["values"]))
    lines = [
        [
            f"{row['mean']:.4f}",
            "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}",
            str(row["n"]),
            _number(row["parameters"], "{:,}"),
            *(_short(row["values"].get(name)) for name in flags),
        ]
        for row in found
    ]
    return format_table(["mean IoU", "95 % interval", "seeds", "parameters", *flags], lines)


def format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return text with aligned columns, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rows = [head, *lines]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    """Return a value as TOML and CSV write it; nothing for None."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
