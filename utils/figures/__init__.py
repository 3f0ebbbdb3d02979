"""Every picture; the only room that imports matplotlib.

- ``learning``, ``predictions``: of a training; ``studies``: of many trainings.
- ``evaluation``: of an evaluation or comparison.
- ``stacks``: planes of a microscope's stack and their masks.
- ``samples``, ``samples_2d``: simulated samples in 3D and in 2D.
- ``animations``: the GIFs, on the turning views of ``rendering`` (scipy).
- ``colours``, ``canvas``, ``slices``: what they share.
- ``__main__``: the command line, ``python -m utils.figures``.

Slices of volumes show x to the right and y upwards; lengths are voxels, or pixels in 2D. Pictures
are written whole or not at all. matplotlib is imported by the first figure, so that importing this
package and ``python -m utils.figures --help`` cost nothing.
"""

from utils.figures.evaluation import save_comparison, save_evaluation
from utils.figures.learning import WHOLE_SHEET_IOU, save_learning_curves
from utils.figures.predictions import compared_slice, save_predictions
from utils.figures.samples_2d import draw_image_sample
from utils.figures.slices import densest_slice, scale_to_display
from utils.figures.studies import save_study

__all__ = [
    "WHOLE_SHEET_IOU",
    "compared_slice",
    "densest_slice",
    "draw_image_sample",
    "save_comparison",
    "save_evaluation",
    "save_learning_curves",
    "save_predictions",
    "save_study",
    "scale_to_display",
]
