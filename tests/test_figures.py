"""Pictures: what they show is checked on their pixels and on the numbers behind them."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import figures
from utils.prediction.microscope_files import StackLayout, write_stack
from utils.prediction.statistics import Interval
from utils.simulation import SimulatedVolume, VolumeConfig, sample_rng, simulate_volume

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def volume() -> SimulatedVolume:
    config = VolumeConfig(shape=(32, 28, 24), lattice_intervals=(4, 6), min_columns=20)
    return simulate_volume(config, sample_rng(0, 1))


KEYS = ("epoch", "train_loss", "valid_loss", "train_iou", "valid_iou", "lr")
HISTORY = [
    dict(zip(KEYS, values, strict=True))
    for values in [(1, 0.9, 0.8, 0.1, 0.2, 1e-3), (2, 0.5, 0.6, 0.5, 0.4, 2e-4)]
]


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1], [], [{"epoch": 1, "valid_iou": None}]])
def test_learning_curves_are_drawn_for_any_history(history: list[dict], tmp_path: Path) -> None:
    path = figures.save_learning_curves(history, tmp_path / "new" / "curves.png")
    with Image.open(path) as picture:
        assert picture.width > 800
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_learning_curves_show_the_baseline(tmp_path: Path) -> None:
    with_line = figures.save_learning_curves(HISTORY, tmp_path / "a.png")
    without = figures.save_learning_curves(HISTORY, tmp_path / "b.png", baseline=None)
    with Image.open(with_line) as a, Image.open(without) as b:
        assert np.any(np.asarray(a) != np.asarray(b))


def test_a_heat_map_is_compared_where_it_is_at_least_half() -> None:
    image, target = np.zeros((2, 2), np.float32), np.array([[0.9, 0.4], [0.5, 0.0]], np.float32)
    overlay = figures._compare(image, target, probability=target)
    np.testing.assert_array_equal(overlay.any(axis=2), target >= 0.5)


def test_baseline_is_that_of_disks_on_a_hexagonal_lattice() -> None:
    share = math.pi * VolumeConfig().cone_radius ** 2 / (math.sqrt(3) / 2)
    assert figures.WHOLE_SHEET_IOU == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_predictions_have_a_row_for_each_sample(
    volume: SimulatedVolume, dimensions: int, tmp_path: Path
) -> None:
    z = figures.densest_slice(volume.mask)
    cut = (...,) if dimensions == 3 else (..., z)
    image, mask = volume.image[cut], volume.mask[cut]
    probability = mask * 0.9
    heights = []
    for count in (1, 2):
        path = figures.save_predictions(
            [image] * count, [mask] * count, [probability] * count, tmp_path / f"{count}.png"
        )
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert 1.6 < heights[1] / heights[0] < 2.1


def test_predictions_without_labels_are_drawn(tmp_path: Path) -> None:
    empty = np.zeros((8, 8), dtype=np.float32)
    assert figures.save_predictions([empty], [empty], [empty], tmp_path / "p.png").exists()


def test_overlay_colours_name_hits_and_errors() -> None:
    image = np.zeros((2, 2), dtype=np.float32)
    mask = np.array([[1, 0], [1, 0]])
    probability = np.array([[0.9, 0.9], [0.1, 0.1]])
    (hit, extra), (missed, nothing) = figures._compare(image, mask, probability)
    assert hit.argmax() == 1
    assert extra.argmax() == 0
    assert missed.argmax() == 2
    assert not nothing.any()


@pytest.mark.parametrize(
    ("counts", "shape", "said"),
    [((0, 0, 0), (4, 4), "0 images"), ((1, 2, 1), (4, 4), "2 masks"), ((1, 1, 1), (4,), "shapes")],
)
def test_predictions_that_do_not_match_are_refused(
    counts: tuple[int, int, int], shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    lists = [[np.zeros(shape)] * count for count in counts]
    with pytest.raises(ValueError, match=said):
        figures.save_predictions(*lists, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def interval(mean: float, half: float = 0.1) -> Interval:
    return Interval(mean, mean - half, mean + half, 5)


def test_recall_of_columns_is_drawn_with_and_without_intervals(tmp_path: Path) -> None:
    nan = math.nan
    recalls = {
        "left_out": (interval(0.4), Interval(nan, nan, nan, 0), 0),
        "A": (Interval(0.5, nan, nan, 1), interval(0.9), 12),
    }
    path = figures.save_column_recall(recalls, nan, tmp_path / "columns.png")
    with Image.open(path) as picture:
        assert picture.width > 600


@pytest.mark.parametrize("count", [1, 16])
def test_scores_are_drawn_over_every_condition(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conditions = {name: rng.random(count) for name in ("gain", "spacing_voxels", "foreground")}
    conditions["of_another_kind"] = np.ones(count)
    path = figures.save_scores_by_condition(
        rng.random(count), rng.random(count), conditions, tmp_path / "c.png"
    )
    with Image.open(path) as picture:
        assert picture.height > 600  # two rows


def test_a_comparison_shows_both_sides_and_no_distances(tmp_path: Path) -> None:
    drawn = []
    figures_saved = figures._save_figure

    def keep(figure: object, path: Path, dpi: int = 110) -> Path:
        drawn.append(figure)
        return figures_saved(figure, path, dpi)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_save_figure", keep)
        figures.save_comparison(
            [0.5, 0.6],
            [0.55, 0.5],
            {"iou": interval(-0.02), "hd95": interval(3.0), "recall": interval(0.1)},
            tmp_path / "c.png",
            names=("logs/first", "x" * 100),
        )
    paired, gaps = drawn[0].axes
    assert [text.get_text() for text in gaps.get_yticklabels()] == ["IoU", "recall"]
    assert paired.get_xlabel() == "IoU of A: logs/first" and len(paired.get_ylabel()) < 60


def test_densest_slice_is_that_with_most_labels() -> None:
    mask = np.zeros((4, 4, 5), dtype=np.uint8)
    mask[:2, 0, 3], mask[0, 0, 1] = 1, 1
    assert figures.densest_slice(mask) == 3


def test_a_comparison_strip_shows_the_fullest_slice_in_four_panels() -> None:
    image = np.zeros((64, 40, 3), dtype=np.float32)
    image[10, 0, 1] = 1.0
    mask, probability = np.zeros_like(image), np.zeros_like(image)
    mask[10, :2, 1], probability[10, 0, 1], probability[63, 39, 1] = 1, 1, 0.5
    strip = figures.comparison_strip(image, mask, probability)
    assert strip.shape == (40, 4 * 64 + 3 * 2, 3) and strip.dtype == np.uint8
    truth, chance, compared = (strip[:, k * 66 : k * 66 + 64] for k in (1, 2, 3))
    assert truth[39, 10].tolist() == truth[38, 10].tolist() == [255] * 3  # y runs upwards
    assert np.count_nonzero(truth) == 2 * 3
    assert chance[39, 10, 0] == 255 and chance[0, 63, 0] == 128
    assert [compared[39, 10].argmax(), compared[0, 63].argmax(), compared[38, 10].argmax()] == [
        *(1, 0, 2),  # found, false positive, missed
    ]
    flat = figures.comparison_strip(image[..., 1], mask[..., 1], probability[..., 1])
    assert np.array_equal(flat, strip)


def study_trial(number: int, iou: float | None, state: str, **values: object) -> dict:
    curve = [] if iou is None else [iou / 2, iou]
    return {"trial": number, "state": state, "iou": iou, "curve": curve, "values": values}


def test_a_study_of_two_flags_gets_a_table_of_means() -> None:
    trials = [
        study_trial(0, 0.4, "complete", depth=2, loss_type="bce", seed=0),
        study_trial(1, 0.6, "complete", depth=2, loss_type="bce", seed=1),
        study_trial(2, 0.3, "pruned", depth=10, loss_type="bce", seed=0),
        study_trial(3, 0.7, "complete", depth=10, loss_type="dice", seed=0),
        study_trial(4, None, "failed", depth=2, loss_type="dice", seed=0),
    ]
    names, values, table = figures._grid_of(trials, ["depth", "loss_type", "seed"])
    assert (names, values) == (["depth", "loss_type"], [[2, 10], ["bce", "dice"]])
    assert table[0, 0] == pytest.approx(0.5) and table[1, 1] == pytest.approx(0.7)
    assert np.isnan(table[0, 1]) and np.isnan(table[1, 0])
    assert figures._grid_of(trials, ["depth", "seed"]) is None


@pytest.mark.parametrize("count", [1, 9])
def test_studies_are_drawn(count: int, tmp_path: Path) -> None:
    states = ("complete", "pruned", "failed", "running")
    trials = [
        study_trial(
            *(k, None if k % 4 == 2 else 0.1 * k, states[k % 4]),
            start_lr=1e-4 * 3**k,
            resblocks=k % 2 == 0,
        )
        for k in range(count)
    ]
    path = figures.save_study(trials, tmp_path / "s.png", title="Why?", baseline=0.44)
    assert path.stat().st_size > 10_000
    with pytest.raises(ValueError, match="no trial"):
        figures.save_study([], tmp_path / "none.png")


def test_display_scaling_goes_from_0_to_1_and_survives_a_constant() -> None:
    image = np.linspace(3.0, 9.0, 1000).reshape(10, 10, 10)
    scaled = figures.scale_to_display(image)
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    assert not figures.scale_to_display(np.full((3, 3), 7.0)).any()


def test_blue_ramp_grows_brighter() -> None:
    colours = figures.blue(np.linspace(0.0, 1.0, 50))
    assert np.all(np.diff(colours.sum(axis=1)) > 0)
    assert not colours[0].any()


def test_a_failure_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_text("old")

    class Failing:
        def savefig(self, temporary: Path, dpi: int) -> None:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        figures._save_figure(Failing(), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_column_types_cut_through_the_axis(volume: SimulatedVolume, tmp_path: Path) -> None:
    assert figures.save_column_types(volume, tmp_path / "types.png").stat().st_size > 10_000
    lacking = replace(volume, column_type=np.ones_like(volume.column_type))
    with pytest.raises(ValueError, match="clumped"):
        figures.save_column_types(lacking, tmp_path / "none.png")


def test_plane_samples_the_volume_where_it_says() -> None:
    x, y, z = np.meshgrid(*(np.arange(n) + 0.5 for n in (10, 12, 14)), indexing="ij")
    directions = (np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    origin = np.array([0.5, 0.5, 0.5])
    cut = figures._plane(y + 100 * z + 0 * x, origin, directions, (-2.0, 2.0), (-3.0, 3.0))
    u, v = np.arange(-2, 2, 0.25) + 0.125, np.arange(-3, 3, 0.25) + 0.125
    assert np.allclose(cut, (6 + u)[:, None] + 100 * (7 + v), rtol=1e-6)


def test_samples_and_geometry_are_drawn(volume: SimulatedVolume, tmp_path: Path) -> None:
    assert figures.save_samples_panel([volume] * 3, tmp_path / "s.png").stat().st_size > 10_000
    path = figures.save_geometry(volume, tmp_path / "g.png", title="sample 1")
    with Image.open(path) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for name, colour in zip(figures.TYPE_NAMES, figures.TYPE_COLOURS, strict=True):
        wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
        assert np.any(np.all(colours == wanted, axis=1)), name


def run_figures(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "utils.figures", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_is_quick() -> None:
    start = time.monotonic()
    result = run_figures("--help")
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert "matplotlib" not in result.stderr
    assert time.monotonic() - start < 5.0  # a second on an idle machine


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["samples", "--voxels", "0", "--directory", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_command_line_names_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "assets")
    assert figures.main(["geometry", "--voxels", "32", "--index", "0", "--directory", folder]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert Path(line).exists()


def overlay(seed: int = 0) -> figures.Overlay:
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 20), np.uint8)
    mask[5:15, 8:12] = 1
    return figures.Overlay(rng.random((30, 20)), mask, f"plane {seed}")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_overlays_show_the_mask_in_red_and_a_coarser_image(tmp_path: Path) -> None:
    rows = [[overlay(0), overlay(1)]]
    plain = pixels(figures.save_overlays(rows, tmp_path / "a.png", spacing=(0.5, 0.5)))
    red = (plain[..., 0] > plain[..., 1] + 60) & (plain[..., 0] > plain[..., 2] + 60)
    height, width = red.shape
    halves = [red[:, k * width // 4 : (k + 1) * width // 4].mean() for k in range(4)]
    assert halves[0] == halves[2] == 0 and min(halves[1], halves[3]) > 0.01
    coarse = pixels(figures.save_overlays(rows, tmp_path / "b.png", spacing=(0.5, 0.5), step=5))
    blue = [p[:, : width // 4].std() for p in (plain, coarse)]
    assert blue[0] != blue[1]


@pytest.mark.parametrize(
    ("rows", "step", "message"),
    [
        ([], 1, "at least one plane"),
        ([[overlay()], [overlay(), overlay()]], 1, "as many in each row"),
        ([[overlay()]], 0.5, "at least 1 voxel"),
        ([[figures.Overlay(np.zeros((3, 3)), np.zeros((3, 4)), "p")]], 1, "p: image .3, 3. and"),
    ],
)
def test_overlays_that_cannot_be_drawn(
    rows: list, step: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        figures.save_overlays(rows, tmp_path / "a.png", step=step)


def test_planes_of_a_stack_with_masks_of_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.arange(12 * 10 * 8, dtype=np.uint16).reshape(12, 10, 8)
    layout = StackLayout(image.shape, image.dtype, (0.5, 0.5, 2.0))
    write_stack(tmp_path / "a.tif", [image], layout)
    for name in ("m", "n"):
        mask = (image[2:, :6, 3:7] % 3 == 0).astype(np.uint8)
        write_stack(tmp_path / f"{name}.tif", [mask], StackLayout(mask.shape, mask.dtype))
    drawn = []
    monkeypatch.setattr(
        figures,
        "save_overlays",
        lambda rows, path, **options: drawn.append((rows, options)) or path,
    )
    masks = [str(tmp_path / name) for name in ("m.tif", "n.tif")]
    flags = ["stack", "--input", str(tmp_path / "a.tif"), "--output", "p.png", "--mask", *masks]
    boxes = ["--crop", "3:7,:6,2:", "3:7,:6,2:"]
    assert figures.main([*flags, *boxes, "--z", "4", "6"]) == 0
    (rows, options), *_ = drawn
    assert [[o.title for o in row] for row in rows] == [
        ["m, z = 4", "m, z = 6"],
        ["n, z = 4", "n, z = 6"],
    ]
    np.testing.assert_array_equal(rows[1][1].image, image[2:, :6, 6])
    np.testing.assert_array_equal(rows[1][0].mask, image[2:, :6, 4] % 3 == 0)
    assert options["spacing"] == pytest.approx((0.5, 0.5))
    capsys.readouterr()
    for wrong, message in (
        ([*boxes, "--z", "7"], "--z 7: not in the box"),
        (["--crop", "3:7,:6,2:", "--z", "4"], "1 boxes for 2 masks"),
        (["--z", "4"], "but its box has"),
    ):
        assert figures.main([*flags, *wrong]) == 2
        assert message in capsys.readouterr().err
