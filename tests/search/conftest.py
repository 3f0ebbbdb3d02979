"""A training script that trains nothing, so that searches take no time."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from utils.search import definition, trial

ROOT = Path(__file__).resolve().parents[2]
STUB = f'''
import json, sys, time
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from train_basic_3dunet import parse_flags
from utils.replacing import replacing


def write(path, content):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))


def main():
    """Learn faster with depth; --start_channels is the number of seconds that an epoch takes."""
    flags = parse_flags()
    if flags.depth == 7:
        print("loading\\nstub.py: the network has 77 parameters, outside the bounds",
              file=sys.stderr)
        return 2
    directory = Path(flags.log_path) / flags.experiment_title
    directory.mkdir()
    write(directory / "config.json", {{"parameters": 100 * flags.depth}})
    epochs = []
    for epoch in range(1, flags.epochs + 1):
        iou = 0.1 * flags.depth + 0.01 * epoch + 0.001 * flags.seed
        epochs.append({{"epoch": epoch, "valid_iou": iou, "seconds": 6.0}})
        running = {{"reason": "running", "status": None}}
        write(directory / "logs.json", {{"epochs": epochs, "exit": running}})
        time.sleep(flags.start_channels - 1)
    status = 1 if flags.depth == 6 else 0
    end = {{"reason": "the loss is nan" if status else "completed", "status": status}}
    write(directory / "logs.json", {{"epochs": epochs, "exit": end}})
    return status


if __name__ == "__main__":
    sys.exit(main())
'''


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script ``stub.py`` with the real flags, as the only one that studies may name."""
    path = tmp_path / "scripts" / "stub.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(STUB))
    monkeypatch.setattr(definition, "ROOT", path.parent)
    monkeypatch.setattr(definition, "SCRIPTS", {path.name: 3})
    monkeypatch.setattr(trial, "POLL_SECONDS", 0.05)
    return path
