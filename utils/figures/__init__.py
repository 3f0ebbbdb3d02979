"""Every picture; the only room that imports matplotlib.

- ``learning``, ``predictions``: of a training; ``studies``: of many trainings.
- ``evaluation``: of an evaluation or comparison.
- ``stacks``: planes of a microscope's stack and their masks.
- ``samples``, ``samples_2d``: simulated samples in 3D and in 2D.
- ``animations``: the GIFs, on the turning views of ``rendering`` (numpy and numba).
- ``colours``, ``canvas``, ``slices``: what they share.
- ``__main__``: the command line, ``python -m utils.figures``.

Slices of volumes show x to the right and y upwards; lengths are voxels, or pixels in 2D. Pictures
are written whole or not at all. matplotlib is imported by the first figure, so that importing this
package and ``python -m utils.figures --help`` cost nothing.
"""

from utils.figures.colours import MASK_RED, blue
from utils.figures.evaluation import save_comparison, save_evaluation
from utils.figures.learning import (
    WHOLE_SHEET_IOU,
    save_learning_comparison,
    save_learning_curves,
)
from utils.figures.predictions import comparison_strip, save_predictions
from utils.figures.samples import save_column_types, save_geometry, save_samples_panel
from utils.figures.samples_2d import draw_image_sample, save_image_samples
from utils.figures.slices import densest_slice, scale_to_display
from utils.figures.stacks import Overlay, save_overlays
from utils.figures.studies import save_study

__all__ = [
    "MASK_RED",
    "WHOLE_SHEET_IOU",
    "Overlay",
    "blue",
    "comparison_strip",
    "densest_slice",
    "draw_image_sample",
    "save_column_types",
    "save_comparison",
    "save_evaluation",
    "save_geometry",
    "save_image_samples",
    "save_learning_comparison",
    "save_learning_curves",
    "save_overlays",
    "save_predictions",
    "save_samples_panel",
    "save_study",
    "scale_to_display",
]
