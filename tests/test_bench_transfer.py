"""The left-out test: groups are what they say, scores are right, and it runs with tiny sizes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import generate_3d_data
import train_basic_3dunet
from utils.errors import UserError
from utils.evaluation.confusion import area_under_curve
from utils.simulation import WideConfig
from utils.simulation.microscope import draw_microscope
from utils.simulation.stain import draw_stain
from utils.storage import VolumeSet, write_simulated_file
from utils.storage.config_files import read_config

ROOT = Path(__file__).resolve().parent.parent
TINY = "min_visibility = 0.3\nsheet.spacing = [5.0, 7.0]\nsheet.min_columns = 4"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("bench_transfer")


def config_of(text: str, folder: Path) -> WideConfig:
    path = folder / "config.toml"
    path.write_text(f'preset = "wide"\n{text}\n')
    config = read_config(path)
    assert isinstance(config, WideConfig)
    return config


# What all draws of a group show, and what none shows of a training without it.
SHOWS = {
    "inverted": 2 * (lambda stain, microscope: stain.levels[0] < stain.levels[2],),
    "rims": 2 * (lambda stain, microscope: stain.kind == "rims",),
    "rods": 2 * (lambda stain, microscope: stain.kind == "rods",),
    "dark_ground": (
        lambda stain, microscope: stain.levels[0] > 0.3 and max(stain.levels[2:]) < 0.4 * 0.88,
        lambda stain, microscope: min(stain.levels) < 0.1,
    ),
    "strata": (
        lambda stain, microscope: stain.band_contrast == 1.0,
        lambda stain, microscope: stain.band_contrast > 0.5,
    ),
    "coarse": (
        lambda stain, microscope: microscope.coarse >= 2.5 and microscope.photons <= 20.0,
        lambda stain, microscope: microscope.coarse > 2.5 or microscope.photons < 20.0,
    ),
}


def test_all_groups_are_checked(bench) -> None:
    assert {*SHOWS, bench.MEDULLA} == set(bench.GROUPS)


def test_each_group_is_left_out_of_one_training(bench, tmp_path: Path) -> None:
    assert sorted(sum(bench.FOLDS.values(), ())) == sorted(SHOWS)
    for run, groups in bench.FOLDS.items():
        config = config_of("\n".join(bench.GROUPS[group][1] for group in groups), tmp_path)
        parts = [config_of(bench.GROUPS[group][1], tmp_path) for group in groups]
        assert len({config, *parts}) == 3
        assert all(bench.runs_of(group) == (run, bench.EVERYTHING) for group in groups)
    assert bench.runs_of(bench.MEDULLA) == (bench.EVERYTHING, bench.SAW_MEDULLA)


@pytest.mark.parametrize("group", SHOWS)
def test_a_group_is_in_its_volumes_and_not_in_the_training_without_it(
    group: str, bench, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    only, without = (config_of(text, tmp_path) for text in bench.GROUPS[group])
    always, never = SHOWS[group]
    for config, shows, expected in ((only, always, True), (without, never, False)):
        for _ in range(300):
            stain = draw_stain(config.stain, 4, np.zeros(4, bool), rng)
            microscope = draw_microscope(config.microscope, rng, config.sheet.spacing[0])
            assert shows(stain, microscope) is expected


def test_scores_by_threshold_are_those_of_masks(bench) -> None:
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)
    ratings = rng.random(kinds.shape).round(1)  # some lie on a threshold
    limits = np.array([0.0, 0.3, 0.5, 0.95, 1.1])
    table = bench.at_thresholds(ratings, kinds, limits)
    truth, stained, outside = (
        kinds <= bench.LEFT_OUT,
        kinds == bench.STAINED,
        kinds == bench.OUTSIDE,
    )
    for limit in limits[:-1]:
        called = ratings >= limit
        asked = kinds != bench.LEFT_OUT
        row = table.loc[limit]
        assert row["iou"] == (called & truth).sum() / (called | truth).sum()
        assert row["iou_stained"] == (called & stained).sum() / ((called | stained) & asked).sum()
        if called.any():
            assert row["false_tissue"] == (called & outside).sum() / called.sum()
    assert table.loc[1.1, "iou"] == 0 and np.isnan(table.loc[1.1, "false_tissue"])


@pytest.mark.parametrize("polarity", [1, -1])
def test_the_difference_of_gaussians_finds_columns_of_either_polarity(bench, polarity: int) -> None:
    spacing, n = 8.0, 40
    x, y, _ = np.meshgrid(*3 * (np.arange(n),), indexing="ij")
    columns = np.hypot((x + 0.3 * spacing) % spacing - 4, y % spacing - 4) < 0.3 * spacing
    noise = np.random.default_rng(2).normal(0, 0.5, columns.shape)
    levels = (1.0, 1.0, 0.0) if polarity > 0 else (0.0, 0.0, 1.0)
    volume = SimpleNamespace(
        image=(polarity * columns + noise).astype(np.float32),
        e_r=np.array([[0.0, 0.0, 0.8], [0.0, 0.01, 0.8]]),
        parameters=SimpleNamespace(
            spacing=spacing / n, drawn=json.dumps({"stain": {"levels": levels}})
        ),
    )
    ratings = bench.gaussians(volume)
    assert ratings.shape == columns.shape and ratings.std() == pytest.approx(1)
    assert area_under_curve(ratings, columns) > 0.9 > area_under_curve(polarity * noise, columns)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.timeout(900)  # two trainings, on a machine that may be busy
def test_a_group_is_left_out_trained_and_scored(
    bench,
    tiny_wide: WideConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(bench.GROUPS, "rims", (TINY, TINY))
    monkeypatch.setattr(bench, "FOLDS", {"without_rims": ("rims",), bench.EVERYTHING: ("rims",)})
    calls = []

    def here(script: str, arguments: list[str], output: Path) -> None:
        calls.append((script, arguments))
        if script == "train_basic_3dunet.py":
            assert train_basic_3dunet.main(arguments) == 0
            return
        values = vars(generate_3d_data.make_parser().parse_args(arguments))
        assert read_config(values["config"]).sheet == tiny_wide.sheet
        path = Path(values["directory"]) / values["filename"]
        write_simulated_file(path, VolumeSet(tiny_wide, values["random_state"], 2))

    monkeypatch.setattr(bench, "run_script", here)
    tiny = "--patch_size 16 --batch_size 2 --patches_per_epoch 2 --num_workers 0 --no-tensorboard"
    common = ["--groups", "rims", "--volumes", "2", "--edge", "32", "--networks"]
    command = [*common, "--directory", str(tmp_path), "--minutes", "0.01", "--train_flags", tiny]
    assert bench.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| rims")]
    assert [row[1] for row in rows] == [bench.SHEET, bench.GAUSSIANS, "saw it", "left out"]
    content = json.loads((tmp_path / "transfer.json").read_text())
    assert len(content["scores"]) == 2 * 4
    assert content["curves"]["rims"][0][0] == 0.0 and len(content["curves"]["rims"]) > 1
    for name in ("transfer.md", "transfer.png", "examples.png"):
        assert (tmp_path / name).stat().st_size > 300
    trained = [arguments for script, arguments in calls if script == "train_basic_3dunet.py"]
    configs = [Path(arguments[arguments.index("--config") + 1]).stem for arguments in trained]
    assert configs == ["valid_without_rims", f"valid_{bench.EVERYTHING}"]

    assert bench.main(command) == 0, "runs that are there are scored as they are"
    again = json.loads((tmp_path / "transfer.json").read_text())
    assert again["scores"] == content["scores"] and len(calls) == 6


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--groups", "medulla"), "--columns_table"),
        (("--minutes", "0"), "larger than 0"),
        (("--threshold", "absent.h5"), "absent.h5"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    bench, flags: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(list(flags)) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and words in output.err


def test_a_script_that_fails_is_told_with_its_last_words(bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="generate_3d_data.py ended with 2: .*--L 0"):
        bench.run_script("generate_3d_data.py", ["--L", "0"], tmp_path / "output.txt")
