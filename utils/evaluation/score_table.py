"""The scores of volumes as a CSV file: a row a volume, an empty cell for what has no meaning."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.errors import UserError

NAME = "metrics.csv"
"""What the table is called in a folder of results."""
KEY = "volume"
"""The column that says which volume a row is of."""
SCORE = "iou"
"""The column that no table lacks."""


def as_csv(rows: Sequence[Mapping[str, float | str]]) -> str:
    """Return ``rows``, all with the same names, as the text of a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def plain(value: float | str) -> float | str | None:
    """Return ``value``, or None (an empty cell, JSON's null) where it is NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def read_csv(path: Path) -> dict[int, dict[str, float]]:
    """Return the scores of each volume by its index, in the table's order; empty cells are NaN.

    Raises UserError if the file is missing or no such table.
    """
    try:
        with path.open(newline="") as file:
            return _parse(csv.DictReader(file, strict=True))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(
            f"{path}: is no table of scores as evaluate.py writes it ({error})"
        ) from error


def _parse(lines: Iterable[Mapping[str, str]]) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        cells = dict(line)
        if None in cells or None in cells.values():
            raise UserError("its rows are not equally long")
        volume = int(cells.pop(KEY))
        if volume in rows:
            raise UserError(f"volume {volume} stands there twice")
        rows[volume] = {name: float(cell) if cell else math.nan for name, cell in cells.items()}
    if not rows:
        raise UserError("it holds no volumes")
    if SCORE not in next(iter(rows.values())):
        raise UserError(f"it has no column {SCORE}")
    return rows
