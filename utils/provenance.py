"""All version numbers, and with which program and machine a result was made, as plain JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

VERSION = "0.2.0"  # of the toolkit; CITATION.cff has it too
DATA_VERSION = "2.1.0"
"""Raised when the same configuration and seed give other numbers.

2.1.0: in preset wide columns left out are the only ones without stain, and at most 0.4 of them.
2.0.0: n + 1 intervals an edge of the lattice; a stream of random numbers for each purpose.
"""
VOLUME_FORMAT, IMAGE_FORMAT = 1, 1
"""Of the HDF5 files in 3D and 2D; raised when a reader of the one before would fail or misread."""
CHECKPOINT_FORMAT = 1  # stored in every checkpoint; raised when its meaning changes
PACKAGES = ("torch", "numpy", "scipy", "h5py", "monai", "lightning-fabric")


def describe_program(script: str | Path) -> dict[str, Any]:
    """Return versions, machine and the git revision (None outside a repository) as plain JSON."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "script": Path(script).name,
        "versions": {"3dsegmentation": VERSION, "python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "git_revision": git_revision(Path(script).resolve().parent),
    }


def git_revision(folder: Path) -> str | None:
    """Return the commit checked out in ``folder``, with ``-dirty`` after changes; None if none."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        answer = subprocess.run(
            [*command, "--exclude", "*"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
