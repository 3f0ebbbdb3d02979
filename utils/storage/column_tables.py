"""Tables of measured columns (CSV) as the arrays that the simulation places in volumes."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError, disk_errors
from utils.simulation.sheet import ColumnTable

AXES = ("x", "y", "z")
ENDS = [f"{end}_{axis}" for end in ("proximal", "distal") for axis in AXES]


def read_column_table(table: str | Path, paths: str | Path | None = None) -> ColumnTable:
    """Read ``--columns_table`` and, if given, ``--columns_paths``; all in micrometres.

    The table has p, q, proximal_x, .._y, .._z, distal_x, .._y, .._z, the paths in long form p, q,
    depth, x, y, z. Depth grows from proximal to distal, and each column of the table has the same
    depths, at least two; whatever else there is is ignored. Raises UserError if a file cannot be
    read, lacks a column, holds a cell that is no finite number, a p or q that is no whole number or
    a site twice; or if a column has no extent or no path, two stand at one place, or most paths
    run from distal to proximal.
    """
    columns = _read(table, ["p", "q", *ENDS], key=["p", "q"])
    if len(columns) < 2:
        raise UserError(f"{table}: {len(columns)} columns; at least two are needed")
    proximal, distal = columns[ENDS[:3]].to_numpy(float), columns[ENDS[3:]].to_numpy(float)
    files = [Path(table)] if paths is None else [Path(table), Path(paths)]
    made = ColumnTable(
        name=Path(table).name,
        hash=hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest(),
        p=columns["p"].to_numpy(np.int64),
        q=columns["q"].to_numpy(np.int64),
        proximal=proximal,
        distal=distal,
        paths=None if paths is None else _paths(paths, columns),
    )
    chords = made.nodes[:, -1:] - made.nodes[:, :1]
    moves = np.concatenate([np.diff(made.nodes, axis=1), chords], axis=1)
    for wrong, what in (
        (np.all(moves == 0.0, axis=2), "has both ends, or two depths in a row, at one place"),
        (made.nearest == 0.0, "stands where another column does"),  # it had no radius
    ):
        if wrong.any():
            row = wrong.any(axis=1).argmax()
            raise UserError(f"{files[-1]}: column p {made.p[row]}, q {made.q[row]} {what}")
    if np.median(np.sum(chords[:, 0] * (distal - proximal), axis=1)) < 0:
        raise UserError(f"{paths}: depth must grow from proximal to distal, as {table} has them")
    return made


def _paths(path: str | Path, columns: pd.DataFrame) -> np.ndarray:
    """Return the (N, D, 3) nodes of the table's ``columns`` in their order."""
    nodes = _read(path, ["p", "q", "depth", *AXES], key=["p", "q", "depth"])
    wanted = pd.MultiIndex.from_frame(columns[["p", "q"]])
    nodes = nodes[pd.MultiIndex.from_frame(nodes[["p", "q"]]).isin(wanted)]
    wide = nodes.pivot(index=["p", "q"], columns="depth", values=list(AXES)).reindex(wanted)
    places = wide.to_numpy(float).reshape(len(columns), 3, -1).transpose(0, 2, 1)
    lacks = np.isnan(places).any(axis=(1, 2))
    if places.shape[1] < 2 or lacks.any():
        p, q = wanted[int(lacks.argmax())]
        raise UserError(
            f"{path}: column p {p:g}, q {q:g} lacks depths: each column of the table needs the "
            "same depths, at least two"
        )
    return places


def _read(path: str | Path, names: list[str], key: list[str]) -> pd.DataFrame:
    """Return the columns ``names`` of a CSV file as finite numbers, ``key`` without duplicates."""
    with disk_errors(path), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            table = pd.read_csv(path, index_col=False)  # else a cell too many moves all of a row
        except (ValueError, pd.errors.ParserWarning) as error:
            raise UserError(f"{path}: no CSV table ({' '.join(str(error).split())})") from error
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)} (of {', '.join(names)})")
    table = table[names].apply(pd.to_numeric, errors="coerce")
    row, column = np.nonzero(~np.isfinite(table.to_numpy(float)))
    if len(row):
        raise UserError(f"{path}: row {row[0] + 1}, {names[column[0]]}: not a finite number")
    if (table[["p", "q"]] % 1 != 0).any(axis=None):
        raise UserError(f"{path}: p and q must be whole numbers")
    twice = table[table.duplicated(key)]
    if len(twice):
        which = ", ".join(f"{name} {twice[name].iloc[0]:g}" for name in key)
        raise UserError(f"{path}: {which} stands there twice")
    return table
