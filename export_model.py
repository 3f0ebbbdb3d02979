r"""Make a trained network part of the program: a small file and a card that says what it is.

    python export_model.py --checkpoint logs/my_experiment --pretrained columns3d
    python evaluate.py --checkpoint columns3d --data vol_data/vol_val_set.h5 --output scores
    python export_model.py --checkpoint logs/my_experiment --pretrained columns3d \
        --evaluation scores --overwrite

Writes assets/pretrained/NAME.pth (kernels in bfloat16, less than 3,000,000 bytes, nothing but what
prediction needs) and NAME.md. From then on --checkpoint NAME means this network. The card's numbers
come from the log directory and from the evaluation's summary.json. Exit status 2 for a mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import exit_status
from utils.flags import FlagParser


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="export_model.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    # fmt: off
    add("--checkpoint", required=True, metavar="PATH",
        help="log directory of an experiment (its best.pth, else its last.pth), or a .pth in it")
    add("--pretrained", required=True, metavar="NAME",
        help="name of the network; replaces a path wherever a checkpoint is asked for")
    add("--evaluation", metavar="FOLDER",
        help="folder of evaluate.py's results of this network; without it the card has no scores")
    add("--hardware", metavar="STR",
        help="for the card: the machine it was trained on, in words (default: what was recorded)")
    add("--output", metavar="FOLDER", help="other folder than assets/pretrained")
    add("--overwrite", action="store_true", help="replace a network of this name")
    # fmt: on
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    return exit_status("export_model.py", lambda: export(flags))


def export(flags: argparse.Namespace) -> None:
    """Write the network and its card; raises UserError for what a user can mend."""
    from utils.checkpoints.loading import load_checkpoint, log_directory
    from utils.checkpoints.pretrained import FOLDER, save_pretrained

    paths = save_pretrained(
        flags.pretrained,
        load_checkpoint(flags.checkpoint),
        log_directory(flags.checkpoint),
        None if flags.evaluation is None else Path(flags.evaluation),
        folder=FOLDER if flags.output is None else Path(flags.output),
        hardware=flags.hardware,
        overwrite=flags.overwrite,
    )
    print("\n".join(f"wrote {path}" for path in paths))


if __name__ == "__main__":
    sys.exit(main())
