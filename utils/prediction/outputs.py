"""Files of a prediction that are apart from each other, in formats that fit into the memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

from utils.errors import UserError
from utils.prediction.memory import DTYPES, writing_memory
from utils.stacks import Stack, check_output, split_ending


def check_apart(source: Path, outputs: Mapping[str, Path]) -> None:
    """Raise UserError if two files are one, or one is in the (Zarr) folder that another one is."""
    for one, other in itertools.permutations([source, *outputs.values()], 2):
        if one.resolve() == other.resolve():
            what = "is the input itself" if source in (one, other) else "stands for two outputs"
            raise UserError(
                f"{other}: {what}: --input, --output and --probabilities must be different files"
            )
        if other.resolve() in one.resolve().parents:
            raise UserError(f"{one}: lies within {other}, which is another of the files given")


def fit_outputs(
    stack: Stack, outputs: Mapping[str, Path], room: int, *, viewed: bool, overwrite: bool
) -> tuple[dict[str, Path], list[str]]:
    """Return the outputs, as OME-Zarr those that would take more than ``room`` bytes, and notes.

    Those are NRRD and NIfTI, which are written as a whole; where outputs are ``viewed``, because
    nobody asked for their format, also TIFFs whose map a viewer could not hold in as much memory.
    """
    fitting, notes = {}, []
    for name, path in outputs.items():
        fitting[name] = path
        shown = math.prod(stack.shape) * DTYPES["probabilities"].itemsize if viewed else 0
        needed = max(writing_memory(stack, name, path), shown)
        if needed > room:
            fitting[name] = path.with_name(split_ending(path)[0] + ".ome.zarr")
            check_output(fitting[name], overwrite=overwrite)
            notes.append(
                f"note: {path.name} would take {needed / 1e9:.1f} GB of memory at once; writing "
                f"{fitting[name].name} instead"
            )
    check_apart(stack.path, fitting)
    return fitting, notes
