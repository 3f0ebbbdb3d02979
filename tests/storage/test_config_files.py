"""Configurations as TOML: round trips, units in comments, and one line for each mistake."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.simulation import VolumeConfig, WideConfig, preset
from utils.simulation.sheet import SheetConfig
from utils.simulation.stain import StainConfig
from utils.storage.config_files import read_config, read_mixture, show_config

SHAPE = (40, 40, 40)
UNITS = (
    r"voxels?\b|spacings\b|nearest-neighbour distances|cube edges|degrees|radians|nepers|"
    r"part of the depth|share|full scale|ratio|probability|number|this many|intervals|photons|units"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "a.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "config",
    [
        VolumeConfig(gain_range=(3, 4), v_std=2.5),
        WideConfig(
            sheet=SheetConfig(spacing=(6.0, 7.5)),
            stain=StainConfig(inverted_probability=1e-05),
            min_visibility=0.25,
        ),
        preset("reference"),
        preset("wide"),
    ],
)
def test_what_is_shown_gives_the_configuration_back(
    tmp_path: Path, config: VolumeConfig | WideConfig
) -> None:
    text = show_config(config)
    assert read_config(written(tmp_path, text)) == config
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", ["reference", "wide"])
def test_each_key_has_a_comment_that_tells_its_unit(name: str) -> None:
    comment = ""
    for line in show_config(preset(name)).splitlines()[1:]:
        if line.startswith("# "):
            comment += line
        elif " = " in line:
            assert re.search(UNITS, comment, re.IGNORECASE), f"{line}: {comment}"
            comment = ""


def test_parts_are_tables_and_what_flags_give_is_no_key() -> None:
    lines = show_config(preset("wide")).splitlines()[1:]
    table = tomllib.loads("\n".join(lines))
    assert {"sheet", "stain", "microscope"} < set(table) and not {"shape", "table"} & set(table)
    assert "voxels" in lines[lines.index("spacing = [5.0, 16.0]") - 1]


def test_what_is_left_out_has_its_default_and_fields_win(tmp_path: Path) -> None:
    path = written(tmp_path, "[sheet]\nspacing = [6, 7]\n")
    expected = WideConfig(shape=SHAPE, sheet=SheetConfig(spacing=(6.0, 7.0)))
    found = dataclasses.replace(read_config(path, "wide"), shape=SHAPE)
    assert found == expected and all(type(v) is float for v in found.sheet.spacing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spacing =", "is not TOML"),
        ("min_visibility = 1", "preset None: one of reference, wide"),
        ("preset = 'narrow'", "preset 'narrow': one of reference, wide"),
        ("preset = 3", "preset 3: one of"),
        ("preset = ['wide']", r"preset \['wide'\]: one of"),
        ("preset = 'wide'\nspacing = [5, 6]", "spacing: there is no such key"),
        ("preset = 'wide'\n[sheet]\nspacng = [5, 6]", "sheet.spacng: .* nearest is spacing"),
        ("preset = 'wide'\nshape = [8, 8, 8]", "shape: there is no such key"),
        ("preset = 'wide'\ntable = 'a.csv'", "table: there is no such key"),
        ("preset = 'wide'\nsheet = 3", "sheet 3: must be a table, .sheet."),
        (
            "preset = 'wide'\n[sheet]\nspacing = [6, 5]",
            r"sheet.spacing \(6.0, 5.0\): must be \(low",
        ),
        ("preset = 'wide'\n[sheet]\nspacing = 5", "sheet.spacing 5: must be a list of 2 numbers"),
        ("preset = 'wide'\n[sheet]\nspacing = [5, 6, 7]", "sheet.spacing .*: must be a list of 2"),
        ("preset = 'wide'\n[sheet]\nspacing = [5, 'a']", "sheet.spacing 'a': must be a number"),
        ("preset = 'wide'\n[sheet]\nholes = [0, 1.5]", "sheet.holes 1.5: must be a whole number"),
        ("preset = 'wide'\nmin_visibility = true", "min_visibility True: must be a number"),
        ("preset = 'wide'\nmin_visibility = -1", "min_visibility -1.0: must be at least 0"),
        ("preset = 'wide'\n[stain]\ninverted_probability = 2", "stain.inverted_probability 2.0: "),
        ("preset = 'reference'\ngain_range = [0, 5]", r"gain_range \(0, 5\): every value must be"),
        ("preset = 'reference'\n[sheet]\nspacing = [5, 6]", "sheet: there is no such key"),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"a\.toml: {message}") as caught:
        read_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.toml: cannot be read"):
        read_config(tmp_path / "none.toml")
    path = written(tmp_path, "preset = 'wide'")
    with pytest.raises(UserError, match="preset 'wide': must be reference, as --preset says"):
        read_config(path, "reference")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="a.toml: is not TOML"):
        read_config(path)


def test_mixtures_take_one_part_from_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "preset = 'wide'\nmin_visibility = 0.5")
    wide = WideConfig(shape=SHAPE, min_visibility=0.5)
    assert read_mixture({}, path, SHAPE).parts == ((wide, 1.0),)
    reference = VolumeConfig(shape=SHAPE)
    shares = {"reference": 0.25, "wide": 0.75}
    assert read_mixture(shares, path, SHAPE).parts == ((reference, 0.25), (wide, 0.75))
    plain = read_mixture(shares, None, SHAPE).parts
    assert plain == ((reference, 0.25), (WideConfig(shape=SHAPE), 0.75))
    with pytest.raises(UserError, match="preset 'wide': must be reference"):
        read_mixture({"reference": 1.0}, path, SHAPE)
