"""Torch data sets over simulated data, patches and the one normaliser.

Names are imported at their first use, so that ``from utils.data.normalize import ...`` stays quick.
"""

import importlib
from typing import Any

_MODULES = {
    "AugmentedDataset": "utils.data.augmentation",
    "KeypointDetectionFake2DDataset": "utils.data.images",
    "LabelledDataset": "utils.data.labelled",
    "OnTheFly3DDataset": "utils.data.simulated",
    "PercentileNormalizer": "utils.data.normalize",
    "RegressionFake2DDataset": "utils.data.images",
    "SegmentationFake2DDataset": "utils.data.images",
    "SegmentationFake3DDataset": "utils.data.volumes",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
