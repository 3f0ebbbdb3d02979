"""Torch data sets over simulated data, patches and the one normaliser.

Names are imported at their first use, so that ``from utils.data.normalize import ...`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.data.augmentation import AugmentedDataset
    from utils.data.images import (
        KeypointDetectionFake2DDataset,
        RegressionFake2DDataset,
        SegmentationFake2DDataset,
    )
    from utils.data.normalize import PercentileNormalizer
    from utils.data.simulated import OnTheFly3DDataset
    from utils.data.volumes import SegmentationFake3DDataset

__all__ = [
    "AugmentedDataset",
    "KeypointDetectionFake2DDataset",
    "OnTheFly3DDataset",
    "PercentileNormalizer",
    "RegressionFake2DDataset",
    "SegmentationFake2DDataset",
    "SegmentationFake3DDataset",
]

_MODULES = {
    "AugmentedDataset": "utils.data.augmentation",
    "KeypointDetectionFake2DDataset": "utils.data.images",
    "OnTheFly3DDataset": "utils.data.simulated",
    "PercentileNormalizer": "utils.data.normalize",
    "RegressionFake2DDataset": "utils.data.images",
    "SegmentationFake2DDataset": "utils.data.images",
    "SegmentationFake3DDataset": "utils.data.volumes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
