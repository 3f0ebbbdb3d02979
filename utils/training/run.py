"""What every training script does around its own data: open the log directory, say what comes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.devices import Compute
from utils.training import ranks
from utils.training.compiling import Compiling
from utils.training.experiment import Experiment
from utils.training.fabric import loader_processes
from utils.training.options import TrainingOptions, describe_network, describe_training
from utils.training.processes import find_launcher
from utils.training.recipes import describe_recipe, recipe_values
from utils.training.resuming import Resumption, changed_flags, check_data


def begin_experiment(
    directory: Path,
    script: str,
    flags: argparse.Namespace,
    options: TrainingOptions,
    compute: Compute,
    compiling: Compiling,
    *,
    model: Mapping[str, Any],
    parameters: int,
    foreground: float | None,
    data: Mapping[str, Any],
    about: Mapping[str, str],
    resumption: Resumption | None = None,
) -> Experiment:
    """Make the log directory of a run, or reopen it, and announce the run on standard output.

    Of several processes rank 0 does so; the others get an experiment that writes nothing.

    Args:
        directory: the new log directory.
        script: path of the script that runs.
        flags: all of the script's flags.
        options: what they say of training.
        compute: where the network is evaluated.
        compiling: whether the network is compiled.
        model: the network's configuration, plain state.
        parameters: weights that training changes.
        foreground: labelled share of the training items where the loss needs it.
        data: plain facts on the data for ``config.json``.
        about: lines on the data for the announcement, by topic.
        resumption: where a run goes on; its directory is there, and its data must be the same.
    """
    processes = ranks.world_size()
    started = find_launcher()
    loaders = loader_processes(options.num_workers, started.devices if started else processes)
    together = f" each, {processes} processes train together" if processes > 1 else ""
    config = {
        "flags": vars(flags),
        "recipe": {"name": flags.recipe, "values": recipe_values(flags)},
        "model": dict(model),
        "parameters": parameters,
        "compute": vars(compute),
        "processes": processes,
        "compile": vars(compiling),
        "foreground": foreground,
        "data": dict(data),
    }
    if ranks.rank():
        return Experiment(directory, writes=False)
    if resumption is None:
        experiment = Experiment.create(directory, config, script)
    else:
        experiment = _reopen(directory, config, script, resumption)
        about = {**about, "resume": resumption.note}
    announce(
        {
            "network": describe_network(flags, parameters),
            **about,
            "recipe": describe_recipe(flags),
            "training": describe_training(options),
            "machine": compute.describe(loaders) + together,
            "compile": f"{'on' if compiling.on else 'off'} ({compiling.reason})",
            "log": str(directory),
        }
    )
    return experiment


def _reopen(
    directory: Path, config: Mapping[str, Any], script: str, resumption: Resumption
) -> Experiment:
    """Reopen a log directory; raises UserError if the data are not those of the run before."""
    before = json.loads((directory / "config.json").read_text())
    check_data(before["data"], config["data"])
    record = {
        "epoch": resumption.epoch,
        "note": resumption.note,
        "changed": changed_flags(before["flags"], config["flags"]),
    }
    history = resumption.state["history"] if resumption.state else []
    return Experiment.reopen(directory, config, script, history, record)


def announce(lines: Mapping[str, str]) -> None:
    """Show the log on standard output from now on, and first ``lines`` on the run, one a topic."""
    logger = logging.getLogger("utils.training")
    logger.handlers[:] = [logging.StreamHandler(sys.stdout)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    width = max(len(topic) for topic in lines)
    for topic, text in lines.items():
        logger.info(f"{topic:<{width}}  {text}")
