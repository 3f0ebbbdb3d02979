"""Torch data sets over simulated data, patches and the one normaliser.

Names are imported at their first use, so that ``from utils.data.normalize import ...`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.data.normalize import PercentileNormalizer
    from utils.data.volumes import SegmentationFake3DDataset

__all__ = ["PercentileNormalizer", "SegmentationFake3DDataset"]

_MODULES = {
    "PercentileNormalizer": "utils.data.normalize",
    "SegmentationFake3DDataset": "utils.data.volumes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
