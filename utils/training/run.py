"""What every training script does with its flags, its network and its data: the whole run.

Scripts check what they can before they import this module, and with it torch.
"""

import argparse
import datetime
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoints.loading import load_checkpoint
from utils.data.augmentation import AugmentedDataset
from utils.data.epochs import EpochDataset
from utils.devices import choose_compute
from utils.errors import UserError
from utils.provenance import describe_program
from utils.replacing import read_json, write_json
from utils.training import ranks
from utils.training.computing import (
    be_deterministic,
    choose_compiling,
    choose_training_compute,
    compile_network,
)
from utils.training.ending import record_exit
from utils.training.experiment import RUNNING, Experiment
from utils.training.flag_table import describe_recipe, recipe_values
from utils.training.loop import score, train
from utils.training.losses import build_loss, measure_foreground
from utils.training.options import (
    TrainingOptions,
    check_patch_size,
    describe_network,
    describe_training,
)
from utils.training.ranks import choose_processes, loader_processes, make_fabric
from utils.training.starting import check_data, find_resumption, inherit

logger = logging.getLogger("utils.training")


@dataclass(frozen=True)
class TrainingData:
    """The data of a script, and what records and checkpoints say of them."""

    train: EpochDataset  # as it is: the run changes its items at random where --augment says so
    validation: EpochDataset
    spacing_voxels: list[float]  # typical distance of columns along each axis
    about: Mapping[str, str]  # lines for the announcement, by topic
    test: EpochDataset | None = None  # what the best checkpoint is scored on at the end
    other_scores: Callable[[nn.Module], dict[str, float | None]] = lambda network: {}
    """Returns scores of a trained network on ``test`` beside those of voxels."""


def run_training(
    script: str,
    flags: argparse.Namespace,
    options: TrainingOptions,
    directory: Path,
    model_config: Mapping[str, Any],
    build_network: Callable[[], nn.Module],
    patch_size: int,
    load_data: Callable[[], TrainingData],
) -> int:
    """Train as the ``flags`` of ``script`` (a path) say, record everything; return the exit status.

    Until the log ``directory`` is made, or reopened by --resume, every mistake is a UserError, and
    nothing is written but what ``load_data`` writes: it opens or makes the data, in each of several
    processes, the first one first. ``build_network`` makes the network of ``model_config``, plain
    state, and ``patch_size`` is the edge of the items to train on, in voxels.
    """
    if flags.freeze and not flags.init:
        raise UserError(
            f"--freeze {flags.freeze}: keeps weights of a trained network; give --init too"
        )
    if options.deterministic:
        be_deterministic(directory)
    device = choose_compute(options.device, "32").device
    compiling = choose_compiling(options, device)
    processes = choose_processes(options, device)
    with torch.device("meta"):  # counted without memory for them
        parameters = sum(p.numel() for p in build_network().parameters() if p.requires_grad)
    if not flags.MIN_PARAMS <= parameters <= flags.MAX_PARAMS:
        raise UserError(
            f"the network has {parameters} parameters, outside the bounds --MIN_PARAMS "
            f"{flags.MIN_PARAMS} and --MAX_PARAMS {flags.MAX_PARAMS}: training does not start"
        )

    shape = (patch_size,) * model_config["spatial_dims"]
    resumed = directory if flags.resume else None
    compute = choose_training_compute(options, build_network, shape, processes.total, resumed)
    fabric = make_fabric(compute, options.seed, processes, deterministic=options.deterministic)

    def load() -> TrainingData:
        data = load_data()
        check_shares(data, patch_size, options, flags)
        return data

    data = load_in_turn(load)
    foreground = measure_foreground(data.train) if options.loss_type == "weighted_bce" else None
    loss = build_loss(options, foreground)
    trained_on = data.train
    if flags.augment != "none" and not data.train.makes_batches:
        trained_on = AugmentedDataset(data.train, flags.augment, flags.seed)
    model = build_network()
    state, note = find_resumption(directory) if flags.resume else (None, "")
    about, origin = {}, None
    if flags.init and not state:
        parent = inherit(model, flags.init, model_config["spatial_dims"])
        about["init"] = f"weights of {parent.path}, epoch {parent.epoch}"
        # Its name may mean another network some day.
        origin = {"checkpoint": parent.path, "epoch": parent.epoch, "sha256": parent.fingerprint()}
    if flags.freeze:
        model.encoder.requires_grad_(False)
        about["freeze"] = "the encoder stays as it is"
    if flags.resume:
        about["resume"] = note

    sets = {"train": data.train, "validation": data.validation, "test": data.test}
    config = {
        "flags": vars(flags),
        "recipe": {"name": flags.recipe, "values": recipe_values(flags)},
        "model": dict(model_config),
        "ancestor": origin,
        "parameters": parameters,
        "compute": vars(compute),
        "processes": ranks.world_size(),
        "compile": vars(compiling),
        "foreground": foreground,
        "data": {name: one.describe() for name, one in sets.items() if one is not None},
    }
    experiment = open_experiment(directory, config, script, state, note)
    loaders = loader_processes(options.num_workers, processes.devices)
    together = f" each, {processes.total} processes train together" * (processes.total > 1)
    lines = {
        "network": describe_network(flags, parameters),
        **about,
        **data.about,
        "recipe": describe_recipe(flags),
        "training": describe_training(options),
        "machine": compute.describe(loaders) + together,
        "compile": f"{'on' if compiling.on else 'off'} ({compiling.reason})",
        "log": str(directory),
    }
    if not ranks.rank():
        announce(lines)
    description = {
        "model_config": dict(model_config),
        "normalizer": data.train.normalizer.to_dict(),
        "spacing_voxels": data.spacing_voxels,
        "patch_size": patch_size,
        "flags": vars(flags),
    }

    def train_and_test() -> str:
        compile_network(model, compiling)
        how = options, experiment, description, state
        reason = train(fabric, model, loss, trained_on, data.validation, *how)
        if data.test is not None:
            fabric.barrier()  # until the best checkpoint is there
            kept = load_checkpoint(directory)
            best = build_network()
            best.load_state_dict(kept["model_state"])
            record = {"epoch": kept["epoch"], **score(fabric, best, loss, data.test, options)}
            record |= data.other_scores(best)
            experiment.update_log(test=record)
            shown = ("iou", "dice", "total_error", "precision", "recall", "mean_distance")
            words = [f"{name} {record[name]:.3f}" for name in shown if record.get(name) is not None]
            logger.info(f"test, network of epoch {record['epoch']}: {', '.join(words)}")
        return reason

    return record_exit(experiment, train_and_test)


def load_in_turn(load: Callable[[], TrainingData]) -> TrainingData:
    """Return what ``load`` returns on each rank; the first one makes files, the others read them.

    Its UserError ends all of them: it alone raises it, so that it is told once.
    """
    loaded, error = None, None
    if not ranks.rank():
        try:
            loaded = load()
        except UserError as found:
            error = found
    if ranks.word_of_the_first(error is not None):
        raise error or SystemExit(0)  # the status is the first one's
    return load() if ranks.rank() else loaded


def check_shares(
    data: TrainingData, patch_size: int, options: TrainingOptions, flags: argparse.Namespace
) -> None:
    """Raise UserError where a step leaves a device no patch, or too little for batch norm."""
    share = min(options.batch_size, len(data.train)) // ranks.world_size()
    if not share:
        raise UserError(
            f"{ranks.world_size()} devices cannot share the {len(data.train)} patches of an epoch; "
            "lower --devices, or train on more"
        )
    check_patch_size(patch_size, flags.depth, share, flags.stem_stride, "patches of")


def open_experiment(
    directory: Path,
    config: Mapping[str, Any],
    script: str,
    state: Mapping[str, Any] | None,
    note: str,
) -> Experiment:
    """Make the log directory of a run, or go on in it; raise UserError if its data are others now.

    ``state`` and ``note`` are those of :func:`find_resumption`. Then ``config.json`` tells of the
    latest start, and ``logs.json`` lists each under ``resumptions``, with date, git revision and
    how the run had ended before. Raises UserError, before anything is written, where another
    process writes there still. Of several processes rank 0 does so; the others get an experiment
    that writes nothing.
    """
    if ranks.rank():
        return Experiment(directory, writes=False)
    if not config["flags"]["resume"]:
        return Experiment.create(directory, config, script)
    before = read_json(directory / "config.json")
    check_data(before["data"], config["data"])
    changed = {
        name: (before["flags"].get(name), value)
        for name, value in config["flags"].items()
        if name != "resume" and value != before["flags"].get(name)
    }
    ancestor = config["ancestor"] or before.get("ancestor")
    config = {**config, "ancestor": ancestor, **describe_program(script)}
    experiment = Experiment(directory)
    experiment.occupy(script)
    log = experiment.read_log() if experiment.log.exists() else {}
    resumption = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "epoch": state["epoch"] if state else 0,
        "note": note,
        "changed": changed,
        "git_revision": config["git_revision"],
        "before": log.get("exit", RUNNING),
    }
    resumptions = [*log.get("resumptions", []), resumption]
    entries = {"epochs": state["history"] if state else [], "exit": RUNNING}
    write_json(directory / "config.json", config)
    write_json(experiment.log, {**log, **entries, "resumptions": resumptions})
    return experiment


def announce(lines: Mapping[str, str]) -> None:
    """Show the log on standard output from now on, and first ``lines`` on the run, one a topic."""
    logger.handlers[:] = [logging.StreamHandler(sys.stdout)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    width = max(len(topic) for topic in lines)
    for topic, text in lines.items():
        logger.info(f"{topic:<{width}}  {text}")
