"""Two sets of scores of the same volumes, volume by volume: B - A."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from utils.prediction.conditions import Conditions
from utils.prediction.statistics import PairedDifference, compare_paired

ABOUT_THE_VOLUME = frozenset(
    {"volume", "seconds", "foreground", "baseline_iou", "sheet_baseline_iou"}
    | {field.name for field in dataclasses.fields(Conditions)}
)
"""Columns of a table of scores that no prediction can change; nor can it ``columns_``..."""

Rows = Mapping[int, Mapping[str, float]]
"""Scores by name of each volume by index."""


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
