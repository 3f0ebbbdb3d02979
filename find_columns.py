r"""Find the single columns in a mask, a probability map or labels, and their places in the lattice.

    python find_columns.py --input brain_mask.tif
    python find_columns.py --input brain_probabilities.nrrd --voxel_size 1,0.5,0.5 \
        --origin 214 --dorsal 0,-1,0 --hemisphere R
    python find_columns.py --input brain_mask.tif --corrections brain_columns.csv --overwrite

Writes NAME_labels.tif (each column with its own number), NAME_columns.csv (a row a column: place,
axis, size, p and q), NAME_paths.csv (points along each column) and NAME_lattice.json (what is free,
how sure the diagonal is, defects); and as pictures NAME_lattice.png (the map of the lattice) and
NAME_columns.png (planes and a view in 3D). predict.py --columns does the same with its own mask.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, exit_status
from utils.flags import FlagParser, voxel_ranges, voxel_size


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
    add("--no-preview", action="store_true",
        help="draw no pictures: neither NAME_lattice.png nor NAME_columns.png")
    add("--corrections", metavar="FILE",
        help="what a person mended: labels edited in napari or Fiji, which become the columns; or "
        "rows of NAME_columns.csv whose p and q stay and from which the rest of the lattice grows")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add = parser.add_argument_group("what to read").add_argument
    add("--channel", type=int, metavar="INT", help="channel, from 0; needed if there are several")
    add("--voxel_size", type=voxel_size, metavar="Z,Y,X",
        help="edge of a voxel in micrometres, where the file does not tell or is wrong")
    add("--crop", type=voxel_ranges, metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="only this box, in voxels from 0; places stay those in the file")
    add("--key", metavar="STR", help="name of the array inside HDF5 or Zarr")
    add("--index", type=int, metavar="INT", help="time point, from 0")
    add("--threshold", type=float, metavar="FLOAT",
        help="value from which a voxel belongs to a column; default: 0.5 of probabilities, Otsu's "
        "threshold of grey values")
    add("--memory", type=float, metavar="GB",
        help="most memory to take, in GB (1e9 bytes); default: most of what is free")
    add = parser.add_argument_group("columns and lattice").add_argument
    add("--measure", type=channel_numbers, default=(), metavar="C,C",
        help="channels of the input whose mean and peak in each column are measured")
    add("--origin", type=int, metavar="COLUMN_ID", help="the column that becomes p = q = 0")
    add("--dorsal", type=direction, metavar="X,Y,Z",
        help="direction in the file's space along which p + q runs")
    add("--hemisphere", choices=("L", "R"), help="side of the brain, which settles the hand")
    # fmt: on
    return parser.parse_args(arguments)


def channel_numbers(text: str) -> tuple[int, ...]:
    """Return the channels that ``text`` lists; ArgumentTypeError for anything else."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: give channels from 0, such as 0,1")
    return tuple(int(part) for part in text.split(","))


def direction(text: str) -> tuple[float, ...]:
    """Return the direction that ``text`` writes; ArgumentTypeError for anything else."""
    try:
        vector = tuple(float(part) for part in text.split(","))
    except ValueError:
        vector = ()
    if len(vector) != 3 or not 0 < math.hypot(*vector) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a direction x,y,z, such as 0,-1,0")
    return vector


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit status."""
    flags = parse_flags(arguments)
    return exit_status("find_columns.py", lambda: find_columns(flags))


def find_columns(flags: argparse.Namespace) -> None:
    """Do the work; raises UserError for what a user can mend."""
    from utils.columns.corrections import read_corrections
    from utils.columns.finding import Landmarks, column_files, find_in_stack
    from utils.stacks import check_input, crop_stack, open_stack, split_ending

    source = Path(flags.input)
    check_input(source)
    default = source.with_name(f"{split_ending(source)[0]}_labels.tif")
    files = column_files(Path(flags.output or default), pictures=not flags.no_preview)
    check_files(source, files, overwrite=flags.overwrite)
    choice = {name: getattr(flags, name) for name in ("voxel_size", "key", "index")}
    landmarks = Landmarks(flags.origin, flags.dorsal, flags.hemisphere)
    with open_stack(source, channel=flags.channel, **choice) as whole:
        stack = whole if flags.crop is None else crop_stack(whole, flags.crop)
        channels = {}
        for number in flags.measure:
            with open_stack(source, channel=number, **choice) as other:
                channels[number] = (
                    other if flags.crop is None else crop_stack(other, flags.crop)
                ).read()
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
            from utils.figures.columns import save_column_pictures

            save_column_pictures(found, stack, files, source.name)
    print("\n".join(f"wrote {path}" for path in files.values()))


def check_files(source: Path, files: dict[str, Path], *, overwrite: bool) -> None:
    """Raise UserError if an output cannot be written, or is the input."""
    from utils.stacks import check_output
    from utils.stacks.writing import check_free

    check_output(files["labels"], overwrite=overwrite)
    for path in files.values():
        check_free(path, overwrite=overwrite)
        if path.resolve() == source.resolve():
            raise UserError(f"{path}: is the input itself; name another file with --output")


if __name__ == "__main__":
    sys.exit(main())
