"""Train a 3D network to segment visual columns, on volumes that ./gen_data.sh has made.

    ./gen_data.sh
    python train_basic_3dunet.py --experiment_title first_try --start_channels 8 --batch_size 8
    python train_basic_3dunet.py --arch stacked_unet --num_stacks 2 --experiment_title two_stacks
    python train_basic_3dunet.py --on_the_fly --augment flips --experiment_title endless

Records, checkpoints and pictures go to <log_path>/<experiment_title>/. All flags and their defaults
stand in parse_flags, right below. Exit status: 0 when training ends as planned, 1 when it fails,
2 for a mistake in the flags or the data files, 130 when it is interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import exit_status
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
    check_patches,
    experiment_directory,
    network_settings,
    resolve_files,
)
from utils.training.processes import devices_number, let_waiting_threads_sleep
from utils.training.recipes import RECIPES, parse_training_flags

if TYPE_CHECKING:
    from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exits with status 2 and one line for those that cannot be read."""
    parser = FlagParser(description="Train a 3D network to segment visual columns.")

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
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True,
        help="write curves, slices and hyperparameters for TensorBoard into the log directory")
    add("--seed", default=0, type=int, metavar="INT",
        help="of the weights, the patches and their order; to the same bits with --deterministic")

    add = parser.add_argument_group("data").add_argument
    add("--data_dir", default="./vol_data", metavar="STR",
        help="folder in which bare file names are looked for")
    add("--train_files", nargs="+", metavar="FILE",
        default=[f"vol_train_set{i}.h5" for i in (1, 2, 3, 4)],
        help="files to train on")
    add("--val_files", nargs="+", metavar="FILE", default=["vol_val_set.h5"],
        help="files to validate on")
    add("--patch_size", default=64, type=int, metavar="INT",
        help="edge of the training patches, in voxels")
    add("--background_threshold", default=0.95, type=float, metavar="FLOAT",
        help="largest share of background in a patch, 0..1")
    add("--patches_per_epoch", default=None, type=int, metavar="INT",
        help="training patches an epoch; when not given one a sample, and 2048 with --on_the_fly")
    add("--augment", default="none", choices=AUGMENT_LEVELS,
        help="change training patches at random: flips, axis permutations and turns by 90 degrees; "
        "full adds deformation, blur, noise and grey values")
    add("--on_the_fly", action="store_true",
        help="train on volumes simulated meanwhile, each anew, with the parameters of the first of "
        "--val_files; --train_files are not read")
    add("--patches_per_volume", default=8, type=int, metavar="INT",
        help="patches cut from each volume with --on_the_fly")
    add("--num_workers", default=2, type=int, metavar="INT",
        help="processes that load or simulate (at most one a core); 0: none but the training's")

    add = parser.add_argument_group("network").add_argument
    add("--arch", default="unet", choices=ARCHITECTURES,
        help="one U-Net, or several in a row with intermediate supervision")
    add("--depth", default=4, type=int, metavar="INT",
        help="layers in each half of the U-Net; depth - 1 poolings")
    add("--start_channels", default=4, type=int, metavar="INT",
        help="channels at full resolution, doubled by each pooling")
    add("--stem_stride", default=1, type=int, metavar="INT",
        help="edge of the blocks of voxels that the network works on; 1 is full resolution")
    add("--num_stacks", default=1, type=int, metavar="INT",
        help="U-Nets in a row, for --arch stacked_unet")
    add("--conv_kernel_size", default=3, type=int, metavar="INT",
        help="edge of the convolution kernels, in voxels; odd")
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
        help="patches a step, on all devices together")
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
        "boundary_weighted_dice weighs voxels around the labels")
    add("--boundary_weight", default=1.0, type=float, metavar="FLOAT",
        help="weight of voxels just outside the mask in boundary_weighted_dice; 1 is plain dice")
    add("--boundary_thickness", default=1, type=int, metavar="INT",
        help="how far outside the mask that weight reaches, in voxels")
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
        help="the same order in each epoch; without effect on --on_the_fly")

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
    """Check, prepare, train; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    let_waiting_threads_sleep()
    flags = parse_flags(arguments)
    return exit_status(
        "train_basic_3dunet.py", lambda: run(flags), "interrupted before training began"
    )


def run(flags: argparse.Namespace) -> int:
    """Train as ``flags`` say; raises ValueError or OSError as long as nothing has been written."""
    options = TrainingOptions.from_flags(flags)
    settings = network_settings(flags, spatial_dims=3)
    check_patch_size(flags.patch_size, flags.depth, flags.batch_size, flags.stem_stride)
    check_patches(flags.background_threshold, flags.patches_per_epoch)
    directory = experiment_directory(flags.log_path, flags.experiment_title, flags.resume)
    check_counts(flags, "patches_per_volume")
    train_files = []
    if not flags.on_the_fly:
        train_files = resolve_files(flags.train_files, flags.data_dir, "--train_files")
    valid_files = resolve_files(flags.val_files, flags.data_dir, "--val_files")

    import torch

    from models import ModelConfig, build_model, count_parameters
    from utils.data import AugmentedDataset, SegmentationFake3DDataset
    from utils.devices import choose_compute
    from utils.training.compiling import choose_compiling
    from utils.training.determinism import be_deterministic, recorded_threads
    from utils.training.ending import record_exit
    from utils.training.fabric import choose_processes, make_fabric
    from utils.training.loop import train
    from utils.training.losses import build_loss, measure_foreground
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

    train_data = make_training_data(flags, train_files, valid_files[0])
    # Always the same validation patches, so that runs of different seeds can be compared.
    patches = {"patch_size": flags.patch_size, "background_threshold": flags.background_threshold}
    valid_data = SegmentationFake3DDataset(valid_files, seed=0, fixed=True, **patches)
    trained_on = train_data
    if flags.augment != "none" and not flags.on_the_fly:
        trained_on = AugmentedDataset(train_data, flags.augment, flags.seed)
    foreground = measure_foreground(train_data) if options.loss_type == "weighted_bce" else None
    loss = build_loss(options, foreground)
    resumption = find_resumption(directory) if flags.resume else None
    compiling = choose_compiling(options, compute.device)
    fabric = make_fabric(compute, options.seed, processes, deterministic=options.deterministic)
    model = build_model(model_config)

    facts = {
        "model_config": model_config.to_dict(),
        "normalizer": train_data.normalizer.to_dict(),
        "spacing_voxels": typical_spacing(valid_data if flags.on_the_fly else train_data),
        "patch_size": flags.patch_size,
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
        data={
            "train": describe_training_data(train_data, train_files),
            "validation": describe_files(valid_files),
        },
        about={
            "data": count_samples(train_data, valid_data, flags.no_shuffle),
            "patches": f"{len(train_data):,} of {flags.patch_size}^3 voxels in a training epoch, "
            f"augmentation {flags.augment}",
        },
        resumption=resumption,
    )
    return record_exit(
        experiment,
        lambda: train(
            *(fabric, model, loss, trained_on, valid_data, options, experiment, facts),
            compiling=compiling,
            resumption=resumption,
        ),
    )


def make_training_data(
    flags: argparse.Namespace, train_files: Sequence[Path], valid_file: Path
) -> SegmentationFake3DDataset | OnTheFly3DDataset:
    """Return the training patches: of files, or of volumes like those of ``valid_file``.

    Those on the fly come augmented.
    """
    from utils.data import OnTheFly3DDataset, SegmentationFake3DDataset
    from utils.storage import VolumeFile

    patches = {
        "patch_size": flags.patch_size,
        "background_threshold": flags.background_threshold,
        "seed": flags.seed,
    }
    if not flags.on_the_fly:
        return SegmentationFake3DDataset(
            train_files, patches_per_epoch=flags.patches_per_epoch, **patches
        )
    with VolumeFile(valid_file) as file:
        config = file.config
    return OnTheFly3DDataset(
        config,
        patches_per_epoch=flags.patches_per_epoch or 2048,
        patches_per_volume=flags.patches_per_volume,
        augment=flags.augment,
        **patches,
    )


def describe_training_data(
    data: SegmentationFake3DDataset | OnTheFly3DDataset, files: Sequence[Path]
) -> list[dict[str, Any]] | dict[str, Any]:
    """Return what is known of the training files, or all that decides the volumes on the fly."""
    if files:
        return describe_files(files)
    return {
        "on_the_fly": data.config.to_dict(),
        "seed": data.seed,
        "patches_per_volume": data.patches_per_volume,
    }


def count_samples(
    train_data: SegmentationFake3DDataset | OnTheFly3DDataset,
    valid_data: SegmentationFake3DDataset,
    no_shuffle: bool,
) -> str:
    """Return words on how much there is to train and to validate on, and which flags are idle."""
    valid = f"{valid_data.num_samples:,} validation samples in"
    if hasattr(train_data, "files"):
        files = f"{len(train_data.files)} and {len(valid_data.files)} files"
        return f"{train_data.num_samples:,} training and {valid} {files}"
    each = f"{train_data.patches_per_volume} patches of each"
    idle = ", --no_shuffle has no effect" * no_shuffle
    simulated = f"training volumes simulated on the fly, {each} (--train_files are not read{idle})"
    return f"{simulated}; {valid} {len(valid_data.files)} files"


def describe_files(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return name, seed and number of samples of each data file."""
    from utils.storage import VolumeFile

    described = []
    for path in paths:
        with VolumeFile(path) as file:
            described.append({"file": str(path), "seed": file.seed, "samples": len(file)})
    return described


def typical_spacing(data: SegmentationFake3DDataset, samples: int = 256) -> list[float]:
    """Return the columns' spacing in voxels along x, y, z: the median over even samples."""
    import numpy as np

    from utils.storage import VolumeFile

    chosen = np.unique(np.linspace(0, data.num_samples - 1, samples).round().astype(int))
    rows = [data.locate(int(i)) for i in chosen]
    spacings = []
    for path in dict.fromkeys(path for path, _ in rows):
        with VolumeFile(path) as file:
            spacings += [
                np.multiply(file.parameters(row).spacing, file.shape)
                for owner, row in rows
                if owner == path
            ]
    return np.median(spacings, axis=0).tolist()


if __name__ == "__main__":
    sys.exit(main())
