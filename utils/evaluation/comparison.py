"""Two sets of scores of the same volumes, volume by volume: B - A."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.evaluation.conditions import Conditions
from utils.evaluation.score_table import NAME, read_csv
from utils.evaluation.statistics import PairedDifference, compare_paired

ABOUT_THE_VOLUME = frozenset(
    {"volume", "seconds", "foreground", "baseline_iou", "sheet_baseline_iou"}
    | {field.name for field in dataclasses.fields(Conditions)}
)
"""Columns of a table of scores that no prediction can change; nor can it ``columns_``..."""

Rows = Mapping[int, Mapping[str, float]]
"""Scores by name of each volume by index."""


@dataclass(frozen=True)
class Compared:
    """What is known of A or B before their scores are."""

    name: str
    volumes: tuple[int, ...]
    data: Mapping[str, Any] | None
    """What the scores belong to, if it is known: seed, shape and config of the volumes."""


def check_comparable(a: Compared, b: Compared) -> None:
    """Raise UserError unless A and B are about the same volumes."""
    only = sorted(set(a.volumes) ^ set(b.volumes))
    if only:
        holder = "A" if only[0] in a.volumes else "B"
        raise UserError(
            f"--compare {a.name} {b.name}: not the same volumes ({len(a.volumes)} and "
            f"{len(b.volumes)}): only {holder} has volume {only[0]}; score both on the same ones"
        )
    if a.data and b.data:
        for name in ("seed", "shape", "config"):
            if a.data.get(name) != b.data.get(name):
                raise UserError(
                    f"--compare {a.name} {b.name}: not the same volumes: {name} of the data "
                    "differs; score both on the same file"
                )


def read_earlier(given: str, volumes: int | None) -> tuple[Compared, Rows] | None:
    """Return the scores of an earlier evaluation, of the first ``volumes`` only if given.

    Args:
        given: its table, or the folder in which it lies with the summary; None is returned if it is
            neither.
        volumes: how many, from volume 0 on.

    Raises:
        UserError: the table cannot be read.
        UserError: it holds none of these volumes.
    """
    path = Path(given)
    is_table = path.suffix == ".csv"
    if not is_table and not (path / NAME).is_file():
        return None
    rows = read_csv(path if is_table else path / NAME)
    if volumes is not None:
        rows = {index: row for index, row in rows.items() if index < volumes}
    if not rows:
        raise UserError(f"--volumes {volumes}: {given} holds none of them")
    data = _recorded_data(path.parent if is_table else path)
    return Compared(given, tuple(rows), data), rows


def _recorded_data(folder: Path) -> dict[str, Any] | None:
    """Return what an earlier evaluation was scored on, if its summary says so."""
    try:
        return json.loads((folder / "summary.json").read_text())["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def subtract(a: Rows, b: Rows, seed: int) -> dict[str, PairedDifference]:
    """Return B - A of every score that both have.

    Args:
        a: scores of A.
        b: scores of B on the same volumes.
        seed: of the bootstrap; every score sees the same volumes drawn.
    """
    first, second = next(iter(a.values())), next(iter(b.values()))
    names = [name for name in first if name in second and _is_score(name)]
    pairs = {name: [np.array([rows[i][name] for i in a]) for rows in (a, b)] for name in names}
    return {
        name: compare_paired(*pair, np.random.default_rng(seed)) for name, pair in pairs.items()
    }


def paired_rows(a: Rows, b: Rows, names: Iterable[str]) -> list[dict[str, float]]:
    """Return a row a volume with both scores and their difference, for each of ``names``."""
    names = list(names)
    return [
        {"volume": index}
        | {
            f"{name}_{which}": value
            for name in names
            for which, value in (
                ("a", a[index][name]),
                ("b", b[index][name]),
                ("difference", b[index][name] - a[index][name]),
            )
        }
        for index in a
    ]


def _is_score(name: str) -> bool:
    return name not in ABOUT_THE_VOLUME and not name.startswith("columns_")
