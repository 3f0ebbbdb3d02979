"""The benchmark of prediction: it runs with a tiny size, and a mistake is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "bench_prediction.py"


def run(*flags):
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True)


@pytest.mark.timeout(900)  # three processes that import torch, on a machine that may be busy
def test_both_methods_find_the_same_in_less_memory_than_estimated():
    answer = run("--sizes", "40x36x44", "--window", "24", "--precision", "32", "--batch_size", "2")
    assert answer.returncode == 0, answer.stderr
    rows = [line.strip("|").split("|") for line in answer.stdout.splitlines() if "40 x 36" in line]
    assert [row[1].strip() for row in rows] == ["ours", "monai"]
    for row in rows:
        seconds, rate, windows, peak, base = map(float, row[2:7])
        assert seconds >= windows >= 0 and rate >= 0 and peak > base > 0.05
    assert float(rows[0][7]) >= float(rows[0][5])
    assert "masks agree in 99." in answer.stdout or "masks agree in 100." in answer.stdout


@pytest.mark.parametrize(
    "flags", [("--sizes", "1x2"), ("--sizes", "large"), ("--methods", "theirs"), ("--memory", "x")]
)
def test_a_mistake_is_one_line(flags):
    answer = run(*flags)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1
