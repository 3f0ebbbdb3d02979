"""Train a 2D network on simulated images: to segment columns, or to find their centres.

    python train_basic_2dunet.py --epochs 20 --experiment_title demo2d
    python train_basic_2dunet.py --objective keypoints --experiment_title centres
    python train_basic_2dunet.py --L_train 1024 --train_file "" --experiment_title more_images

The three sets are simulated at the first run and kept in the files named; an empty name keeps one
in memory. Records, checkpoints and pictures go to <log_path>/<experiment_title>/, the scores of the
best checkpoint on the test set into logs.json under "test". All flags and their defaults stand in
parse_flags, right below. Exit status: 0 when training ends as planned, 1 when it fails, 2 for a
mistake in the flags or the data files, 130 when it is interrupted.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, exit_status
from utils.flags import FlagParser, whole_number
from utils.training.options import (
    ARCHITECTURES,
    AUGMENT_LEVELS,
    CHECKPOINT_POLICIES,
    COMPILE_CHOICES,
    DEVICES,
    LOSS_TYPES,
    LR_SCHEDULES,
    OPTIMIZERS,
    PRECISIONS,
    TrainingOptions,
    check_counts,
    check_parameter_count,
    check_patch_size,
    experiment_directory,
    network_settings,
)
from utils.training.processes import devices_number, let_waiting_threads_sleep
from utils.training.recipes import RECIPES, parse_training_flags

if TYPE_CHECKING:
    from torch import nn

    from utils.data.images import Fake2DDataset

SEEDS = {"train": 111, "validation": 999, "test": 2222}
"""Of the simulated sets."""
IMAGE_EDGE = 128
"""In pixels."""
OBJECTIVES = ("segmentation", "keypoints")


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exits with status 2 and one line for those that cannot be read."""
    parser = FlagParser(description="Train a 2D network on images simulated on the fly.")

    # fmt: off
    add = parser.add_argument_group("experiment").add_argument
    add("--experiment_title", default="my_experiment", metavar="STR",
        help="name of the log directory; one that exists is never overwritten")
    add("--resume", action="store_true",
        help="go on with the experiment of that name from its last checkpoint, with its flags")
    add("--log_path", default="./logs", metavar="STR",
        help="folder of the log directories")
    add("--checkpoint_policy", default="best", choices=CHECKPOINT_POLICIES,
        help="keep the last state only; also the best by validation IoU; or also every epoch's")
    add("--objective", default="segmentation", choices=OBJECTIVES,
        help="learn the mask of the columns, or a heat map with a peak at each centre")
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True,
        help="write curves, slices and hyperparameters for TensorBoard into the log directory")
    add("--seed", default=0, type=int, metavar="INT",
        help="of the weights and the order of images; to the same bits with --deterministic")

    add = parser.add_argument_group("data").add_argument
    add("--L_train", default=128, type=int, metavar="INT",
        help="images to train on")
    add("--L_validate", default=32, type=int, metavar="INT",
        help="images to validate on")
    add("--L_test", default=32, type=int, metavar="INT",
        help="images to test the best checkpoint on, at the end")
    add("--train_file", default="./train_dataset.h5", metavar="FILE",
        help="file of the training set, made if it is not there; \"\" keeps the set in memory")
    add("--validation_file", default="./validation_dataset.h5", metavar="FILE",
        help="likewise of the validation set")
    add("--test_file", default="./test_dataset.h5", metavar="FILE",
        help="likewise of the test set")
    add("--augment", default="none", choices=AUGMENT_LEVELS,
        help="change training images at random: flips, exchange of the axes and turns by 90 "
        "degrees; full adds deformation, blur, noise and grey values")
    add("--num_workers", default=0, type=int, metavar="INT",
        help="processes that load images (at most one a core); 0: the training process does it")

    add = parser.add_argument_group("network").add_argument
    add("--arch", default="unet", choices=ARCHITECTURES,
        help="one U-Net, or several in a row with intermediate supervision")
    add("--depth", default=4, type=int, metavar="INT",
        help="layers in each half of the U-Net; depth - 1 poolings")
    add("--start_channels", default=4, type=int, metavar="INT",
        help="channels at full resolution, doubled by each pooling")
    add("--stem_stride", default=1, type=int, metavar="INT",
        help="edge of the blocks of pixels that the network works on; 1 is full resolution")
    add("--num_stacks", default=1, type=int, metavar="INT",
        help="U-Nets in a row, for --arch stacked_unet")
    add("--conv_kernel_size", default=3, type=int, metavar="INT",
        help="edge of the convolution kernels, in pixels; odd")
    add("--resblocks", action="store_true",
        help="residual blocks instead of plain ones")
    add("--MAX_PARAMS", default=30_000_000, type=whole_number, metavar="INT",
        help="training does not start with more parameters; 30e6 can be written too")
    add("--MIN_PARAMS", default=0, type=whole_number, metavar="INT",
        help="training does not start with fewer parameters")

    add = parser.add_argument_group("training").add_argument
    add("--recipe", default=None, choices=tuple(RECIPES),
        help="other defaults for a bundle of these flags; flags that are given win over it")
    add("--batch_size", default=32, type=int, metavar="INT",
        help="images a step, on all devices together")
    add("--epochs", default=100, type=int, metavar="INT",
        help="most epochs to train")
    add("--max_minutes", default=None, type=float, metavar="FLOAT",
        help="minutes after which training ends, within an epoch if need be; cosine and onecycle "
        "then follow the clock, so that the result depends on the machine's speed")
    add("--early_stopping_patience", default=15, type=int, metavar="INT",
        help="epochs without a lower validation loss after which training ends; with cosine and "
        "onecycle the default is --epochs")
    add("--optimizer", default="adam", choices=OPTIMIZERS,
        help="how gradients become steps")
    add("--loss_type", default="dice", choices=LOSS_TYPES,
        help="weighted_bce balances the labels; bce_dice is the sum of both; "
        "boundary_weighted_dice weighs pixels around the labels")
    add("--boundary_weight", default=1.0, type=float, metavar="FLOAT",
        help="weight of pixels just outside the mask in boundary_weighted_dice; 1 is plain dice")
    add("--boundary_thickness", default=1, type=int, metavar="INT",
        help="how far outside the mask that weight reaches, in pixels")
    add("--weight_decay", default=0.0, type=float, metavar="FLOAT",
        help="L2 penalty on the weights; decoupled from the gradient with adamw")
    add("--start_lr", default=1e-3, type=float, metavar="FLOAT",
        help="learning rate at the start; the highest one with onecycle")
    add("--lr_schedule", default="plateau", choices=LR_SCHEDULES,
        help="lower the rate when the validation loss stops falling; or along a cosine to 0 at the "
        "end; or the same after a climb over the first tenth")
    add("--lr_scheduler_factor", default=0.20, type=float, metavar="FLOAT",
        help="factor on the learning rate when the validation loss stops falling (plateau)")
    add("--lr_scheduler_patience", default=3, type=int, metavar="INT",
        help="epochs to wait before that (plateau)")
    add("--ema", default=0.0, type=float, metavar="FLOAT",
        help="validate and keep a moving average of the weights with this decay, such as 0.999; "
        "0 is off")
    add("--no_shuffle", action="store_true",
        help="the same order in each epoch")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", choices=DEVICES,
        help="auto takes CUDA where there is some")
    add("--devices", default="auto", type=devices_number, metavar="INT",
        help="on each machine, a process each, which share the batches; auto takes all GPUs, one "
        "process on a CPU, or what torchrun or srun has started")
    add("--num_nodes", default=1, type=int, metavar="INT",
        help="machines, on each of which torchrun or srun starts this script")
    add("--precision", default="auto", choices=PRECISIONS,
        help="of the network; auto takes bf16 where the machine is fast at it; losses are float32")
    add("--compile", default="auto", choices=COMPILE_CHOICES,
        help="torch.compile; auto: with CUDA; on a CPU it does not pay")
    add("--deterministic", action="store_true",
        help="the same bits in each run on this machine, where torch can; slower, and compiled "
        "only with --compile on")
    # fmt: on
    return parse_training_flags(parser, arguments, __file__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, prepare, train, test; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    let_waiting_threads_sleep()
    flags = parse_flags(arguments)
    return exit_status(
        "train_basic_2dunet.py", lambda: run(flags), "interrupted before training began"
    )


def run(flags: argparse.Namespace) -> int:
    """Train as ``flags`` say; raises ValueError or OSError as long as no log has been begun."""
    options = TrainingOptions.from_flags(flags)
    settings = network_settings(flags, spatial_dims=2)
    check_counts(flags, "L_train", "L_validate", "L_test")
    check_patch_size(
        *(IMAGE_EDGE, flags.depth, flags.batch_size, flags.stem_stride),
        what="images with an edge of",
    )
    check_files(flags)
    directory = experiment_directory(flags.log_path, flags.experiment_title, flags.resume)

    import torch

    from models import ModelConfig, build_model, count_parameters
    from utils.data import AugmentedDataset
    from utils.devices import choose_compute
    from utils.training.compiling import choose_compiling
    from utils.training.determinism import be_deterministic, recorded_threads
    from utils.training.ending import record_exit
    from utils.training.fabric import choose_processes, make_fabric
    from utils.training.loop import score, train
    from utils.training.losses import build_loss, measure_foreground
    from utils.training.ranks import first_rank_first, wait_for_all
    from utils.training.resuming import find_resumption
    from utils.training.run import begin_experiment

    if options.deterministic:
        be_deterministic(recorded_threads(directory))
    compute = choose_compute(options.device, options.precision)
    processes = choose_processes(options, compute.device)
    model_config = ModelConfig(**settings)
    with torch.device("meta"):
        parameters = count_parameters(build_model(model_config))
    check_parameter_count(parameters, flags.MIN_PARAMS, flags.MAX_PARAMS)

    compiling = choose_compiling(options, compute.device)
    fabric = make_fabric(compute, options.seed, processes, deterministic=options.deterministic)
    with first_rank_first():
        sets = make_data(flags)
    trained_on = sets["train"]
    if flags.augment != "none":
        trained_on = AugmentedDataset(trained_on, flags.augment, flags.seed)
    foreground = measure_foreground(sets["train"]) if options.loss_type == "weighted_bce" else None
    loss = build_loss(options, foreground)
    resumption = find_resumption(directory) if flags.resume else None
    model = build_model(model_config)

    facts = {
        "model_config": model_config.to_dict(),
        "normalizer": sets["train"].normalizer.to_dict(),
        "spacing_voxels": typical_spacing(sets["train"]),
        "patch_size": IMAGE_EDGE,
        "flags": vars(flags),
    }
    experiment = begin_experiment(
        directory,
        __file__,
        flags,
        options,
        compute,
        compiling,
        model=model_config.to_dict(),
        parameters=parameters,
        foreground=foreground,
        data={name: describe_set(data) for name, data in sets.items()},
        about={name: repr(data) for name, data in sets.items()},
        resumption=resumption,
    )

    def train_and_test() -> str:
        reason = train(
            *(fabric, model, loss, trained_on, sets["validation"], options, experiment, facts),
            compiling=compiling,
            resumption=resumption,
        )
        wait_for_all()  # until the best checkpoint is there
        trained, epoch = restore_model(directory)
        record = {"epoch": epoch, **score(fabric, trained, loss, sets["test"], options)}
        if flags.objective == "keypoints":
            record |= score_keypoints(trained, sets["test"])
        experiment.update_log(test=record)
        logging.getLogger("utils.training").info(summarise(record))
        return reason

    return record_exit(experiment, train_and_test)


def check_files(flags: argparse.Namespace) -> None:
    """Raise UserError that names a data file that could not be made, or is named twice."""
    taken: dict[Path, str] = {}
    for flag in ("train_file", "validation_file", "test_file"):
        name = getattr(flags, flag)
        path = Path(name).absolute()
        if not name:
            continue
        if path.is_dir() or not path.parent.is_dir():
            problem = "is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
            raise UserError(f"--{flag} {name}: {problem}; give a file in a folder that exists")
        if path in taken:
            raise UserError(
                f"--{flag} {name}: is the file of --{taken[path]} too; each set has one"
            )
        taken[path] = flag


def make_data(flags: argparse.Namespace) -> dict[str, Fake2DDataset]:
    """Load or simulate the training, validation and test set; items are (image, target)."""
    from utils.data import KeypointDetectionFake2DDataset, SegmentationFake2DDataset

    wanted = {
        "train": (flags.L_train, flags.train_file),
        "validation": (flags.L_validate, flags.validation_file),
        "test": (flags.L_test, flags.test_file),
    }
    make: Callable[..., Fake2DDataset] = SegmentationFake2DDataset
    if flags.objective == "keypoints":
        make = functools.partial(KeypointDetectionFake2DDataset, with_centres=False)
    shape = (IMAGE_EDGE, IMAGE_EDGE)
    return {
        name: make(count, SEEDS[name], file or None, shape=shape)
        for name, (count, file) in wanted.items()
    }


def describe_set(data: Fake2DDataset) -> dict[str, Any]:
    """Return file (None in memory), seed and number of samples of a data set."""
    file = None if data.h5path is None else str(data.h5path)
    return {"file": file, "seed": data.seed, "samples": len(data)}


def typical_spacing(data: Fake2DDataset, samples: int = 32) -> list[float]:
    """Return the columns' distance in pixels along x and y: the median over the first samples.

    They are simulated again; a file of another version holds others of the same distribution.
    """
    import numpy as np

    from utils.simulation.image import image_rng, simulate_image

    rngs = [image_rng(data.seed, i) for i in range(min(samples, len(data)))]
    scale = np.median([simulate_image(data.config, rng).parameters.scale for rng in rngs])
    return [float(scale) * data.config.column_distance] * 2


def restore_model(directory: Path) -> tuple[nn.Module, int]:
    """Return the network of the best checkpoint kept, else of the last, and its epoch."""
    from models import ModelConfig, build_model
    from utils.checkpoints.loading import load_checkpoint

    state = load_checkpoint(directory)
    model = build_model(ModelConfig.from_dict(state["model_config"]))
    model.load_state_dict(state["model_state"])
    return model, state["epoch"]


def score_keypoints(model: nn.Module, data: Fake2DDataset) -> dict[str, float | None]:
    """Return precision, recall and mean distance of the peaks that ``model`` puts on all images."""
    import torch

    from utils.evaluation.keypoints import KeypointScores, find_peaks, match_points
    from utils.training.loop import as_stacks

    model.eval()
    device = next(model.parameters()).device
    total = KeypointScores()
    with torch.inference_mode():
        for index in range(len(data)):
            logits = as_stacks(model(data[index][0][None].to(device)))[-1]
            heat_map = torch.sigmoid(logits.float())[0, 0].cpu().numpy()
            total += match_points(find_peaks(heat_map), data.centres(index))
    return total.metrics()


def summarise(record: Mapping[str, Any]) -> str:
    """Return the line that tells a person about the test."""
    shown = ("iou", "dice", "total_error", "precision", "recall", "mean_distance")
    words = [f"{name} {record[name]:.3f}" for name in shown if record.get(name) is not None]
    return f"test, network of epoch {record['epoch']}: {', '.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
