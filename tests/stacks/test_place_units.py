"""Units are known by every name and encoding that files use."""

from __future__ import annotations

import math

import pytest

from utils.stacks.place import micrometres_per

MICRO = ("\u00b5m", "\u03bcm", "um", "micron", "Microns", "micrometer", "Micrometres", " \u00b5m ")
LENGTHS = {
    "m": 1e6, "meter": 1e6, "dm": 1e5, "decimetre": 1e5, "cm": 1e4, "mm": 1e3, "Millimeters": 1e3,
    "nm": 1e-3, "nanometer": 1e-3, "pm": 1e-6, "\u00c5": 1e-4, "\u212b": 1e-4, "A\u030a": 1e-4,
    "angstrom": 1e-4, "Angstroms": 1e-4, "inch": 25400.0, "in": 25400.0, "foot": 304800.0,
}  # fmt: skip


@pytest.mark.parametrize("name", MICRO)
def test_a_micrometre_by_any_name(name: str) -> None:
    assert micrometres_per(name) == 1.0


@pytest.mark.parametrize(("name", "length"), LENGTHS.items())
def test_other_lengths(name: str, length: float) -> None:
    assert micrometres_per(name) == length


@pytest.mark.parametrize("sign", ["\u00b5", "\u03bc"])
def test_the_sign_of_micro_survives_wrong_encodings(sign: str) -> None:
    unit = f"{sign}m"
    assert micrometres_per(f"\\u{ord(sign):04X}m") == 1.0  # as ImageJ writes it
    assert micrometres_per(f"\\u{ord(sign):04x}m") == 1.0
    assert micrometres_per(unit.encode().decode("latin-1")) == 1.0
    assert micrometres_per(unit.encode().decode("cp1252")) == 1.0
    assert micrometres_per("\u00b5m".encode("latin-1").decode("utf-8", "replace")) == 1.0
    assert micrometres_per("\u00b5m".encode("latin-1").decode("utf-8", "surrogateescape")) == 1.0


@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
def test_the_sign_of_angstrom_survives_wrong_encodings(codec: str) -> None:
    assert micrometres_per("\u00c5".encode().decode(codec)) == 1e-4
    assert micrometres_per("\\u00C5") == 1e-4


@pytest.mark.parametrize(
    "name", ["", " ", "pixel", "pixels", "voxel", "second", "\ufffds", "parsec"]
)
def test_what_is_no_length_is_none(name: str) -> None:
    assert math.isnan(micrometres_per(name))
