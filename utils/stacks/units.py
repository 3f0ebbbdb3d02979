"""Lengths of units, by the names that all formats' files use for them, however they are encoded."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

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
