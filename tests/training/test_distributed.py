"""Several processes train one network: gloo on a CPU, started by Fabric and by torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_basic_3dunet
from tests.conftest import write_fake_file
from tests.training import ranks_worker
from utils.checkpoints.loading import load_checkpoint
from utils.devices import Compute
from utils.training.ranks import make_fabric

ROOT = Path(train_basic_3dunet.__file__).parent
WORKER = ranks_worker.__file__
pytestmark = pytest.mark.timeout(900)  # processes that load torch one beside the other


def run_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python from the root of the checkout, with one thread a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def single() -> dict:
    fabric = make_fabric(Compute("cpu", "32-true", "test"), 0)
    return {**ranks_worker.measure(fabric), "mixed": ranks_worker.mixed(fabric)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def ended(folder: Path) -> subprocess.CompletedProcess[str]:
    """The worker with two ranks that Fabric has started, of which the second fails at last."""
    return run_python(WORKER, "fabric", folder, "1")


@pytest.fixture(scope="module")
def both(folder: Path, ended: subprocess.CompletedProcess[str]) -> list[dict]:
    assert (folder / "rank_1.pt").exists(), ended.stderr
    assert "Warning" not in ended.stderr
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(2)]


def test_ranks_have_the_gradients_of_the_whole_batch(single: dict, both: list[dict]) -> None:
    for name in ("gradients", "weights"):
        for one, first, second in zip(single[name], both[0][name], both[1][name], strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, one, rtol=1e-4, atol=1e-7)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in single["gradients"])


def test_ranks_see_different_patches_that_are_together_the_single_ones(
    single: dict, both: list[dict]
) -> None:
    for epoch in range(2):
        first, second = both[0]["seen"][epoch], both[1]["seen"][epoch]
        assert not set(first) & set(second)
        assert [len(first), len(second)] == [6, 4]
        whole = single["seen"][epoch]
        for batch in range(2):
            shares = {*first[3 * batch : 3 * batch + 3], *second[2 * batch : 2 * batch + 2]}
            assert shares == set(whole[5 * batch : 5 * batch + 5])
    assert single["seen"][0] != single["seen"][1]


def test_every_batch_of_each_rank_is_mixed_and_no_patch_is_another_ranks(
    single: dict, both: list[dict]
) -> None:
    """Of four patches each of two ranks has one that is simulated and one that is real."""
    for epoch in range(2):
        whole, shares = single["mixed"][epoch], [found["mixed"][epoch] for found in both]
        assert [len(batches) for batches in (whole, *shares)] == [4, 4, 4]
        for batch in range(4):
            parts = [share[batch] for share in shares]
            assert all(len(part) == 2 and part[0] >= 0 > part[1] for part in parts)
            assert {part[1] for part in parts} == {m for m in whole[batch] if m < 0}
        live = [{m for batch in batches for m in batch if m >= 0} for batches in (whole, *shares)]
        assert live[1] | live[2] == live[0] and not live[1] & live[2] and len(live[1]) == 4
    assert both[0]["mixed"][0] != both[0]["mixed"][1]


def test_a_mistake_in_the_data_is_told_by_the_first_rank_alone(both: list[dict]) -> None:
    assert [found["refused"] for found in both] == [
        ["UserError('no labels')", "loaded"],
        ["SystemExit(0)", "loaded"],
    ]


def test_ranks_report_the_sums_of_all(single: dict, both: list[dict]) -> None:
    for found in both:
        assert found["losses"] == pytest.approx(single["losses"], rel=1e-5)
        assert found["counts"] == single["counts"]
        assert found["samples"] == single["samples"] == [10, 10, 3]
    assert both[0]["losses"] == both[1]["losses"]
    assert [found["shown"] for found in (single, *both)] == [[0, 1, 2], [0], [1, 2]]


def test_weights_are_named_as_in_a_single_process(single: dict, both: list[dict]) -> None:
    assert both[0]["names"] == single["names"]


def test_running_statistics_are_averaged_and_the_first_decides(both: list[dict]) -> None:
    assert [found["average"] for found in both] == [0.5, 0.5]
    assert [found["word"] for found in both] == [True, True]


def stopped(error: str) -> list[str]:
    return sorted(line for line in error.splitlines() if line.startswith("training stopped"))


def test_another_rank_that_fails_ends_all(
    folder: Path, ended: subprocess.CompletedProcess[str]
) -> None:
    assert ended.returncode and "Traceback" not in ended.stderr
    assert "training stopped: rank 1: out of memory: lower --b" in "".join(stopped(ended.stderr))
    log = json.loads((folder / "run" / "logs.json").read_text())
    assert len(log["epochs"]) == 1
    # Nothing is recorded where Fabric kills the first rank before it meets a closed connection.
    assert log["exit"]["status"] in (1, None)


def test_the_first_rank_that_fails_under_torchrun_ends_all(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1")
    ended = run_python(*torchrun, "--nproc_per_node", "2", WORKER, "torchrun", tmp_path, "0")
    assert ended.returncode
    assert stopped(ended.stderr)[0].startswith("training stopped: out of memory: lower --b")
    log = json.loads((tmp_path / "run" / "logs.json").read_text())
    assert len(log["epochs"]) == 1
    assert log["exit"]["status"] == 1 and log["exit"]["reason"].startswith("out of memory")


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Flags of a small training called shared."""
    for name, seed, samples in (("train", 1, 6), ("val", 2, 3)):
        write_fake_file(tmp_path / f"{name}.h5", seed=seed, num_samples=samples)
    return [
        *("--data_dir", str(tmp_path), "--train_files", "train.h5", "--val_files", "val.h5"),
        *("--log_path", str(tmp_path / "logs"), "--experiment_title", "shared"),
        *("--depth", "2", "--start_channels", "2", "--patch_size", "8", "--batch_size", "4"),
        *("--num_workers", "0", "--device", "cpu", "--precision", "32", "--compile", "off"),
        "--no-tensorboard",
    ]


@pytest.mark.usefixtures("unrendered")
def test_from_one_process_to_two_until_a_signal_and_back(flags: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "logs" / "shared"
    last = directory / "checkpoints" / "last.pth"
    assert train_basic_3dunet.main([*flags, "--experiment_title", "alone", "--epochs", "1"]) == 0
    # This process keeps the directory of its own training locked until it ends.
    shutil.copytree(tmp_path / "logs" / "alone", directory)
    names = list(load_checkpoint(last)["model_state"])

    command = [sys.executable, ROOT / "train_basic_3dunet.py", *flags, "--resume"]
    with subprocess.Popen(
        [*command, "--epochs", "100000", "--devices", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = []
        while "epoch      2/" not in (line := process.stdout.readline()):
            assert line
            lines.append(line)
        process.send_signal(signal.SIGTERM)  # to the first rank alone, which tells the other
        output, error = process.communicate(timeout=300)
    assert process.returncode == 130
    output = "".join(lines)
    assert "loader processes each, 2 processes train together" in output
    assert output.count("network ") == 1
    said = ["SIGTERM: training ends after this step; again: at once"]
    assert error.split("\n") == ["", *said, "training stopped: interrupted by SIGTERM", ""]
    log = json.loads((directory / "logs.json").read_text())
    assert log["exit"] == {"reason": "interrupted by SIGTERM", "status": 130}
    state = load_checkpoint(last)
    assert list(state["model_state"]) == names and state["epoch"] == len(log["epochs"]) >= 2
    assert json.loads((directory / "config.json").read_text())["processes"] == 2

    epochs = state["epoch"] + 1
    more = ["--resume", "--epochs", str(epochs), "--devices", "1"]
    assert train_basic_3dunet.main([*flags, *more]) == 0
    log = json.loads((directory / "logs.json").read_text())
    assert [record["epoch"] for record in log["epochs"]] == list(range(1, epochs + 1))
    assert [resumption["epoch"] for resumption in log["resumptions"]] == [1, epochs - 1]
    assert log["exit"]["status"] == 0
