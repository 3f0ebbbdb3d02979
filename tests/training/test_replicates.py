"""Replicates over seeds: what is started, what is reported, and what one failure leaves intact."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from utils.errors import UserError
from utils.training.replicates import (
    describe,
    interval,
    read_replicate,
    save_report,
    seed_list,
    summarise,
    train_replicates,
    wants_replicates,
)

SCRIPT = '''
"""Stands in for a training script: writes a log directory in no time."""
import json, pathlib, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
seed = int(arguments["--seed"])
directory = pathlib.Path(arguments["--log_path"]) / arguments["--experiment_title"]
if arguments["--mode"] == "refuse":
    print("stub: --mode refuse: no", file=sys.stderr)
    sys.exit(2)
directory.mkdir(parents=True, exist_ok="--resume" in sys.argv)
(directory / "arguments.json").write_text(json.dumps(sys.argv[1:]))
status = 1 if arguments["--mode"] == "fail" and seed == 1 else 0
epochs = [
    {"epoch": n, "train_loss": 1.0, "valid_loss": 1 / n, "valid_iou": 0.1 * seed + iou}
    for n, iou in enumerate((0.2, 0.4, 0.3), 1)
]
log = {"epochs": epochs, "exit": {"reason": "stub", "status": status}}
(directory / "logs.json").write_text(json.dumps(log))
print("trained", seed, flush=True)
if arguments["--mode"] == "wait":
    time.sleep(600)
sys.exit(status)
'''


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log_path")
    parser.add_argument("--experiment_title", default="many")
    parser.add_argument("--seeds", type=seed_list)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode")
    return parser.parse_args(arguments)


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "stub.py"
    path.write_text(SCRIPT)
    return str(path)


def run(script: str, tmp_path: Path, *more: str, mode: str = "work", seeds: str = "0,1,4") -> int:
    flags = ["--mode", mode, "--log_path", str(tmp_path / "logs"), "--seeds", seeds, *more]
    return train_replicates(script, flags, parse_flags)


def arguments_of(tmp_path: Path, seed: int) -> list[str]:
    path = tmp_path / "logs" / "many" / f"seed_{seed}" / "arguments.json"
    return json.loads(path.read_text())


def test_each_seed_has_a_log_directory_and_all_have_a_report(
    script: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(script, tmp_path) == 0
    directory = tmp_path / "logs" / "many"
    assert arguments_of(tmp_path, 4) == [
        *("--mode", "work", "--log_path", str(tmp_path / "logs"), "--seed", "4"),
        *("--log_path", str(directory), "--experiment_title", "seed_4"),
    ]
    report = json.loads((directory / "replicates.json").read_text())
    assert report["seeds"] == [0, 1, 4]
    assert [one["best"]["valid_iou"] for one in report["replicates"]] == pytest.approx(
        [0.4, 0.5, 0.8]
    )
    assert [one["best_epoch"] for one in report["replicates"]] == [2, 2, 2]
    assert report["summary"]["final"]["valid_iou"]["mean"] == pytest.approx(0.3 + 0.5 / 3)
    assert "train_loss" not in report["summary"]["final"]
    output = capfd.readouterr().out
    assert [line for line in output.splitlines() if line.startswith("replicate ")] == [
        f"replicate {n} of 3: {directory}/seed_{seed}" for n, seed in enumerate((0, 1, 4), 1)
    ]
    assert "best valid_iou: 0.5667, 95 % interval " in output
    assert "(Student's t, 3 seeds)" in output


def test_a_failing_replicate_leaves_the_others(script: str, tmp_path: Path) -> None:
    assert run(script, tmp_path, mode="fail") == 1
    report = json.loads((tmp_path / "logs" / "many" / "replicates.json").read_text())
    assert [one["status"] for one in report["replicates"]] == [0, 1, 0]
    best = report["summary"]["best"]["valid_iou"]
    assert best["n"] == 2 and best["mean"] == pytest.approx(0.6)


def test_resume_skips_what_is_finished(
    script: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(script, tmp_path, mode="fail", seeds="0,1") == 1
    assert run(script, tmp_path, "--resume", seeds="0,1,4") == 0
    output = capfd.readouterr().out
    assert "seed_0 is finished: stub" in output
    assert [output.count(f"trained {seed}") for seed in (0, 1, 4)] == [1, 2, 1]
    assert "--resume" in arguments_of(tmp_path, 1)
    assert "--resume" not in arguments_of(tmp_path, 4)


def test_a_new_replicate_has_the_flags_of_those_that_are_there(script: str, tmp_path: Path) -> None:
    assert run(script, tmp_path, seeds="0") == 0
    config = tmp_path / "logs" / "many" / "seed_0" / "config.json"
    flags = {"mode": "other", "seed": 0, "seeds": None, "log_path": "elsewhere", "device": "cpu"}
    config.write_text(json.dumps({"script": Path(script).name, "flags": flags}))
    message = "--mode: seed_0 has other, a new one would have work. Give the flags of the first"
    with pytest.raises(UserError, match=message):
        run(script, tmp_path, "--resume", seeds="0,1")
    assert not (config.parents[1] / "seed_1").exists()
    assert run(script, tmp_path, "--resume", seeds="0") == 0
    config.write_text(json.dumps({"script": Path(script).name, "flags": flags | {"mode": "work"}}))
    assert run(script, tmp_path, "--resume", seeds="0,1") == 0


def test_flags_that_the_script_refuses_end_at_once(
    script: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(script, tmp_path, mode="refuse") == 2
    assert capfd.readouterr().err == "stub: --mode refuse: no\n"
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "0"], "--seed and --seeds exclude each other"),
        (["--seed=3"], "--seed and --seeds exclude each other"),
    ],
)
def test_conflicts(script: str, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(script, tmp_path, *more)


def test_an_existing_experiment_is_left_alone(script: str, tmp_path: Path) -> None:
    directory = tmp_path / "logs" / "many"
    directory.mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        run(script, tmp_path)
    (directory / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds a single run"):
        run(script, tmp_path, "--resume")


def test_not_under_a_launcher(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match="--seeds does not go with torchrun"):
        run(script, tmp_path)


def test_a_request_to_terminate_reaches_the_replicate(script: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_replicates as t, pathlib;"
        "sys.exit(t.run(sys.argv[2], pathlib.Path(sys.argv[3]), mode='wait'))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), script, str(tmp_path)]
    deadline = time.monotonic() + 240
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as running:
        while not (tmp_path / "logs" / "many" / "seed_0" / "logs.json").exists():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        assert running.wait(240) == 130
    assert not (tmp_path / "logs" / "many" / "seed_1").exists()
    assert (tmp_path / "logs" / "many" / "replicates.json").exists()


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1,1", "-1", "4294967296", "1.5"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be"):
        seed_list(text)


def test_seeds() -> None:
    assert seed_list("0") == (0,) and seed_list("2, 0,1") == (2, 0, 1)
    assert wants_replicates(["--seeds", "1"]) and wants_replicates(["--seeds=1"])
    assert not wants_replicates(["--seed", "1"])


def test_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).random(5).tolist()
    found = interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert interval([0.5]) == {"n": 1, "mean": 0.5, "sd": None, "low": None, "high": None}
    assert interval([0.5, 0.5])["low"] == 0.5


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [interval(rng.normal(2.0, 3.0, 3).tolist()) for _ in range(1000)]
    assert np.mean([one["low"] <= 2.0 <= one["high"] for one in found]) == pytest.approx(
        0.95, abs=0.02
    )


def test_a_replicate_without_a_log_is_said(tmp_path: Path) -> None:
    assert read_replicate(tmp_path, 3)["status"] is None
    report = save_report(tmp_path, [3])
    assert report["summary"] == {}
    assert describe(report).startswith("seed_3: no readable logs.json")


def test_test_scores_are_summarised_and_words_are_not() -> None:
    replicates = [
        {"test": {"iou": iou, "note": "x", "mean_distance": None}, "best": {}, "final": {}}
        for iou in (0.4, 0.6)
    ]
    summary = summarise(replicates)
    assert set(summary) == {"test"} and set(summary["test"]) == {"iou"}
    assert summary["test"]["iou"]["mean"] == pytest.approx(0.5)
