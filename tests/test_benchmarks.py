"""The benchmarks of training: they run with tiny sizes, and what they count is right."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import run_and_time
from utils.simulation import VolumeConfig
from utils.storage import VolumeFile, VolumeSet, write_simulated_file

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = ("bench_training", "bench_learning", "bench_gpu", "bench_finetune")


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory, tiny_config: VolumeConfig) -> Path:
    path = tmp_path_factory.mktemp("volumes") / "tiny.h5"
    write_simulated_file(path, VolumeSet(tiny_config, 3, 2))
    return path


def rows(output: str) -> list[list[str]]:
    """Return the cells of all rows of all Markdown tables, without headings and rules."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-: ")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_comes_at_once(name: str) -> None:
    answer, seconds = run_and_time([sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"])
    assert answer.returncode == 0 and "Measure" in answer.stdout
    assert seconds < 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_mistake_is_one_line_and_status_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = __import__(name)
    wrong = {
        "bench_learning": ["--variant", "nameless"],
        "bench_finetune": ["--stacks", "0"],
    }.get(name, ["--sizes", "4,0,1"])
    with pytest.raises(SystemExit) as ended:
        script.main(wrong)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_training_steps_are_timed(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_training

    sizes = ["--sizes", "3,2,2", "2,2,2,2", "--patch_size", "32"]
    short = ["--repeats", "1", "--steps", "1", "--num_workers", "0", "--loader_patches", "2"]
    assert bench_training.main([*sizes, *short, "--matrix", "32", "--data", str(volumes)]) == 0
    output = capsys.readouterr().out
    ceilings = re.search(r"32\^2 matrices reach (\S+) in float32 and (\S+) in bfloat16", output)
    assert ceilings
    table = rows(output)
    steps = [row for row in table if len(row) == 7 and row[0] != "network"]
    networks = [row[0] for row in steps]
    assert networks[:2] == networks[-2:] == ["this project's U-Net"] * 2
    assert {"MONAI DynUNet", "MONAI BasicUNet (5 levels)"} < set(networks)
    assert [row[1] for row in steps] == ["plain float32", "this loop"] * (len(steps) // 2)
    assert all(float(row[3]) > 0 and float(row[5]) > 0 for row in steps)
    assert bench_training.product_rate("bfloat16", 32) > 0
    dyn_unet = next(row for row in steps if row[0] == "MONAI DynUNet")
    assert dyn_unet[2] == steps[0][2], "as many parameters as our network"
    loaders = [row for row in table if row[0].startswith("depth")]
    assert len(loaders) == 2
    assert all(float(cell) > 0 for row in loaders for cell in row[1:])


def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import bench_gpu

    if torch.cuda.is_available():
        assert bench_gpu.parse_flags([]).device == "cuda"
        return
    assert bench_gpu.main([]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and "CUDA" in output.err


def test_the_gpu_script_runs_on_a_cpu(volumes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_gpu

    tiny = ["--sizes", "2,2,2", "2,2,2,2,2", "--patch_size", "16", "--modes", "float32", "bf16"]
    short = ["--seconds", "0.01", "--copy_mib", "1", "--matrix", "32", "--num_workers", "0"]
    assert bench_gpu.main(["--device", "cpu", *tiny, *short, "--data", str(volumes)]) == 0
    measured = [row for row in rows(capsys.readouterr().out) if row[0].startswith("depth")]
    assert [row[2] for row in measured] == ["float32", "bf16"] * 2
    assert all(len(row) == 10 for row in measured)
    for row in measured:
        rates = [float(re.sub("[%]", "", row[k])) for k in (3, 4, 6, 7, 8, 9)]
        assert min(rates[:2]) > 0 and min(rates) >= 0


def test_operations_and_traffic_are_counted() -> None:
    from counting import count_work

    image, weight = torch.rand(1, 2, 4, 4, 4), torch.rand(3, 2, 3, 3, 3)
    work = count_work(lambda: torch.conv3d(image, weight, padding=1).view(-1))
    assert work.operations == 2 * 27 * 2 * 3 * 4**3
    voxels = 4**3 * (2 + 3)
    assert work.traffic == 4 * (voxels + weight.numel())


@pytest.mark.usefixtures("undrawn")
def test_recipes_are_compared_on_unseen_volumes(
    volumes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import bench_learning

    import train_basic_3dunet

    def run_here(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[1] == train_basic_3dunet.__file__
        return subprocess.CompletedProcess(command, train_basic_3dunet.main(command[2:]))

    # In this process, which has imported torch already.
    here = SimpleNamespace(**{**vars(subprocess), "run": run_here})
    monkeypatch.setattr(bench_learning, "subprocess", here)
    directory = tmp_path / "runs"
    tiny = (
        f"--train_files {volumes} --val_files {volumes} --depth 2 --start_channels 2 "
        "--patch_size 16 --patches_per_epoch 2 --num_workers 0 --device cpu --batch_size 2"
    )
    common = ["--directory", str(directory), "--test_file", str(volumes), "--volumes", "2"]
    variant = ["--variant", "the fast one: --recipe fast", "--train_flags", tiny]
    command = [*common, *variant, "--minutes", "0.005", "--every", "0"]
    assert bench_learning.main(command) == 0
    row = rows(capsys.readouterr().out)[-1]
    assert row[0] == "the fast one" and 0 <= float(row[4].split()[0]) <= 1
    with (directory / "curves.csv").open() as file:
        (point,) = csv.DictReader(file)
    epochs = json.loads((directory / "the_fast_one" / "logs.json").read_text())["epochs"]
    assert int(point["epoch"]) == len(epochs)
    assert float(point["minutes"]) == pytest.approx(epochs[-1]["minutes"])
    assert float(point["iou_low"]) <= float(point["iou"]) <= float(point["iou_high"])
    assert (directory / "curves.png").stat().st_size > 10_000

    assert bench_learning.main(command) == 2, "a run is not overwritten"
    assert "exists already" in capsys.readouterr().err
    before = (directory / "curves.csv").read_text()
    assert bench_learning.main([*command, "--evaluate_only"]) == 0
    assert (directory / "curves.csv").read_text() == before


def test_the_scored_volumes_stand_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench_learning

    monkeypatch.chdir(tmp_path)
    path = bench_learning.make_test_file(Path("logs/runs/unseen.h5"), 1)
    with VolumeFile(path) as file:
        assert (len(file), file.seed) == (1, bench_learning.TEST_SEED)
    assert [found.name for found in tmp_path.iterdir()] == ["logs"]


def test_checkpoints_are_chosen_by_their_minutes() -> None:
    import bench_learning

    epochs = [{"epoch": k, "minutes": 0.2 * k} for k in range(1, 11)]
    chosen = [record["epoch"] for record in bench_learning.choose(epochs, 0.6)]
    assert chosen == [3, 6, 9, 10]
    assert bench_learning.choose(epochs, 0.0) == epochs[-1:]


def test_the_table_has_eight_rows_that_train_differently() -> None:
    import bench_learning

    import train_basic_3dunet

    variants = bench_learning.table_variants()
    assert len({variant.title for variant in variants}) == 8
    flags = [train_basic_3dunet.parse_flags(list(variant.flags)) for variant in variants]
    assert len({(f.arch, f.loss_type, f.on_the_fly) for f in flags}) == 8
    assert all(f.stem_stride == 2 for f in flags), "the fast recipe's network"


def test_a_few_planes_are_trained_on_in_every_way(
    tmp_path: Path,
    tiny_config: VolumeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import bench_finetune

    import train_basic_3dunet
    from models import ModelConfig, build_model
    from utils.simulation import sample_rng, simulate_volume
    from utils.training.experiment import Experiment

    def run_here(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        title = command[command.index("--experiment_title") + 1]
        told.append(train_basic_3dunet.parse_flags(command[2:]))
        trained = ModelConfig(depth=1, start_channels=1)
        state = {
            "model_config": trained.to_dict(),
            "model_state": build_model(trained).state_dict(),
            "normalizer": {"low_percent": 1.0, "high_percent": 99.0, "rule": "robust"},
            **{"spacing_voxels": [7.0] * 3, "patch_size": 16, "epoch": 1},
        }
        Experiment.create(tmp_path / title, {}, __file__).save_checkpoint("last.pth", state)
        return subprocess.CompletedProcess(command, 0)

    told: list[object] = []
    here = SimpleNamespace(**{**vars(subprocess), "run": run_here})
    monkeypatch.setattr(bench_finetune, "subprocess", here)
    volumes = [simulate_volume(tiny_config, sample_rng(1, k)) for k in range(2)]
    monkeypatch.setattr(bench_finetune, "lab_volumes", lambda number, edge: volumes)
    command = ["--stacks", "2", "--planes", "1", "3", "--edge", "32", "--default_volumes", "1"]
    command += ["--directory", str(tmp_path), "--minutes", "1", "--alone_minutes", "6"]
    assert bench_finetune.main(command) == 0
    table = rows(capsys.readouterr().out)
    alone = "from nothing, {}", "from nothing, {}, 6 minutes"
    trainings = ("from it, {}", "from it, {}, --mix 0.5", *alone)
    names = [name.format(n) for n in ("1 plane", "3 planes") for name in trainings]
    assert [row[0] for row in table[1:]] == ["as shipped", *names]
    assert all(0 <= float(cell.split()[0]) <= 1 for row in table[1:] for cell in row[1:])
    assert [flags.mix for flags in told] == [None, 0.5, None, None] * 4
    assert [bool(flags.init) for flags in told] == [True, True, False, False] * 4
    assert [flags.max_minutes for flags in told] == [1, 1, 1, 6] * 4
    assert all(flags.ignore_label == 99 for flags in told)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {len(found) for found in scores.values()} == {2}


def test_a_labs_stacks_share_a_stain_that_no_volume_of_the_preset_has() -> None:
    import bench_finetune

    first, second = bench_finetune.lab_volumes(0, 64)
    assert first.image.shape == second.image.shape == (64, 64, 64)
    assert first.mask.any() and second.mask.any() and (first.mask != second.mask).any()
    assert (bench_finetune.lab_volumes(0, 64)[0].image == first.image).all()
