"""Which axis of an array is which: the names that files use, the user's order, the usual order.

Axes are letters, slowest first: X, Y, Z, C or S (channels), T (time), N (sample), Q (unknown).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

NAMES = {
    **dict.fromkeys(("x", "column", "columns", "col", "width"), "X"),
    **dict.fromkeys(("y", "row", "rows", "height"), "Y"),
    **dict.fromkeys(("z", "plane", "planes", "slice", "slices", "depth", "section"), "Z"),
    **dict.fromkeys(("c", "channel", "channels", "ch", "color", "colour", "band"), "C"),
    **dict.fromkeys(("s", "rgb", "rgba"), "S"),
    **dict.fromkeys(("t", "time", "times", "timepoint", "frame", "frames"), "T"),
    **dict.fromkeys(("n", "sample", "samples"), "N"),
}
"""Letters by the names that files use for axes."""
NAMED_BY = ("axes", "_ARRAY_DIMENSIONS", "axis_names", "DIMENSION_LABELS")
"""Attributes of an array in HDF5 or Zarr in which the names of its axes may stand."""
MOST_CHANNELS = 4  # up to which an axis without a name is taken for channels, as RGB and RGBA


def axis_letters(names: Any) -> str | None:
    """Return a letter an axis by its names, Q for an unknown one; None if all are unknown.

    ``names`` is what a file says: one string or bytes (``zcyx``, ``z, c, y, x``), or a list.
    """
    entries = np.ravel(np.asarray(names, object)).tolist()
    words = [w.decode("utf-8", "replace") if isinstance(w, bytes) else str(w) for w in entries]
    if len(words) == 1:
        words = re.findall(r"[^\W_]+", words[0])
        if len(words) == 1 and words[0].lower() not in NAMES:
            words = list(words[0])
    first = [re.split(r"[\W\d_]", word.strip().lower())[0] for word in words]  # of "x_um" the x
    letters = "".join(NAMES.get(word, "Q") for word in first)
    return letters if letters.strip("Q") else None


def told_axes(attributes: Mapping[str, Any], others: Iterable[Any], count: int) -> str | None:
    """Return the letters of names in attributes or ``others``, first of ``count`` axes; or None."""
    names = [*(attributes.get(name) for name in NAMED_BY), *others]
    found = [letters for each in names if each is not None and (letters := axis_letters(each))]
    return next((letters for letters in found if len(letters) == count), next(iter(found), None))


def unclear(path: Path, said: str, shape: Sequence[int]) -> UserError:
    """Return the error that axes are not known, which names the flag that tells."""
    flag = "--axes, a letter each of T, C, Z, Y and X, such as --axes"
    return UserError(f"{path}: {said}; name its axes with {flag} {_example(shape)}")


def _example(shape: Sequence[int]) -> str:
    """Return a likely order of the axes of an array, for messages."""
    return ("ZYX" if len(shape) < 4 else "TZCYX")[-len(shape) :]


def given_axes(path: Path, text: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Return the user's order of axes in capitals, and their lengths; UserError if it cannot be.

    With the lengths of all letters but one, as in ``ZC2YX``, the first axis may stand for several.
    """
    found = re.findall(r"(\D)(\d*)", text.strip().upper())
    axes, counts = "".join(a for a, _ in found), [int(n or 0) for _, n in found]
    once = len(set(axes)) == len(axes) and not {"C", "S"} <= set(axes)
    if set(axes) - set("XYZCST") or not once or not {"X", "Y"} <= set(axes):
        raise UserError(
            f"{path}: --axes {text!r}: give each axis a letter of its own out of T, C (or S), Z, Y "
            f"and X, slowest first, Y and X among them, such as {_example(shape)}"
        )
    extra = len(axes) - len(shape)
    pages = counts[: max(extra, 0) + 1]
    if pages.count(0) == 1:
        pages[pages.index(0)] = shape[0] // math.prod(filter(None, pages))
    lengths = (*pages, *shape[1:])
    fits = len(lengths) == len(axes) and math.prod(pages) == shape[0]
    wrong = [n for n, m in zip(counts, lengths, strict=False) if n not in (0, m)]
    if not fits or wrong or (extra and {*axes[: extra + 1]} & {"X", "Y"}):
        said = f"has {len(axes)} letters, but the array has {len(shape)} axes, of lengths {shape}"
        if extra > 0 and len(shape) > 2:
            said += "; say how many, as ZC2YX, or, failing that, make it a hyperstack in Fiji first"
        raise UserError(f"{path}: --axes {text}: {said}")
    return axes, lengths


def usual_axes(path: Path, shape: Sequence[int]) -> str:
    """Return the order of axes without names if there is but one way to see it; else UserError.

    Of four axes longer than 1 the one of up to four entries is channels, unless it is the third.
    """
    long = [k for k, n in enumerate(shape) if n > 1 or len(shape) <= 3]
    lengths = [shape[k] for k in long]
    few = [k for k, n in enumerate(lengths) if n <= MOST_CHANNELS and k != len(lengths) - 2]
    letters = {2: "YX", 3: "ZYX"}.get(len(long))
    if len(long) == 3 and 1 < lengths[-1] <= MOST_CHANNELS < min(lengths[:-1]):
        letters = "YXC" if lengths[-1] > 2 else None  # two columns of voxels, or two channels
    elif len(long) == 4 and len(few) == 1:
        letters = "ZYX"[: few[0]] + "C" + "ZYX"[few[0] :]
    if letters is None:
        edges = " x ".join(map(str, shape))
        raise unclear(path, f"which of its {len(shape)} axes ({edges}) is which is not told", shape)
    named = dict(zip(long, letters, strict=True))
    return "".join(named.get(k, "T") for k in range(len(shape)))
