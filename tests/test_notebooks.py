"""The notebooks run from their own folder, and are kept with pictures, small, without paths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_all_are_there() -> None:
    expected = ["columns", "fine_tune", "predict_real_stack", "quickstart_2d", "quickstart_3d"]
    assert [path.stem for path in NOTEBOOKS] == expected


@pytest.mark.timeout(900)  # each begins with a kernel of its own and trains or predicts
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run(path: Path, tmp_path: Path) -> None:
    """In a process of its own, as nbmake wants to be switched on for a run."""
    places = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--nbmake-timeout=600"]
    ended = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",  # threads that wait for cores burn them
            **dict.fromkeys(places, str(tmp_path)),  # no settings or history of the user's
        },
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "1 passed" in ended.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_small_and_clean(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 1_000_000
    assert "/root/" not in text and "/home/" not in text and str(ROOT) not in text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
