"""Two sets of scores: those of an earlier evaluation read again, both of the same volumes or not.

What the differences are is said in ``utils.evaluation.statistics``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError, disk_errors
from utils.evaluation.tables import METRICS, SUMMARY, read_scores


@dataclass(frozen=True)
class EarlierScores:
    """The scores of an earlier evaluation; made by :func:`read_earlier`."""

    scores: pd.DataFrame
    data: Mapping[str, Any] | None

    @property
    def volumes(self) -> Sequence[int]:
        """Indices of the volumes."""
        return tuple(self.scores.index)


def read_earlier(given: str, volumes: int | None) -> EarlierScores | None:
    """Return the scores of an earlier evaluation, of the first ``volumes`` only if given.

    Args:
        given: its table, or the folder in which it lies with the summary; None is returned if it is
            neither.
        volumes: how many, from volume 0 on.

    Raises:
        UserError: table or summary cannot be read, or it holds none of these volumes.
    """
    path = Path(given)
    if path.suffix != ".csv":
        path = path / METRICS
        if not path.is_file():
            return None
    scores = read_scores(path)
    if volumes is not None:
        scores = scores[scores.index < volumes]
    if scores.empty:
        raise UserError(f"--volumes {volumes}: {given} holds none of them")
    return EarlierScores(scores, _recorded_data(path.with_name(SUMMARY)))


def _recorded_data(summary: Path) -> dict[str, Any] | None:
    """Return what an earlier evaluation was scored on, if its summary is there and says so."""
    if not summary.is_file():
        return None
    try:
        with disk_errors(summary):
            return json.loads(summary.read_text()).get("data")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{summary}: is no summary as evaluate.py writes it ({error})") from error


def check_same_volumes(
    names: Sequence[str],
    volumes: Sequence[Sequence[int]],
    data: Sequence[Mapping[str, Any] | None],
) -> None:
    """Raise UserError unless A and B are about the same volumes.

    Args:
        names: of A and B.
        volumes: indices of the volumes of A and of B.
        data: seed, shape and config of the volumes of A and of B, as far as they are known.
    """
    unlike = f"--compare {names[0]} {names[1]}: not the same volumes"
    a, b = volumes
    only = sorted(set(a) ^ set(b))
    if only:
        holder = "A" if only[0] in a else "B"
        raise UserError(
            f"{unlike} ({len(a)} and {len(b)}): only {holder} has volume {only[0]}; score both on "
            "the same ones"
        )
    of_a, of_b = data
    for name in ("seed", "shape", "config"):
        if of_a and of_b and of_a.get(name) != of_b.get(name):
            raise UserError(f"{unlike}: {name} of the data differs; score both on the same file")
