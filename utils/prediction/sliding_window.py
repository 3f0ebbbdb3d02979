"""Whole-volume prediction: overlapping windows through a network, blended into one probability map.

Arrays are (X, Y, Z), or (X, Y) for images, of any size; networks map (batch, 1, *space) to logits,
or to a list of logits of which the last are the prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from utils.data.normalize import PercentileNormalizer


def predict_volume(
    model: nn.Module,
    image: np.ndarray,
    normalizer: PercentileNormalizer,
    *,
    window: int | Sequence[int],
    overlap: float = 0.25,
    batch_size: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Return the foreground probability of every voxel of ``image``.

    The whole image is normalised at once, by its own percentiles, as the patches of training were.
    Windows that overlap are blended with Gaussian weights, as a network knows least about what lies
    at a window's rim. An axis shorter than the window gets a window of its own length. The image
    and the map stay in main memory; windows alone travel to the model's device. The model is put
    into evaluation mode and afterwards back into the mode in which it came.

    Args:
        model: network with one output channel, on any device.
        image: (X, Y, Z) or (X, Y), raw intensities, finite.
        normalizer: the rule by which the network's training data were scaled.
        window: edge of the windows in voxels, one for all axes or one for each.
        overlap: share of a window's edge that it has in common with the next one, 0 <= overlap < 1.
        batch_size: windows that pass the network at once.
        progress: show a progress bar over the windows.

    Returns:
        float32 of the shape of ``image``, 0..1.

    Raises:
        ValueError: if an argument is out of its range, or the network has several output channels.
    """
    edges = _window_within(image.shape, window)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, not {overlap!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size!r}")
    if not np.isfinite(image).all():
        raise ValueError("the image holds values that are not finite (NaN or infinite)")
    scaled = normalizer.apply(image, *normalizer.fit(image))
    device = next(model.parameters()).device
    with _evaluating(model), torch.inference_mode():
        probabilities = sliding_window_inference(
            torch.from_numpy(scaled)[None, None],
            roi_size=edges,
            sw_batch_size=batch_size,
            predictor=lambda windows: _probabilities(model, windows),
            overlap=overlap,
            mode="gaussian",
            sw_device=device,
            device="cpu",
            progress=progress,
        )
    blended = probabilities[0, 0].numpy()
    return np.clip(blended, 0, 1, out=blended)  # a blend of ones may exceed 1 by a rounding error


def _window_within(shape: tuple[int, ...], window: int | Sequence[int]) -> tuple[int, ...]:
    """Return the window's edge along each axis, no longer than the image's."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"the image must have 2 or 3 axes and no empty one, not shape {shape}")
    edges = (window,) * len(shape) if isinstance(window, int) else tuple(window)
    if len(edges) != len(shape) or min(edges) < 1:
        raise ValueError(
            f"window must be one length of at least 1 voxel or one for each of the {len(shape)} "
            f"axes, not {window!r}"
        )
    return tuple(min(edge, length) for edge, length in zip(edges, shape, strict=True))


def _probabilities(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Return the sigmoid of the prediction for (batch, 1, *space) windows, float32, same shape."""
    logits = model(windows)
    if isinstance(logits, (list, tuple)):
        logits = logits[-1]
    if logits.shape != windows.shape:
        raise ValueError(
            f"the network must answer windows of shape {tuple(windows.shape)} with one channel of "
            f"logits, not with shape {tuple(logits.shape)}"
        )
    return torch.sigmoid(logits.float())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode for a while, then each of its modules back as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
