"""What a study found, as tables: a row for each trial, and means over seeds.

Column ``iou`` is a trial's best validation IoU, ``epoch`` where it was reached.
"""

from __future__ import annotations

import optuna
import pandas as pd
from scipy import stats

from utils.search.study import STATES, counted_trials

REPLICATE = "seed"  # a searched flag that makes replicates: rows that differ in nothing else
FRONT = ("trial", "state", "iou", "epoch", "epochs_trained", "minutes", "parameters")
BACK = ("reason", "directory")
WIDEST = 60  # characters of the reason in a printed table


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """Return a row for each trial that was begun and not repeated, in their order.

    Between the columns :data:`FRONT` and :data:`BACK` stands one for each flag tried.
    """
    trials = [trial for trial in counted_trials(study) if trial.state in STATES]
    flags = dict.fromkeys(name for trial in trials for name in trial.params)
    rows = [
        {"trial": trial.number, "state": STATES[trial.state], **trial.user_attrs, **trial.params}
        for trial in trials
    ]
    return pd.DataFrame(rows, columns=[*FRONT, *flags, *BACK]).convert_dtypes()


def means_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each setting apart from its seed, the best mean first.

    Beside the mean of ``n`` seeds stand the bounds of its two-sided 95 % interval by Student's t
    with n - 1 degrees of freedom (it supposes that seeds scatter normally), nothing for a single
    seed. Only complete trials count; without a searched seed there are no rows.
    """
    flags = [name for name in table if name not in (*FRONT, *BACK, REPLICATE)]
    complete = table[table["state"] == "complete"]
    if REPLICATE not in table or complete.empty:
        return pd.DataFrame()
    one_setting = [0] * len(complete)
    groups = complete.groupby(flags or one_setting, dropna=False)["iou"]
    means = groups.agg(["mean", "count", "sem"]).astype(float)
    half = stats.t.ppf(0.975, means["count"] - 1) * means["sem"]
    means.insert(1, "low", means["mean"] - half)
    means.insert(2, "high", means["mean"] + half)
    means = means.rename(columns={"count": "n"}).drop(columns="sem").astype({"n": int})
    return means.reset_index(drop=not flags).sort_values("mean", ascending=False)


def format_trials(table: pd.DataFrame) -> str:
    """Return the table that is printed: complete trials by falling IoU, then the others."""
    order = {state: place for place, state in enumerate(STATES.values())}
    places = table["state"].map(order)
    shown = table.assign(place=places).sort_values(["place", "iou"], ascending=[True, False])
    shown["reason"] = shown["reason"].where(shown["state"] == "failed", "").str[:WIDEST]
    return format_table(shown.drop(columns=["place", "directory"]))


def format_table(table: pd.DataFrame) -> str:
    """Return text with aligned columns and four significant digits."""
    return table.to_string(index=False, float_format="{:.4g}".format, na_rep="-")
