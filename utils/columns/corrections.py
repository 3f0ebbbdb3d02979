"""What a person corrected: labels of the instances, or rows of the table with p and q that stay.

``find_columns.py --corrections FILE``: a label volume as napari and Fiji save it, or a table with
p, q, and column_id or pos_x, pos_y, pos_z: CSV, with semicolons and decimal commas as well, or
tabs. Rows without p and q, and inferred ones, are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.columns.blocks import slabs
from utils.errors import UserError
from utils.stacks import Stack, open_stack

POSITION = ["pos_x", "pos_y", "pos_z"]
FIELDS = ["p", "q", "column_id", *POSITION]
TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Corrections:
    """One of both is None."""

    labels: np.ndarray | None = None
    """(X, Y, Z) int32: 1..N, 0 for background."""
    rows: pd.DataFrame | None = None
    """p, q, and column_id, or where that is NaN :data:`POSITION`."""


def read_corrections(path: Path, shape: tuple[int, ...]) -> Corrections:
    """Return what a file corrects in a stack of ``shape``; UserError for one that is no such."""
    if path.suffix.lower() not in TABLES:
        with _open_labels(path) as stack:
            if stack.shape != shape:
                raise UserError(
                    f"--corrections {path}: has {stack.shape} voxels (x, y, z), the input {shape}"
                )
            values = stack.read()
        if values.dtype.kind == "f" and (values[np.isfinite(values)] % 1).any():
            raise UserError(f"--corrections {path}: holds fractions; labels are whole numbers")
        return Corrections(labels=numbered(values, np.zeros(shape, np.int32)))
    try:
        header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
        separator = max(",;\t", key=header.count)
        decimal = "," if separator == ";" else "."
        table = pd.read_csv(path, sep=separator, decimal=decimal)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"--corrections {path}: cannot be read as a table: {error}") from error
    if not {"p", "q"} <= {*table} or not ("column_id" in table or {*POSITION} <= {*table}):
        raise UserError(
            f"--corrections {path}: must have the columns p, q and column_id, or p, q and "
            + ", ".join(POSITION)
        )
    if "status" in table:
        table = table[table["status"] != "inferred"]
    given = table.reindex(columns=FIELDS).dropna(subset=["p", "q"])
    table = given.apply(pd.to_numeric, errors="coerce")
    somewhere = given["column_id"].notna() | np.isfinite(table[POSITION]).all(axis=1)
    whole = table[["p", "q", "column_id"]].where(given.notna(), 0)
    wrong = ~somewhere | (whole % 1 != 0).any(axis=1)
    if wrong.any() or table.empty:
        where = f"line {table.index[wrong][0] + 2}" if wrong.any() else "no row with p and q"
        raise UserError(f"--corrections {path}: {where}: give p and q as whole numbers, and where")
    return Corrections(rows=table)


def _open_labels(path: Path) -> Stack:
    """Return a stack of labels, whose planes may have been saved as channels or time points."""
    try:
        return open_stack(path)
    except UserError as error:
        try:
            return open_stack(path, axes="ZYX")
        except UserError:
            raise error from None


def numbered(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``labels``, zeros (X, Y, Z), as 1..N in the order of ``values``: those above 0."""
    found = np.unique(np.concatenate([np.unique(slab[slab > 0]) for _, slab in slabs(values)]))
    for start, slab in slabs(values):
        part = np.where(slab > 0, np.searchsorted(found, slab) + 1, 0)
        labels[..., start : start + slab.shape[-1]] = part
    return labels


def fixed_columns(
    rows: pd.DataFrame, labels: np.ndarray, steps: tuple[float, ...], shift: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which columns (F,), from 0, have a fixed (p, q) (F, 2).

    Args:
        rows: of :class:`Corrections`.
        labels: (X, Y, Z) of the columns 1..N.
        steps: edge of a voxel along x, y, z.
        shift: way from the file's voxel 0 to the labels' one.

    Raises:
        UserError: where no column is, or one stands twice.
    """
    rows = rows.reindex(columns=FIELDS)
    told = rows["column_id"].fillna(0).to_numpy(np.int64, copy=True)
    placed = np.flatnonzero(rows["column_id"].isna())
    voxels = np.rint((rows[POSITION].to_numpy()[placed] - shift) / steps).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(axis=1)
    told[placed[inside]] = labels[tuple(voxels[inside].T)]
    wrong = (told < 1) | (told > labels.max(initial=0)) | pd.Series(told).duplicated().to_numpy()
    if wrong.any():
        line = rows.index[wrong][0] + 2
        raise UserError(f"--corrections: line {line}: no column is there, or it stands twice")
    return told - 1, rows[["p", "q"]].to_numpy(np.int64)
