"""Two sets of scores: those of an earlier evaluation read again, both of the same volumes or not.

What the differences are is said in ``utils.evaluation.statistics``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.errors import UserError, disk_errors
from utils.evaluation.tables import SUMMARY


@dataclass(frozen=True)
class EarlierScores:
    """The scores of an earlier evaluation; made by :func:`read_earlier`."""

    scores: pd.DataFrame  # row a volume, whose index is the volume's
    data: Mapping[str, Any]  # what was scored, as far as the summary beside the table says it

    @property
    def volumes(self) -> Sequence[int]:
        """Indices of the volumes."""
        return tuple(self.scores.index)


def read_earlier(path: Path, volumes: int | None = None) -> EarlierScores:
    """Return the scores in a metrics.csv, and on what they were from the summary.json beside it.

    Of ``volumes`` only those with lower indices. Raises UserError if the table is missing, holds
    none of them, or one of the files is not as evaluate.py writes it.
    """
    summary = path.with_name(SUMMARY)
    with disk_errors(path):
        try:
            table = pd.read_csv(path, dtype={"volume": np.int64}).set_index("volume")
            table = table.drop(columns="stack", errors="ignore").astype(float)
            if volumes is not None:
                table = table[table.index < volumes]
            if table.empty or not table.index.is_unique or table["iou"].isna().any():
                raise ValueError("one row a volume is needed, each with its iou")
            data = json.loads(summary.read_text()).get("data") if summary.is_file() else None
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path}: it or the {SUMMARY} beside it is not as evaluate.py writes it ({error})"
            ) from error
    return EarlierScores(table, data or {})


def check_same_volumes(
    names: Sequence[str], volumes: Sequence[Sequence[int]], data: Sequence[Mapping[str, Any]]
) -> None:
    """Raise UserError unless A and B, of these ``names``, are about the same volumes.

    ``volumes`` are the indices of both's, ``data`` their seed, shape and config, or what labelled
    stacks they are, as far as that is known.
    """
    unlike = f"--compare {names[0]} {names[1]}: not the same volumes"
    only = sorted(set(volumes[0]) ^ set(volumes[1]))
    if only:
        holder = "A" if only[0] in volumes[0] else "B"
        raise UserError(f"{unlike}: only {holder} has volume {only[0]}; score both on the same")
    for name in ("seed", "shape", "config", "stacks"):
        if all(data) and data[0].get(name) != data[1].get(name):
            raise UserError(f"{unlike}: {name} of the data differs; score both on the same file")
