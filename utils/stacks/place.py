"""Where a stack stands in space: size, directions and place of its voxels, and units of length."""

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

PREFIXES = {
    **{"": ("", 1e6), "deci": ("d", 1e5), "centi": ("c", 1e4), "milli": ("m", 1e3)},
    **{"micro": ("u", 1.0), "nano": ("n", 1e-3), "pico": ("p", 1e-6)},
}
"""SI prefixes by name, with symbol and micrometres of that share of a metre."""
MICROMETRES = {
    **{f"{symbol}m": length for symbol, length in PREFIXES.values()},
    **{f"{p}met{end}": PREFIXES[p][1] for p in PREFIXES for end in ("er", "re", "ers", "res")},
    **dict.fromkeys(("micron", "microns", "u"), 1.0),
    **dict.fromkeys(("å", "angstrom", "angstroms", "ångström", "ångströms"), 1e-4),
    **dict.fromkeys(("inch", "inches", "in"), 25400.0),
    **dict.fromkeys(("foot", "feet", "ft"), 304800.0),
}
"""Micrometres of a unit by its name in small letters, ``u`` for the sign of micro."""
SAME_SIZE = 1e-4  # by which sizes may differ that are one: TIFF rounds, NIfTI has float32
SIGNS = dict.fromkeys(("left-posterior-superior", "LPS"), (-1, -1, 1))
SIGNS |= dict.fromkeys(("left-anterior-superior", "LAS"), (-1, 1, 1))
SIGNS |= dict.fromkeys(("right-anterior-superior", "RAS"), (1, 1, 1))
"""Spaces of NRRD, and the signs that turn their axes into those of NIfTI, which is RAS."""


@dataclass(frozen=True, eq=False)
class Place:
    """Size, directions and place of a stack's voxels."""

    steps: np.ndarray  # (D axes of space, N): in column k the way to the next x, y or z
    first: np.ndarray  # (D,): the middle of the first voxel
    unit: float = 1.0  # micrometres of a unit of both; NaN if nobody knows
    space: str = ""  # NRRD's name for the axes of space; empty if they have none
    guessed: str = ""  # axes without a size in the file: they have the finest of the others

    @classmethod
    def aligned(cls, sizes: Mapping[str, float], unit: float = 1.0) -> Self:
        """Return the place of a stack at 0 along the axes of space; ``sizes`` as far as known."""
        known = {a: abs(float(sizes.get(a, math.nan))) for a in "XYZ"}
        known = {a: n for a, n in known.items() if 0 < n < math.inf}
        finest = min(known.values(), default=1.0)
        steps = np.diag([known.get(a, finest) for a in "XYZ"])
        guessed = "".join(a for a in "XYZ" if a not in known) if known else ""
        return cls(steps, np.zeros(3), unit if known else math.nan, guessed=guessed)

    @classmethod
    def measured(cls, sizes: Mapping[str, float], units: Mapping[str, str]) -> Self:
        """Return the place of sizes with the names of their units; if none has one, of a ratio."""
        known = cls.aligned({a: n * micrometres_per(units.get(a, "")) for a, n in sizes.items()})
        return known if known.has_unit else cls.aligned(sizes, math.nan)

    @property
    def sizes(self) -> tuple[float, ...]:
        """Edge of a voxel along x, y, z (or x, y), in units."""
        return tuple(math.hypot(*column) for column in self.steps.T)

    @property
    def has_unit(self) -> bool:
        """Whether sizes are lengths; else they are a ratio at most."""
        return math.isfinite(self.unit)

    @property
    def known(self) -> dict[str, float]:
        """The sizes that the file tells, by axis, in micrometres if the unit is known."""
        sizes = zip("XYZ", self.in_units().sizes, strict=False)
        return {a: size for a, size in sizes if a not in self.guessed and self.tells_ratio}

    @property
    def usable(self) -> bool:
        """Whether the voxels have a size, and their axes lie apart."""
        finite = np.isfinite(self.steps).all() and np.isfinite(self.first).all()
        return bool(finite) and np.linalg.matrix_rank(self.steps) == self.steps.shape[1]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Edge of a voxel in micrometres; None unless the file tells it along each axis."""
        return None if self.guessed or not self.has_unit else self.in_units().sizes

    @property
    def tells_ratio(self) -> bool:
        """Whether there are sizes; those of a file that tells none are all 1."""
        return self.has_unit or any(size != 1 for size in self.sizes)

    @property
    def turned(self) -> bool:
        """Whether an axis is mirrored or does not lie along its axis of space."""
        return not np.allclose(self.steps / self.sizes, np.eye(*self.steps.shape), atol=1e-6)

    @property
    def way(self) -> tuple[float, ...]:
        """How far the first voxel lies from 0 along each axis of the stack, in units."""
        return tuple(map(float, np.linalg.pinv(self.steps) @ self.first * self.sizes))

    def within(self, axes: int) -> Self:
        """Return the place of a plane of the stack, or of the stack itself."""
        guessed = "".join(a for a in self.guessed if a in "XYZ"[:axes])
        flat = not self.space and not self.steps[axes:, :axes].any() and not self.first[axes:].any()
        ways = axes if flat else len(self.first)
        steps, first = self.steps[:ways, :axes], self.first[:ways]
        return replace(self, steps=steps, first=first, guessed=guessed)

    def renamed(self, axes: Mapping[str, str]) -> Self:
        """Return the place with axes called otherwise: ``axes`` has the former names by the new."""
        flat = self.steps.shape[1] < 3
        place = Place.aligned(self.known, self.unit / self.unit) if flat else self
        left = [a for a in "XYZ" if a not in axes.values()]
        former = [axes[a] if a in axes else left.pop(0) for a in "XYZ"]
        order = ["XYZ".index(a) for a in former]
        steps, first = place.steps[:, order], place.first
        if not (place.space or place.turned):  # no directions: the axes of space are the stack's
            steps, first = steps[order], first[order]
        guessed = "".join(a for a, b in zip("XYZ", former, strict=True) if b in place.guessed)
        return replace(place, steps=steps, first=first, guessed=guessed)

    def moved(self, voxels: Sequence[float] | np.ndarray) -> Self:
        """Return the place of a part that begins so many voxels on, 0 where they are not finite."""
        known = np.where(np.isfinite(voxels), voxels, 0)
        return replace(self, first=self.first + self.steps[:, : len(known)] @ known)

    def resized(self, sizes: Iterable[float]) -> Self:
        """Return the place with voxels of ``sizes`` micrometres along x, y, z (or x, y).

        Directions stay, and 0 lies at the same voxel. Its own sizes change nothing else.
        """
        unit = self.unit if self.has_unit else 1.0
        ratio = np.array(list(sizes)) / self.sizes / unit
        if np.allclose(ratio, 1, rtol=SAME_SIZE, atol=0):
            return replace(self, unit=unit, guessed="")
        steps = self.steps * ratio * unit
        moved = (steps - self.steps * unit) @ np.linalg.pinv(self.steps) @ self.first
        return replace(self, steps=steps, first=self.first * unit + moved, unit=1.0, guessed="")

    def in_units(self, units: Collection[float] = ()) -> Self:
        """Return the same in one of ``units``, or micrometres; itself if its own is not known."""
        if self.unit in units or not self.has_unit:
            return self
        return replace(self, steps=self.steps * self.unit, first=self.first * self.unit, unit=1.0)

    def in_space(self, space: str) -> Self:
        """Return the same in another space; itself where either is not one of :data:`SIGNS`."""
        if not {self.space, space} <= {*SIGNS} or len(self.first) != 3:
            return self
        signs = np.array(SIGNS[self.space]) * SIGNS[space]
        return replace(self, steps=signs[:, None] * self.steps, first=signs * self.first)

    def note(self) -> str | None:
        """Return what a person must know of sizes that the file does not tell; None if it does."""
        if not self.guessed and (self.has_unit or not self.tells_ratio):
            return None
        said = "the voxel size in the file has no unit, its ratio is used and kept"
        if self.guessed:
            axes = " and ".join(self.guessed.lower())
            said = f"no voxel size along {axes} in the file, taken for that of the finest axis"
        sizes = " x ".join(f"{size:.4g}" for size in self.sizes)
        return f"{said}: {sizes} (x, y, z); --voxel_size Z,Y,X gives it in micrometres"


def number_in(told: Any) -> float:
    """Return the number that a file tells, as text or bytes too, with a point or comma; or NaN."""
    text = told.decode("latin-1") if isinstance(told, bytes) else str(told)
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def micrometres_per(unit: str) -> float:
    r"""Return the length of a unit in micrometres; NaN for one that is no length, or not known.

    The signs of micro (U+00B5 or U+03BC) and of angstrom may be themselves, ImageJ's escapes (six
    characters as ``\u00B5``), or UTF-8 that was read as Latin-1, or the other way round.
    """
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unit)
    for codec in ("latin-1", "cp1252"):
        try:
            text = text.encode(codec).decode()
        except UnicodeError:
            continue
    text = unicodedata.normalize("NFKC", text).strip().casefold()
    return MICROMETRES.get(re.sub("[\u03bc\ufffd\udcb5](?=m|$)", "u", text), math.nan)
