"""Lengths of units, by the names that all formats' files use for them, however they are encoded."""

from __future__ import annotations

import math
import re
import unicodedata

PREFIXES = {
    **{"": ("", 1e6), "deci": ("d", 1e5), "centi": ("c", 1e4), "milli": ("m", 1e3)},
    **{"micro": ("u", 1.0), "nano": ("n", 1e-3), "pico": ("p", 1e-6)},
}
"""SI prefixes by name, with symbol and micrometres of that share of a metre."""
MICROMETRES = {
    **{
        name: length
        for prefix, (symbol, length) in PREFIXES.items()
        for name in (f"{symbol}m", *(f"{prefix}met{end}" for end in ("er", "re", "ers", "res")))
    },
    **dict.fromkeys(("micron", "microns", "u"), 1.0),
    **dict.fromkeys(("å", "angstrom", "angstroms", "ångström", "ångströms"), 1e-4),
    **dict.fromkeys(("inch", "inches", "in"), 25400.0),
    **dict.fromkeys(("foot", "feet", "ft"), 304800.0),
}
"""Micrometres of a unit by its name in small letters, ``u`` for the sign of micro."""


def number_in(text: str) -> float:
    """Return the number that a text is, with a decimal point or comma; NaN for none."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan


def micrometres_per(unit: str) -> float:
    r"""Return the length of a unit in micrometres; NaN for one that is no length, or not known.

    The signs of micro (U+00B5 or the Greek U+03BC) and of angstrom may be written as they are, as
    ImageJ's escapes (the six characters of ``\u00B5``), as UTF-8 that was read as Latin-1, or as
    Latin-1 that was read as UTF-8, where a mark of replacement stands for the sign.
    """
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unit)
    for codec in ("latin-1", "cp1252"):
        try:
            text = text.encode(codec).decode()
        except UnicodeError:
            continue
    text = unicodedata.normalize("NFKC", text).strip().casefold()
    return MICROMETRES.get(re.sub("[\u03bc\ufffd\udcb5](?=m|$)", "u", text), math.nan)
