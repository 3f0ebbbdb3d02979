import csv
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import ndimage

import evaluate
from models import ModelConfig, build_model
from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.figures.learning import save_predictions
from utils.stacks import StackLayout, write_stack
from utils.storage import VolumeFile, VolumeSet, write_simulated_file
from utils.training.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD = ModelConfig(depth=1, start_channels=1, conv_kernel_size=1)
"""A network that passes its input on (positive numbers through two 1x1x1 kernels) to its head."""
RESULTS = ["columns.png", "conditions.png", "metrics.csv", "predictions.png", "summary.json"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_config):
    """A file of three simulated volumes of 32 voxels an edge."""
    path = tmp_path_factory.mktemp("data") / "volumes.h5"
    write_simulated_file(path, VolumeSet(tiny_config, 5, 3))
    return path


def make_log(directory, config, *, weights=None, training_seed=0, **changes):
    torch.manual_seed(0)
    experiment = Experiment.create(
        directory, {"data": {"train": [{"file": "train.h5", "seed": training_seed}]}}, __file__
    )
    state = {
        "model_config": config.to_dict(),
        "model_state": weights or build_model(config).state_dict(),
        "normalizer": PercentileNormalizer().to_dict(),
        "spacing_voxels": [9.0, 9.0, 9.0],
        "patch_size": 24,
        "epoch": 3,
        "metrics": {},
    }
    experiment.save_checkpoint("best.pth", {**state, **changes})
    return directory


def thresholding_weights():
    """Weights of THRESHOLD with logit = 20 x - 10, x the normalised intensity."""
    model = build_model(THRESHOLD)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        model.head.weight.fill_(20.0)
        model.head.bias.fill_(-10.0)
    return model.state_dict()


@pytest.fixture
def log(tmp_path):
    return make_log(tmp_path / "experiment", THRESHOLD, weights=thresholding_weights())


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def iou(found, truth):
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.usefixtures("unrendered")
def test_data_of_another_version_are_scored_with_a_note(data, log, tmp_path, capsys):
    old = tmp_path / "old.h5"
    old.write_bytes(data.read_bytes())
    with h5py.File(old, "r+") as file:
        file.attrs["program_version"] = "0.1"
    flags = ["--checkpoint", str(log), "--volumes", "1"]
    assert evaluate.main([*flags, "--data", str(old)]) == 0
    assert "old.h5 was made by version 0.1" in capsys.readouterr().err
    assert evaluate.main([*flags, "--data", str(data), "--output", str(tmp_path / "new")]) == 0
    assert "version" not in capsys.readouterr().err


def test_scores_are_those_of_a_known_network(data, log, capsys):
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 0
    rows = read_csv(log / "evaluation" / "metrics.csv")
    assert [row["volume"] for row in rows] == ["0", "1", "2"]
    with VolumeFile(data) as file:
        volumes = [file.read_volume(i) for i in range(3)]
    expected = []
    for row, volume in zip(rows, volumes, strict=True):
        low, high = PercentileNormalizer().fit(volume.image)
        # The middle of the range, up to the epsilon in the batch normalisations.
        found = (volume.image - low) / (high - low) > 0.5 * (1 + 1e-5)
        truth, sheet = volume.mask > 0, volume.sheet > 0
        assert float(row["iou"]) == pytest.approx(iou(found, truth), abs=2e-3)
        assert float(row["baseline_iou"]) == pytest.approx(iou(sheet, truth))
        assert float(row["sheet_iou"]) == pytest.approx(iou(found & sheet, truth), abs=2e-3)
        assert float(row["sheet_baseline_iou"]) == pytest.approx(truth.sum() / sheet.sum())
        assert float(row["precision"]) == pytest.approx(truth[found].mean(), abs=2e-3)
        assert float(row["recall"]) == pytest.approx(found[truth].mean(), abs=2e-3)
        assert 0.5 < float(row["sheet_auc"]) < 1
        expected.append(iou(found, truth))
    summary = json.loads((log / "evaluation" / "summary.json").read_text())
    score = summary["scores"]["iou"]
    assert score["mean"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert min(expected) - 2e-3 <= score["low"] <= score["mean"] <= score["high"]
    gain = summary["scores"]["iou_gain"]["mean"]
    assert gain == pytest.approx(score["mean"] - summary["scores"]["baseline_iou"]["mean"])
    printed = capsys.readouterr().out
    assert f"{score['mean']:.3f}" in printed
    assert f"{summary['scores']['baseline_iou']['mean']:.3f}" in printed
    for name in RESULTS:
        assert f"wrote {log / 'evaluation' / name}" in printed
        assert (log / "evaluation" / name).stat().st_size > 0
    assert sorted(p.name for p in (log / "evaluation").iterdir()) == RESULTS


@pytest.mark.usefixtures("unrendered")
def test_summary_says_what_was_scored(data, log, tmp_path):
    output = tmp_path / "a" / "b"
    flags = ["--checkpoint", str(log / "checkpoints" / "best.pth"), "--data", str(data)]
    assert evaluate.main([*flags, "--volumes", "2", "--output", str(output), "--seed", "7"]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["data"]["seed"] == 5 and summary["data"]["volumes"] == [0, 1]
    assert summary["bootstrap_seed"] == 7 and summary["epoch"] == 3 and summary["window"] == 24
    assert (
        ModelConfig.from_dict({k: v for k, v in summary["model"].items() if k != "parameters"})
        == THRESHOLD
    )
    assert summary["model"]["parameters"] == 1 + 2 + 1 + 2 + 1 + 1
    assert not (log / "evaluation").exists()


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("arch", ["unet", "stacked_unet"])
def test_any_architecture_and_any_volume(data, tmp_path, arch, capsys):
    config = ModelConfig(arch=arch, depth=2, start_channels=2, num_stacks=2)
    log = make_log(tmp_path / "log", config, training_seed=5)
    flags = ["--checkpoint", str(log), "--data", str(data), "--volumes", "1"]
    flags += ["--overlap", "0", "--window", "64"]
    assert evaluate.main(flags) == 0
    summary = json.loads((log / "evaluation" / "summary.json").read_text())
    assert evaluate.main([*flags, "--tta", "--output", str(tmp_path / "mirrored")]) == 0
    mirrored = json.loads((tmp_path / "mirrored" / "summary.json").read_text())
    assert summary["tta"] == [] and mirrored["tta"] == ["flips"]
    assert mirrored["scores"]["sheet_auc"] != summary["scores"]["sheet_auc"]
    assert summary["scores"]["iou"]["low"] is None
    assert summary["data"]["training_file_of_this_seed"] == "train.h5"
    assert "trained on" in capsys.readouterr().out


@pytest.mark.usefixtures("unrendered")
def test_the_same_twice(data, log, tmp_path):
    for name in ("a", "b"):
        flags = ["--checkpoint", str(log), "--data", str(data), "--output", str(tmp_path / name)]
        assert evaluate.main(flags) == 0
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text())["scores"] for name in "ab"
    )
    assert first == second


BAD = [
    ({"--volumes": "0"}, "--volumes 0"),
    ({"--volumes": "4"}, "holds 3"),
    ({"--volumes": "many"}, "--volumes"),
    ({"--window": "0"}, "--window 0"),
    ({"--overlap": "1"}, "--overlap 1.0"),
    ({"--batch_size": "0"}, "--batch_size 0"),
    ({"--seed": "-1"}, "--seed -1"),
    ({"--seed": "4294967296"}, "--seed 4294967296"),
    ({"--device": "tpu"}, "--device"),
    ({"--checkpoint": "{tmp}/nothing"}, "nothing"),
    ({"--checkpoint": "{tmp}"}, "checkpoints"),
    ({"--checkpoint": "{tmp}/foreign.pth"}, "foreign.pth"),
    ({"--checkpoint": "{tmp}/text.pth"}, "text.pth"),
    ({"--checkpoint": "{tmp}/flat"}, "2D network"),
    ({"--checkpoint": "{tmp}/mixed"}, "do not fit"),
    ({"--data": "{tmp}/missing.h5"}, "missing.h5"),
    ({"--data": "{tmp}/text.pth"}, "text.pth"),
    ({"--output": "{tmp}/text.pth"}, "text.pth: cannot be made (File exists)"),
    ({"--output": "{tmp}/text.pth/deeper"}, "deeper: cannot be made (Not a directory)"),
    ({"--surface_tolerance": "-1"}, "--surface_tolerance -1"),
    ({"--surface_tolerance": "nan"}, "--surface_tolerance nan"),
    ({"--voxel_size": "1,1"}, "give z,y,x"),
    ({"--voxel_size": "1,0,1"}, "--voxel_size"),
    ({"--voxel_size": "1e-9,1,1"}, "1e-09 x 1 x 1 um (z x y x x) are none of a microscope"),
    ({"--checkpoint": "{tmp}/diverged"}, "weights are not finite"),
    ({"--predictions": "{tmp}"}, "not allowed with"),
    ({"--checkpoint": None}, "--checkpoint --predictions --compare is required"),
    ({"--data": None}, "--data: a file of generate_3d_data.py"),
    ({"--checkpoint": None, "--predictions": "{tmp}/nothing"}, "nothing: neither a stack"),
    ({"--checkpoint": None, "--predictions": "{tmp}/text.pth"}, "text.pth: neither a stack nor"),
    ({"--checkpoint": None, "--predictions": "{tmp}/cut_0.tif"}, "cut_0.tif: cut or damaged"),
    ({"--checkpoint": None, "--predictions": "{tmp}/small_0.npy"}, "small_0.npy: has shape"),
    ({"--checkpoint": None, "--predictions": "{tmp}/small_7.npy"}, "from 0 to 2"),
    ({"--checkpoint": None, "--predictions": "{tmp}/nan_1.npy"}, "nan_1.npy: fractions"),
    ({"--checkpoint": None, "--predictions": "{tmp}/nan_1.npy", "--volumes": "1"}, "volume 0"),
]


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory):
    """A folder of what cannot be scored, beside ``log``, which can; not to be changed."""
    tmp_path = tmp_path_factory.mktemp("bad_inputs")
    make_log(tmp_path / "log", THRESHOLD, weights=thresholding_weights())
    torch.save({"x": 1}, tmp_path / "foreign.pth")
    (tmp_path / "text.pth").write_text("no checkpoint and no HDF5")
    make_log(tmp_path / "flat", ModelConfig(spatial_dims=2, depth=1))
    other = build_model(ModelConfig(depth=2)).state_dict()
    make_log(tmp_path / "mixed", ModelConfig(depth=1), weights=other)
    broken = {name: value * np.nan for name, value in build_model(THRESHOLD).state_dict().items()}
    make_log(tmp_path / "diverged", THRESHOLD, weights=broken)
    (tmp_path / "cut_0.tif").write_bytes(b"II*\0 cut")
    for name in ("small_0", "small_7"):
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 8, 8), np.uint8))
    np.save(tmp_path / "nan_1.npy", np.full((32, 32, 32), np.nan, np.float32))
    return tmp_path


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_mistakes_end_in_one_line_and_status_2(data, bad_inputs, capsys, changes, message):
    flags = {"--checkpoint": str(bad_inputs / "log"), "--data": str(data)} | changes
    given = [(name, text.format(tmp=bad_inputs)) for name, text in flags.items() if text]
    try:
        status = evaluate.main([text for pair in given for text in pair])
    except SystemExit as exit:
        status = exit.code
    shown = capsys.readouterr()
    assert status == 2
    line = shown.err[shown.err.index("evaluate.py:") :]  # a progress bar may stand before it
    assert message in line and line.count("\n") == 1 and shown.out == ""
    assert not list(bad_inputs.rglob("metrics.csv"))


def test_a_scored_volume_that_cannot_be_read_leaves_no_results(data, log, monkeypatch, capsys):
    def broken(self, index):
        raise UserError(f"{self.path}: image of sample {index} cannot be read")

    monkeypatch.setattr(VolumeFile, "read_volume", broken)
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert list((log / "evaluation").iterdir()) == []


@pytest.mark.parametrize("interrupted", ["prepare", "score_and_write"])
def test_ctrl_c_is_one_line_at_any_moment(data, log, monkeypatch, capsys, interrupted):
    def stop(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, interrupted, stop)
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 130
    assert capsys.readouterr().err == "evaluate.py: interrupted before all results were written\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_one_line_with_a_remedy(data, log, monkeypatch, capsys, error):
    def fail(*_, **options):
        raise error

    monkeypatch.setattr("utils.evaluation.scoring.score_volume", fail)
    assert evaluate.main(["--checkpoint", str(log), "--data", str(data)]) == 2
    line = [part for part in capsys.readouterr().err.splitlines() if "evaluate.py" in part]
    assert len(line) == 1 and "out of memory: lower --batch_size or --window" in line[0]


# Prediction files ---------------------------------------------------------------------------------


def truths(data):
    with VolumeFile(data) as file:
        return [file.read_volume(index) for index in range(len(file))]


def save(folder, index, values, spacing=None):
    folder.mkdir(exist_ok=True)
    layout = StackLayout(values.shape, values.dtype, spacing)
    write_stack(folder / f"volume_{index}_mask.tif", [values], layout)


def save_all(folder, masks, **options):
    for index, mask in enumerate(masks):
        save(folder, index, mask.astype(np.uint8), **options)
    return folder


def table_of(folder):
    return {int(row["volume"]): row for row in read_csv(folder / "metrics.csv")}


@pytest.mark.usefixtures("unrendered")
def test_the_truth_as_a_prediction_is_perfect(data, tmp_path, capsys):
    masks = save_all(tmp_path / "masks", [v.mask for v in truths(data)], spacing=(0.5, 0.5, 2.0))
    assert evaluate.main(["--predictions", str(masks), "--data", str(data)]) == 0
    summary = json.loads((masks / "evaluation" / "summary.json").read_text())
    ones = ("iou", "dice", "precision", "recall", "surface_dice", "surface_dice_um", "sheet_auc",
            "recall_left_out", "recall_rendered", "covered_left_out", "covered_C")  # fmt: skip
    assert {summary["scores"][name]["mean"] for name in ones} == {1.0}
    assert {summary["scores"][name]["high"] for name in ("hd95", "hd95_um", "total_error")} == {0}
    assert set(summary["predictions"]) == {"0", "1", "2"}
    assert sorted(p.name for p in (masks / "evaluation").iterdir()) == RESULTS
    assert "left-out columns at least half covered 1.000" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.usefixtures("unrendered")
def test_left_out_columns_are_scored_apart(data, tmp_path):
    volumes = truths(data)
    shown = [np.append(0, v.column_type > 0)[v.instances] for v in volumes]
    masks = save_all(tmp_path / "masks", shown)
    output = tmp_path / "out"
    flags = ["--predictions", str(masks), "--data", str(data), "--no_surface"]
    assert evaluate.main([*flags, "--output", str(output)]) == 0
    rows = table_of(output)
    assert [row["covered_left_out"] for row in rows.values()] == ["", "", "0.0"]  # most lie outside
    assert int(rows[2]["columns_left_out"]) == 1
    for index, row in rows.items():
        assert float(row["recall_rendered"]) == 1 and float(row["recall_left_out"]) == 0
        assert int(row["gain"]) == volumes[index].parameters.gain
        assert "hd95" not in row and "surface_dice" not in row
    assert json.loads((output / "summary.json").read_text())["surface_tolerance_voxels"] is None


@pytest.mark.usefixtures("unrendered")
def test_a_prediction_of_nothing_is_scored_as_said(data, tmp_path):
    masks = save_all(tmp_path / "masks", [np.zeros(v.mask.shape) for v in truths(data)])
    flags = ["--predictions", str(masks), "--data", str(data), "--voxel_size", "2,1,1"]
    assert evaluate.main(flags) == 0
    for row in table_of(masks / "evaluation").values():
        assert row["precision"] == "" and float(row["recall"]) == float(row["dice"]) == 0
        assert float(row["hd95"]) == pytest.approx(32 * 3**0.5)
        assert float(row["hd95_um"]) == pytest.approx(32 * 6**0.5)
        assert float(row["surface_dice"]) == 0
    summary = json.loads((masks / "evaluation" / "summary.json").read_text())
    assert summary["empty"] == {"truths": 0, "predictions": 3}
    assert summary["scores"]["precision"] == {"mean": None, "low": None, "high": None, "volumes": 0}


@pytest.mark.usefixtures("unrendered")
def test_some_files_and_probabilities(data, tmp_path, capsys):
    volume = truths(data)[2]
    save(tmp_path / "maps", 2, (volume.mask * 0.4 + 0.3).astype(np.float32))
    path = tmp_path / "maps" / "volume_2_mask.tif"
    flags = ["--predictions", str(path), "--data", str(data), "--surface_tolerance", "2"]
    assert evaluate.main(flags) == 0
    assert "1 of the 3 volumes were scored" in capsys.readouterr().out
    row = table_of(tmp_path / "maps" / "evaluation")[2]
    assert float(row["iou"]) == float(row["sheet_auc"]) == 1
    summary = json.loads((tmp_path / "maps" / "evaluation" / "summary.json").read_text())
    assert summary["data"]["volumes"] == [2] and summary["surface_tolerance_voxels"] == 2


# Comparison ---------------------------------------------------------------------------------------


@pytest.fixture
def masks(data, tmp_path):
    """Two folders of predictions: columns worn by a voxel all around, and every second column."""
    volumes = truths(data)
    worn = [ndimage.binary_erosion(v.mask, iterations=1) for v in volumes]
    half = [v.instances % 2 == 1 for v in volumes]
    return save_all(tmp_path / "worn", worn), save_all(tmp_path / "half", half)


def read_comparison(folder):
    return json.loads((folder / "comparison.json").read_text()), {
        int(row["volume"]): row for row in read_csv(folder / "comparison.csv")
    }


@pytest.mark.usefixtures("unrendered")
def test_compared_predictions_differ_by_pairs(data, masks, tmp_path, capsys):
    output = tmp_path / "out"
    flags = ["--compare", *map(str, masks), "--data", str(data), "--output", str(output)]
    assert evaluate.main(flags) == 0
    summary, rows = read_comparison(output)
    a, b = table_of(output / "A"), table_of(output / "B")
    assert list(rows) == [0, 1, 2] == summary["volumes"]
    gaps = [float(b[i]["iou"]) - float(a[i]["iou"]) for i in rows]
    assert [float(row["iou_difference"]) for row in rows.values()] == pytest.approx(gaps)
    found = summary["differences"]["iou"]
    assert found["difference"]["mean"] == pytest.approx(np.mean(gaps))
    assert min(gaps) <= found["difference"]["low"] <= found["difference"]["high"] <= max(gaps)
    assert found["b_higher"] == sum(gap > 0 for gap in gaps)
    assert "gain" not in summary["differences"] and "foreground" not in summary["differences"]
    assert sorted(p.name for p in (output / "A").iterdir()) == RESULTS
    assert (output / "comparison.png").exists()
    assert f"{np.mean(gaps):.3f}" in capsys.readouterr().out


@pytest.mark.usefixtures("unrendered")
def test_earlier_results_are_compared_without_data(data, masks, tmp_path, monkeypatch):
    for folder in masks:
        assert evaluate.main(["--predictions", str(folder), "--data", str(data)]) == 0
    earlier = [str(folder / "evaluation") for folder in masks]
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--compare", *earlier]) == 0
    summary, rows = read_comparison(tmp_path / "comparison")
    assert len(rows) == 3 and summary["data"]["seed"] == 5
    a = table_of(masks[0] / "evaluation")
    assert {i: row["dice_a"] for i, row in rows.items()} == {i: a[i]["dice"] for i in a}
    assert sorted(p.name for p in (tmp_path / "comparison").iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.png",
    ]
    flags = ["--compare", earlier[0] + "/metrics.csv", str(masks[1]), "--data", str(data)]
    assert evaluate.main([*flags, "--volumes", "2", "--output", "mixed"]) == 0
    assert read_comparison(tmp_path / "mixed")[0]["volumes"] == [0, 1]


@pytest.mark.usefixtures("unrendered")
def test_a_network_beside_itself_differs_by_nothing(data, log, tmp_path):
    flags = ["--compare", str(log), str(log / "checkpoints" / "best.pth"), "--data", str(data)]
    assert evaluate.main([*flags, "--volumes", "2", "--output", str(tmp_path / "out")]) == 0
    summary, _ = read_comparison(tmp_path / "out")
    same = summary["differences"]["iou"]
    assert same["difference"]["mean"] == same["a_higher"] == same["b_higher"] == 0
    assert same["p_value"] is None


@pytest.mark.usefixtures("unrendered")
def test_a_comparison_says_what_to_beware_of(data, masks, tmp_path, capsys):
    trained = make_log(tmp_path / "t", THRESHOLD, weights=thresholding_weights(), training_seed=5)
    (masks[0] / "volume_2_mask.tif").unlink()
    flags = ["--compare", str(trained), str(masks[0]), "--data", str(data), "--no_surface"]
    assert evaluate.main([*flags, "--volumes", "2", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "wrote" in printed.split("note on A")[0] and "wrote" not in printed.split("note on A")[1]
    assert "note on A: train.h5, which the network was trained on" in printed
    assert "note on B: 2 of the 3 volumes were scored" in printed
    only = tmp_path / "third"
    only.mkdir()
    (only / "metrics.csv").write_text("volume,iou\n2,0.5\n")
    assert evaluate.main(["--compare", str(only), str(only), "--volumes", "2"]) == 2
    assert "metrics.csv" in capsys.readouterr().err


def test_unequal_sets_of_volumes_are_refused(data, masks, tmp_path, capsys):
    (masks[1] / "volume_1_mask.tif").unlink()
    flags = ["--compare", *map(str, masks), "--data", str(data)]
    assert evaluate.main([*flags, "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert "only A has volume 1" in shown.err and shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unrendered")
def test_results_that_are_not_there_are_named(tmp_path, capsys):
    assert evaluate.main(["--compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 2
    assert "first: no metrics.csv of an earlier evaluation" in capsys.readouterr().err


@pytest.mark.usefixtures("unrendered")
def test_results_on_other_data_are_refused(data, masks, tmp_path, capsys):
    assert evaluate.main(["--predictions", str(masks[0]), "--data", str(data)]) == 0
    earlier = masks[0] / "evaluation"
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.csv").write_text((earlier / "metrics.csv").read_text())
    summary = json.loads((earlier / "summary.json").read_text())
    summary["data"]["seed"] = 6
    (other / "summary.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert evaluate.main(["--compare", str(earlier), str(other)]) == 2
    assert "seed of the data differs" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "volume,iou\n0,x\n"])
def test_a_damaged_table_is_refused(tmp_path, capsys, text):
    (tmp_path / "metrics.csv").write_text(text)
    assert evaluate.main(["--compare", str(tmp_path), str(tmp_path)]) == 2
    assert "not as evaluate.py writes it" in capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, evaluate\n"
        "try: evaluate.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'h5py', 'monai', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout and "None" not in done.stdout


# Labelled stacks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(data, tmp_path_factory):
    """Two of the simulated volumes as a lab would have them: images and labels."""
    folder = tmp_path_factory.mktemp("lab")
    for index, volume in enumerate(truths(data)[:2]):
        write_labelled(folder, f"fly{index}", volume.image, volume.instances)
    return folder


def write_labelled(folder, name, image, labels):
    for part, array in {"images": image, "labels": labels}.items():
        (folder / part).mkdir(exist_ok=True, parents=True)
        layout = StackLayout(array.shape, array.dtype, axes="ZYX"[-array.ndim :])
        write_stack(folder / part / f"{name}.tif", [array], layout)


@pytest.mark.usefixtures("unrendered")
def test_labelled_stacks_score_as_the_volumes_that_they_are(data, lab, log, tmp_path, capsys):
    given = ["--checkpoint", str(log), "--columns"]
    outputs = [tmp_path / name for name in ("simulated", "labelled")]
    flags = [*given, "--data", str(data), "--volumes", "2", "--output", str(outputs[0])]
    assert evaluate.main(flags) == 0
    capsys.readouterr()
    flags = [*given, "--data", str(lab), "--scale", "1", "--output", str(outputs[1])]
    assert evaluate.main(flags) == 0
    simulated, labelled = (read_csv(output / "metrics.csv") for output in outputs)
    known = ("iou", "dice", "precision", "recall", "total_error", "hd95", "surface_dice")
    for expected, row in zip(simulated, labelled, strict=True):
        assert {n: row[n] for n in known} == {n: expected[n] for n in known}
        assert 0 <= float(row["instance_f1_iou30"]) <= 1 and int(row["columns_labelled"]) > 3
        assert not [name for name in row if "sheet" in name or "left_out" in name]
    assert [row["stack"] for row in labelled] == ["fly0", "fly1"]
    assert sorted(p.name for p in outputs[1].iterdir()) == RESULTS
    summary = json.loads((outputs[1] / "summary.json").read_text())
    assert [s["name"] for s in summary["data"]["stacks"]] == ["fly0", "fly1"]
    assert summary["data"]["stacks"][0]["annotated"] == 32**3
    shown = capsys.readouterr().out
    assert "fly0.tif: 32 x 32 x 32 voxels, 32,768 annotated (100 %)" in shown
    assert "note: labels do not tell of the sheet" in shown and "note: fly1.tif: " in shown


@pytest.mark.usefixtures("unrendered")
def test_predictions_of_labelled_stacks_go_by_name(data, lab, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for index, volume in enumerate(truths(data)[:2]):
        layout = StackLayout(volume.mask.shape, volume.mask.dtype)
        write_stack(masks / f"fly{index}_mask.tif", [volume.mask], layout)
    flags = ["--data", str(lab)]
    assert evaluate.main(["--predictions", str(masks), *flags]) == 0
    assert {row["iou"] for row in read_csv(masks / "evaluation" / "metrics.csv")} == {"1.0"}
    compared = ["--compare", str(masks / "evaluation"), str(masks), "--output", str(tmp_path / "c")]
    assert evaluate.main([*compared, *flags]) == 0
    summary = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert summary["differences"]["iou"]["a"] == 1 and summary["volumes"] == [0, 1]


@pytest.mark.usefixtures("unrendered")
def test_images_of_two_axes_and_a_plane_network(lab, tmp_path):
    flat = make_log(tmp_path / "flat", ModelConfig(spatial_dims=2, depth=1, start_channels=1))
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 16), np.uint8)
    labels[4:9, 3:12] = 1
    write_labelled(tmp_path / "2d", "a", rng.integers(0, 255, labels.shape, np.uint8), labels)
    for folder in (tmp_path / "2d", lab):
        flags = ["--checkpoint", str(flat), "--data", str(folder), "--output", str(tmp_path / "o")]
        assert evaluate.main(flags) == 0
        rows = read_csv(tmp_path / "o" / "metrics.csv")
        assert [row["stack"] for row in rows] == (["a"] if folder != lab else ["fly0", "fly1"])
        assert ("columns_labelled" in rows[0]) == (folder == lab)


def test_pictures_of_stacks_that_are_annotated_in_part(data, log, tmp_path, monkeypatch):
    volume = truths(data)[0]
    labels = volume.instances.astype(np.uint16)
    labels[:10] = 9999
    write_labelled(tmp_path / "lab", "a", volume.image, labels)
    drawn = []

    def keep(*given, **options):
        drawn.append(given)
        return save_predictions(*given, **options)

    monkeypatch.setattr("utils.figures.evaluation.save_predictions", keep)
    flags = ["--checkpoint", str(log), "--data", str(tmp_path / "lab"), "--ignore_label", "9999"]
    assert evaluate.main([*flags, "--no_surface", "--output", str(tmp_path / "o")]) == 0
    assert all((tmp_path / "o" / name).stat().st_size > 1000 for name in RESULTS[:2])
    ((images, masks, (probabilities,), _),) = drawn
    assert np.isnan(probabilities[:10]).all() and not np.isnan(probabilities[10:]).any()
    assert not masks[0][:10].any() and images[0].shape == (32, 32)


BAD_LABELS = [
    ({"--data": "{tmp}/empty"}, "empty: no labelled stacks"),
    ({"--data": "{tmp}/blank"}, "a.tif: no voxel is labelled"),
    ({"--data": "{tmp}/other"}, "a.tif: has shape (16, 16, 8) (x, y, z), and"),
    ({"--data": "{tmp}/floats"}, "a.tif: holds fractions"),
    ({"--data": "{tmp}/good", "--ignore_label": "1"}, "a.tif: no voxel is labelled"),
    ({"--data": "{tmp}/good", "--ignore_label": "0"}, "all that is annotated is 1, background"),
    ({"--data": "{tmp}/good", "--channel": "1"}, "--channel 1"),
    ({"--data": "{tmp}/good", "--scale": "0"}, "--scale 0.0: must be auto or lie in"),
    ({"--data": "{tmp}/good", "--voxel_size": "1,1"}, "--voxel_size has 2"),
    ({"--data": "{tmp}/flat", "--columns": ""}, "--columns: "),
    ({"--data": "{tmp}/flat"}, "a 3D network"),
    ({"--ignore_label": "1"}, "--ignore_label 1: is for labelled stacks, not for"),
    ({"--scale": "2"}, "--scale 2.0: is for labelled stacks"),
    ({"--checkpoint": None, "--predictions": "{tmp}/good/labels", "--data": "{tmp}/two"},
     "a.tif: its name must begin with that of its stack, as b_mask.tif does"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad_labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_labels")
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 16), np.uint8)
    good = (image > 200).astype(np.uint8)
    (folder / "empty").mkdir()
    for name, labels in {
        "good": good,
        "blank": 0 * good,
        "other": good[..., :8],
        "floats": good * np.float32(0.5),
    }.items():
        write_labelled(folder / name, "a", image, labels)
    write_labelled(folder / "flat", "a", image[0], good[0])
    write_labelled(folder / "two", "b", image, good)
    return folder


@pytest.mark.parametrize(("changes", "message"), BAD_LABELS)
def test_bad_labels_end_in_one_line_and_status_2(
    data, log, bad_labels, tmp_path, capsys, changes, message
):
    flags = {"--checkpoint": str(log), "--data": str(data)} | changes
    given = [
        (name, text.format(tmp=bad_labels)) for name, text in flags.items() if text is not None
    ]
    output = ["--output", str(tmp_path / "out")]
    assert evaluate.main([*(part for pair in given for part in pair if part), *output]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
