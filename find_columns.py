r"""Find the single columns in a mask, a probability map or labels, and their places in the lattice.

    python find_columns.py --input brain_mask.tif
    python find_columns.py --input brain_probabilities.nrrd --voxel_size 1,0.5,0.5 \
        --origin 214 --dorsal 0,-1,0 --hemisphere R
    python find_columns.py --input brain_mask.tif --image brain.tif --measure 0,1 --colour mean_1
    python find_columns.py --input brain_mask.tif --corrections brain_columns.csv --overwrite

Writes NAME_labels.tif (each column with its own number), NAME_columns.csv (a row a column: place,
axis, size, p and q), NAME_paths.csv (points along each column) and NAME_lattice.json (what is free,
how sure the diagonal is, defects); and as pictures NAME_lattice.png (the map of the lattice) and
NAME_columns.png (planes and a view in 3D). predict.py --columns does the same with its own mask.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, exit_status
from utils.flags import FlagParser, add_column_flags, add_stack_flags

if TYPE_CHECKING:
    from utils.stacks import Stack

CHOICES = ("voxel_size", "key", "index", "series", "axes", "crop")  # of open_stack, of the input


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags; exit with status 2 for those that cannot be read."""
    parser = FlagParser(prog="find_columns.py", description=__doc__.splitlines()[0])
    # fmt: off
    add = parser.add_argument_group("files").add_argument
    add("--input", required=True, metavar="FILE",
        help="mask, probability map, labels or grey values, in any format of predict.py")
    add("--output", metavar="FILE",
        help="the labels, in the format of its ending; default: NAME_labels.tif beside the input; "
        "tables stand beside them")
    add("--image", metavar="FILE",
        help="stack of the same size, whose channels --measure measures, and which the pictures "
        "show; default: the input")
    add("--no-preview", action="store_true",
        help="draw no pictures: neither NAME_lattice.png nor NAME_columns.png")
    add("--corrections", metavar="FILE",
        help="what a person mended: labels edited in napari or Fiji, which become the columns; or "
        "rows of NAME_columns.csv whose p and q stay and from which the rest of the lattice grows")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add = add_stack_flags(parser)
    add("--threshold", type=float, metavar="FLOAT",
        help="value from which a voxel belongs to a column; default: 0.5 of probabilities, Otsu's "
        "threshold of grey values")
    add("--memory", type=float, metavar="GB",
        help="most memory to take, in GB (1e9 bytes); default: most of what is free")
    # fmt: on
    add_column_flags(parser, "columns and lattice")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    return exit_status("find_columns.py", lambda: find_columns(flags))


def find_columns(flags: argparse.Namespace) -> None:
    """Do the work; raises UserError for what a user can mend."""
    from utils.columns.corrections import read_corrections
    from utils.columns.finding import Landmarks, column_files, find_in_stack
    from utils.columns.table import check_colour
    from utils.stacks import check_input, open_stack, split_ending

    source, image = Path(flags.input), Path(flags.image or flags.input)
    check_input(source)
    measured = flags.measure or ((0,) if flags.image else ())
    check_colour(flags.colour, measured)
    default = source.with_name(f"{split_ending(source)[0]}_labels.tif")
    files = column_files(Path(flags.output or default), pictures=not flags.no_preview)
    check_files((source, image), files, overwrite=flags.overwrite)
    choice = {name: getattr(flags, name) for name in CHOICES}
    landmarks = Landmarks(flags.origin, flags.dorsal, flags.hemisphere)
    with ExitStack() as opened:

        def enter(path: Path, channel: int | None) -> Stack:
            given = choice if path == source else {"crop": flags.crop}
            return opened.enter_context(open_stack(path, channel=channel, **given))

        stack = enter(source, flags.channel)
        channels = {number: enter(image, number) for number in measured}
        for channel in channels.values():
            if channel.shape != stack.shape:
                raise UserError(
                    f"--image {image}: has {channel.shape} voxels (x, y, z), the input "
                    f"{stack.shape}"
                )
        if warning := stack.warning():
            print(f"warning: {warning}")
        corrections = None
        if flags.corrections is not None:
            corrections = read_corrections(Path(flags.corrections), stack.shape)
        found = find_in_stack(
            stack,
            files,
            threshold=flags.threshold,
            channels=channels,
            landmarks=landmarks,
            corrections=corrections,
            memory=flags.memory,
            script=__file__,
        )
        print("\n".join(found.notes))
        if not flags.no_preview:
            from utils.figures.columns import save_lattice_map, save_planes

            shown = channels[measured[0]] if flags.image else stack
            save_lattice_map(found, files["map"], source.name, flags.colour)
            save_planes(found, shown, files["planes"], source.name)
    print("\n".join(f"wrote {path}" for path in files.values()))


def check_files(sources: Sequence[Path], files: dict[str, Path], *, overwrite: bool) -> None:
    """Raise UserError if an output cannot be written, or is one of the ``sources``."""
    from utils.stacks import check_output
    from utils.stacks.endings import check_free

    check_output(files["labels"], overwrite=overwrite)
    for path in files.values():
        check_free(path, overwrite=overwrite)
        if path.resolve() in [source.resolve() for source in sources]:
            raise UserError(f"{path}: is the input itself; name another file with --output")


if __name__ == "__main__":
    sys.exit(main())
