"""Studies of hyperparameters, in Optuna's own plots."""

import warnings
from pathlib import Path

import numpy as np
import optuna
from matplotlib import pyplot
from optuna.visualization import matplotlib as plots

from utils.figures import canvas

MOST_IN_LEGEND = 20  # trials; with more, the curves have no legend


def save_study(
    study: optuna.Study, folder: Path, *, title: str = "", baseline: float | None = None
) -> list[Path]:
    """Draw a study, with trials or none, into ``folder``; return the pictures' paths.

    ``history.png`` shows the IoU of each trial in its order and the best so far, ``curves.png`` the
    IoU of each epoch, ``flags.png`` the IoU of complete trials over each flag tried. ``title`` is
    what the study asks; ``baseline`` an IoU to compare with, a dashed line (None: no line).
    """
    iou = "validation IoU"
    paths = []
    with warnings.catch_warnings(), pyplot.rc_context():
        warnings.simplefilter("ignore")  # plots are "experimental", axes of one value have no width
        history = plots.plot_optimization_history(study, target_name=iou)
        curves = plots.plot_intermediate_values(study)
        flags = np.ravel(plots.plot_slice(study, target_name=iou))
        history.set(title=title, xlabel="trial")
        curves.set(title=title, xlabel="epoch", ylabel=iou)
        canvas.count_along_x(history)
        canvas.count_along_x(curves, min_n_ticks=1)
        if len(curves.lines) > MOST_IN_LEGEND:
            curves.get_legend().remove()
        for axes in (history, curves, *flags):
            if baseline is not None:
                axes.axhline(baseline, **canvas.REFERENCE_LINE)
        for name, axes in (("history", history), ("curves", curves), ("flags", flags[0])):
            paths.append(canvas.save_figure(axes.figure, folder / f"{name}.png"))
            pyplot.close(axes.figure)
    return paths
