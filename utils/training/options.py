"""From a training script's flags to frozen, checked options; imports nothing heavy.

The flags and their defaults stand in the scripts. Every message names the flag as the user typed
it, the value, and what would be right.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from utils.errors import UserError
from utils.flags import is_labelled

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "32", "bf16")
CHOICES = {
    "checkpoint_policy": ("last", "best", "all"),
    "objective": ("segmentation", "keypoints"),
    "augment": ("none", "flips", "stains", "full"),
    "preset": ("reference", "wide"),
    "arch": ("unet", "stacked_unet"),
    "freeze": ("encoder",),
    "optimizer": ("adam", "adamw", "rmsprop"),
    "loss_type": ("dice", "bce", "weighted_bce", "bce_dice", "boundary_weighted_dice"),
    "lr_schedule": ("plateau", "cosine", "onecycle"),
    "device": DEVICES,
    "precision": PRECISIONS,
    "compile": ("auto", "on", "off"),
}
"""The words that a flag takes."""
AT_LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "early_stopping_patience", "boundary_thickness"), 1),
    **dict.fromkeys(("devices", "num_nodes", "start_channels", "stem_stride", "num_stacks"), 1),
    **dict.fromkeys(("patch_size", "patches_per_epoch", "patches_per_volume"), 1),
    **dict.fromkeys(("L_train", "L_validate", "L_test", "volumes", "window"), 1),
    **dict.fromkeys(("lr_scheduler_patience", "num_workers", "MIN_PARAMS"), 0),
    **dict.fromkeys(("weight_decay", "boundary_weight", "surface_tolerance"), 0.0),
}
"""The smallest value of a flag; infinity and NaN are none."""
RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "ema": (lambda value: 0 <= value < 1, "lie in 0..1 (1 excluded), such as 0.999"),
    "overlap": (lambda value: 0 <= value < 1, "lie in 0..1 (1 excluded), such as 0.25"),
    "max_minutes": (lambda value: 0 < value < math.inf, "be larger than 0, such as 30"),
    "memory": (lambda value: 0 < value < math.inf, "be larger than 0 and finite, in GB"),
    "start_lr": (lambda value: 0 < value < math.inf, "be larger than 0, such as 1e-3"),
    **dict.fromkeys(
        ("lr_scheduler_factor", "mix", "val_share"),
        (lambda value: 0 < value < 1, "lie between 0 and 1 (both excluded), such as 0.2"),
    ),
    "scale": (lambda value: value == "auto" or 0.05 <= value <= 20, "be auto or lie in 0.05..20"),
    "threshold": (
        lambda value: value == "auto" or 0 < value <= 1,
        "be auto or lie above 0 and up to 1",
    ),
    "background_threshold": (lambda value: 0 <= value <= 1, "lie in 0..1, such as 0.95"),
    "depth": (lambda value: 1 <= value <= 16, "lie in 1..16, such as 4"),
    "conv_kernel_size": (lambda value: value > 0 and value % 2 == 1, "be odd, such as 3"),
}
"""Whether another flag's value is right, and what it must do."""


@dataclass(frozen=True)
class TrainingOptions:
    """What governs a training run apart from network and data.

    The fields are flags, which ``utils.training.flag_table`` explains; None is ``auto`` for
    ``devices`` and no limit for ``max_minutes``. Raises UserError for a value outside its range.
    """

    epochs: int = 100
    max_minutes: float | None = None
    batch_size: int = 32
    early_stopping_patience: int = 15
    checkpoint_policy: str = "best"
    optimizer: str = "adam"
    loss_type: str = "dice"
    boundary_weight: float = 1.0
    boundary_thickness: int = 1
    weight_decay: float = 0.0
    start_lr: float = 1e-3
    lr_schedule: str = "plateau"
    lr_scheduler_factor: float = 0.2
    lr_scheduler_patience: int = 3
    ema: float = 0.0
    no_shuffle: bool = False
    tensorboard: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    deterministic: bool = False
    devices: int | None = None
    num_nodes: int = 1
    num_workers: int = 0

    def __post_init__(self) -> None:
        from utils.simulation.streams import check_seed

        check_values(vars(self))
        check_seed(self.seed, "--seed")
        if self.max_minutes is not None and self.deterministic:
            raise UserError(
                f"--max_minutes {self.max_minutes}: where the clock ends it, a training depends on "
                "the machine's speed; leave it out with --deterministic, and say --epochs"
            )

    @classmethod
    def from_flags(cls, flags: argparse.Namespace) -> Self:
        """Take the fields from the flags of the same names; an absent flag keeps its default."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(flags, name) for name in names if hasattr(flags, name)})


LABEL_FLAGS = ("channel", "axes", "voxel_size", "ignore_label", "scale")
"""How labelled stacks are read."""
LIVE_FLAGS = ("preset", "presets", "config")
"""What volumes on the fly are."""
NETWORK_FLAGS = {
    **{name: name for name in ("arch", "depth", "start_channels", "stem_stride", "num_stacks")},
    "conv_kernel_size": "conv_kernel_size",
    "residual": "resblocks",
}
"""The flag of each field of a network's configuration."""


def let_waiting_threads_sleep() -> None:
    """Ask OpenMP, before torch loads it, that a thread that waits for others does not spin.

    Where anything else runs on the cores, each step of a network otherwise waits for a time slice
    of its slowest thread (measured: up to ten times as long). OMP_WAIT_POLICY wins where it is set.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def check_values(values: Mapping[str, Any]) -> None:
    """Raise UserError for the first flag in ``values`` whose value is none of those it takes."""
    for name, value in values.items():
        if value is None:
            continue
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"--{name} {value!r}: must be one of {', '.join(CHOICES[name])}")
        if name in AT_LEAST and not AT_LEAST[name] <= value < math.inf:
            raise UserError(f"--{name} {value}: must be at least {AT_LEAST[name]}")
        if name in RANGES:
            is_right, rule = RANGES[name]
            if not is_right(value):
                raise UserError(f"--{name} {value}: must {rule}")


def network_settings(flags: argparse.Namespace, spatial_dims: int) -> dict[str, Any]:
    """Return the keyword arguments of ``models.ModelConfig`` that the flags ask for.

    Raises UserError for a flag, whatever it is about, that has a value it cannot have.
    """
    check_values(vars(flags))
    settings = {field: getattr(flags, flag) for field, flag in NETWORK_FLAGS.items()}
    return {**settings, "spatial_dims": spatial_dims}


def check_patch_size(
    patch_size: int,
    depth: int,
    patches_a_step: int,
    stem_stride: int = 1,
    what: str = "--patch_size",
) -> None:
    """Raise UserError unless a patch (edge in voxels) survives stem and poolings of the network.

    Where a device sees a single patch in a step (``patches_a_step`` 1), the lowest level needs more
    than one voxel for its batch norm. ``what`` is the patch's name in the message.
    """
    smallest = stem_stride * 2 ** (depth - 1)
    network = f"--depth {depth}" + f" and --stem_stride {stem_stride}" * (stem_stride > 1)
    if patch_size < smallest:
        raise UserError(f"{what} {patch_size}: must be at least {smallest} with {network}")
    if patches_a_step == 1 and patch_size == smallest:
        raise UserError(
            f"a single patch a step: with {what} {patch_size} and {network} one voxel is left at "
            "the lowest level, too few for batch norm; give each device at least two patches a "
            "step (--batch_size, and as many in an epoch), or lower --depth"
        )


def experiment_directory(log_path: str | Path, title: str, resume: bool = False) -> Path:
    """Return ``log_path/title``, where a new experiment may be made; touches nothing.

    Raises UserError for a title that is no plain name, and an experiment that exists already,
    unless the run shall ``resume`` that one.
    """
    plain = title.strip() == title and title not in ("", ".", "..") and title.isprintable()
    if not plain or set(title) & set('/\\:*?"<>|') or len(title.encode()) > 200:
        raise UserError(
            f"--experiment_title {title!r}: must be a plain name of 1 to 200 characters without "
            "slashes, such as my_experiment"
        )
    directory = Path(log_path) / title
    if directory.exists() and not resume:
        raise UserError(
            f"the experiment {directory} exists already and is left as it is; choose another "
            "--experiment_title or --log_path, go on with it by --resume, or remove it"
        )
    return directory


def resolve_files(names: Iterable[str], data_dir: str | Path, flag: str) -> list[Path]:
    """Return the data files that ``names`` mean; a bare name is looked for in ``data_dir``.

    Raises UserError that names the first file that is not there and how to make it.
    """
    paths = [Path(name) if Path(name).name != name else Path(data_dir) / name for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"the data file {path} does not exist; run ./gen_data.sh to make the data sets, or "
                f"name others, or labelled stacks, with {flag} (or their folder with --data_dir)"
            )
    return paths


class Sources(NamedTuple):
    """What a flag for data files names."""

    files: list[Path]  # of simulated volumes
    labelled: list[str]  # folders and pairs, see :func:`utils.data.labelled.find_pairs`


def find_sources(flags: argparse.Namespace) -> tuple[Sources, Sources]:
    """Return what --train_files and --val_files name; files of volumes are looked for.

    Raises UserError for a file that is not there, and for flags that do not go together.
    """
    train, valid = flags.train_files or (), flags.val_files or ()
    ours, others = ([name for name in names if is_labelled(name)] for names in (train, valid))
    volumes, checked = ([n for n in names if not is_labelled(n)] for names in (train, valid))
    check_label_flags(flags, bool(ours), bool(ours or others))
    if ours and flags.mix is None and (volumes or flags.on_the_fly):
        raise UserError(
            "--train_files: labelled stacks beside simulated volumes: say with --mix, such as 0.5, "
            "which share of each batch is simulated"
        )
    if flags.mix is not None and not ours:
        raise UserError("--mix: is a share beside labelled stacks; --train_files names none")
    live = [name for name in LIVE_FLAGS if getattr(flags, name) is not None]
    if live and not flags.on_the_fly and (volumes or flags.mix is None):
        raise UserError(
            f"--{live[0]}: is for volumes simulated meanwhile; give --on_the_fly too, or --mix "
            "beside labelled stacks and no files of volumes to mix in"
        )
    if checked and others:
        raise UserError("--val_files: give labelled stacks or files of simulated volumes, not both")
    files = [] if flags.on_the_fly else resolve_files(volumes, flags.data_dir, "--train_files")
    to_check = resolve_files(checked, flags.data_dir, "--val_files")
    return Sources(files, ours), Sources(to_check, others)


def check_label_flags(flags: argparse.Namespace, trained: bool, labelled: bool) -> None:
    """Raise UserError for a flag about labelled stacks where there are none.

    ``trained`` says whether some are trained on, ``labelled`` whether there are any.
    """
    given = [name for name in LABEL_FLAGS if getattr(flags, name) not in (None, "auto")]
    if given and not labelled:
        raise UserError(
            f"--{given[0]}: is for labelled stacks, and none are named; give a folder with images/ "
            "and labels/, or IMAGE=LABELS"
        )
    names = getattr(flags, "val_files", None) or getattr(flags, "validation_file", None)
    if flags.val_share is not None and (names or not trained):
        raise UserError(
            "--val_share: holds a part of labelled training stacks out, where no other stacks are "
            "named to validate on; leave it out"
        )


def live_shares(flags: argparse.Namespace) -> dict[str, float]:
    """Return the share of each preset that --preset or --presets asks for; empty if neither does.

    Raises UserError for both flags at once, and shares that cannot be read.
    """
    if flags.preset and flags.presets:
        raise UserError("--preset and --presets: give one of them")
    if not flags.presets:
        return {flags.preset: 1.0} if flags.preset else {}
    try:
        pairs = [part.split("=") for part in flags.presets.split(",")]
        return {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        message = f"--presets {flags.presets!r}: give shares, such as wide=0.7,reference=0.3"
        raise UserError(message) from None


def describe_network(flags: argparse.Namespace, parameters: int) -> str:
    """Return a line on the network for the log."""
    parts = [f"{flag} {getattr(flags, flag)}" for flag in NETWORK_FLAGS.values()]
    idle = " (--num_stacks has no effect on --arch unet)"
    forgotten = flags.arch == "unet" and flags.num_stacks > 1
    return f"{', '.join(parts)}: {parameters:,} parameters" + idle * forgotten


def describe_training(options: TrainingOptions) -> str:
    """Return a line on loss, optimiser, schedule and length of training for the log."""
    names = "loss_type optimizer start_lr lr_schedule batch_size epochs max_minutes ema seed"
    values = {name: getattr(options, name) for name in names.split()}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
