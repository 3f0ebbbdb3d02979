"""How far a prediction is to be trusted, without a label: whether small changes change the mask.

Windows of the stack are predicted as they are and under small changes (mirrored, noisy, darker,
brighter, a tenth larger and smaller), and the masks compared. Where they agree, masks of simulated
volumes were right: a calibration, which a checkpoint brings along, turns agreement into an expected
IoU. Idea: arXiv 2503.00450.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from utils.prediction.sliding_window import View, probabilities_of
from utils.prediction.whole_stack import StackPrediction

CHANGES = (
    *(View(flipped=axes) for axes in ((0,), (1,), (2,))),
    *(View(scale=factor) for factor in (0.9, 1.1)),
    *(View(power=power) for power in (0.7, 1.4)),
    View(noise=0.1),
)
"""What must not change a mask; of 3D windows."""
MIRRORED = (View(flipped=(0, 1, 2)),)  # the one change by which scales are compared
THRESHOLD = 0.5
LEAST_FOREGROUND = 0.005
"""Share of a window's voxels below which it says nothing, and is left out after one pass."""
SHARE, SECONDS = 0.25, 10.0
"""Of the prediction's passes, or so long if that is more, may be spent on trust."""
MOST_WINDOWS = 16  # windows that are compared at most; more tell no more
A_LAYER = 4  # windows of a layer, which is read for them, looked at; more of few layers
SEARCH_PASSES = 16  # passes for each scale that is compared: 8 windows and their mirror images
LEAST_IOU = 0.3
"""Expected IoU below which nothing is to be trusted: a mask of all the tissue with columns in it,
without telling them apart, has about as much."""


@dataclass(frozen=True)
class Agreement:
    """How well masks of changed windows agree with those of the windows as they are."""

    value: float
    """Mean over the changes of the IoU of both masks, voxels of all windows counted together; NaN
    where no window had any foreground."""
    windows: int  # windows that were compared
    looked_at: int  # windows that were predicted as they are


@dataclass(frozen=True)
class Calibration:
    """What IoU to expect of an agreement: logit IoU = offset + slope * logit agreement."""

    offset: float
    slope: float
    low: float  # what is added to the logit for the lower bound, a tenth quantile of the residuals
    high: float  # and for the upper bound, a ninth tenth

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Calibration:
        """Build it from a checkpoint's ``trust``; TypeError or ValueError for what is none."""
        return cls(**{name: float(value) for name, value in dict(values).items()})

    def expected(self, agreement: float) -> tuple[float, float, float]:
        """Return the expected IoU of an agreement in 0..1, and its lower and upper bounds."""
        middle = self.offset + self.slope * logit(agreement)
        expected, low, high = expit([middle, middle + self.low, middle + self.high]).tolist()
        return expected, low, high


def logit(share: float | np.ndarray) -> Any:
    """Return ln(share / (1 - share)), a hundredth away from 0 and 1 at least."""
    kept = np.clip(share, 0.01, 0.99)
    return np.log(kept / (1 - kept))


def passes_of(changes: tuple[View, ...]) -> int:
    """Return the passes for a window and its changes; an enlarged one is padded, and counts two."""
    return 1 + sum(1 + (change.scale > 1) for change in changes)


def allowed_passes(total: int, seconds: float) -> int:
    """Return the passes to spend beside a prediction of ``total`` passes that takes ``seconds``."""
    return int(max(SHARE * total, SECONDS / max(seconds / total, 1e-9)))


def describe_trust(agreement: Agreement, calibration: Calibration | None) -> list[str]:
    """Return a sentence for the user, and a line where the mask is not to be trusted, or may not.

    It may not where the lower bound is below the limit that the expected IoU itself must reach.
    """
    if not agreement.windows:
        return [f"trust: unknown, as {agreement.looked_at} windows looked at show no columns"]
    found = (
        f"trust: {agreement.value:.2f} is the agreement (IoU) of the masks of {agreement.windows} "
        "windows with those under small changes (flips, noise, grey values, scales of 0.9 and 1.1)"
    )
    if calibration is None:
        return [f"{found}; this network is not calibrated: what IoU to expect of it is not known"]
    expected, low, high = calibration.expected(agreement.value)
    told = [f"{found}: IoU expected about {expected:.2f} ({low:.2f} to {high:.2f})"]
    worth = "hardly better than one of all tissue with columns in it"
    if expected < LEAST_IOU:
        told.append(f"warning: not to be trusted: small changes change the mask, which is {worth}")
    elif low < LEAST_IOU:
        told.append(f"note: look at the mask before you use it: it may be {worth}")
    return told


def measure_agreement(
    prediction: StackPrediction,
    most_passes: int,
    rng: np.random.Generator,
    changes: tuple[View, ...] = CHANGES,
) -> Agreement:
    """Return how well windows, drawn at random from those of a 3D prediction, agree with changes.

    How the prediction averages over views is ignored. At most so many passes of a window through
    the network are spent, but one window is looked at in any case.
    """
    precision = prediction.windows.precision
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    both, either = np.zeros(len(changes)), np.zeros(len(changes))
    cost = passes_of(changes)
    left, looked_at, compared = max(most_passes, cost), 0, 0

    def predict(inputs: torch.Tensor) -> torch.Tensor:
        return probabilities_of(prediction.model, inputs, precision)

    for drawn in _drawn(prediction, rng):
        most = min(left // cost, MOST_WINDOWS - compared)
        if most < 1:
            break
        with torch.inference_mode():
            inputs = drawn[:most]
            masks = predict(inputs) >= THRESHOLD
            shown = masks.flatten(1).float().mean(1) >= LEAST_FOREGROUND
            inputs, masks = inputs[shown], masks[shown]
            looked_at, compared = looked_at + len(shown), compared + len(masks)
            left -= len(shown) + len(masks) * (cost - 1)
            for k, change in enumerate(changes if len(masks) else ()):
                others = change.answer(predict, inputs, noise) >= THRESHOLD
                both[k] += int((masks & others).sum())
                either[k] += int((masks | others).sum())
    value = float(np.mean(both / either)) if compared else math.nan
    return Agreement(value, compared, looked_at)


def _drawn(prediction: StackPrediction, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Yield random windows (batch, 1, *space) on the network's device, layer by layer.

    Batches are half of the prediction's: enlarged windows take twice the memory.
    """
    windows, read = prediction.windows, prediction.seen()
    layers, boxes = windows.starts(prediction.shape)[-1], windows.lateral(prediction.shape)
    a_layer = max(A_LAYER, -(-MOST_WINDOWS // len(layers)))
    device = next(prediction.model.parameters()).device
    for start in rng.permutation(layers):
        slab = torch.from_numpy(read(start, start + windows.edges[-1]))
        chosen = rng.permutation(len(boxes))[:a_layer]
        for batch in np.array_split(chosen, -(-len(chosen) // max(1, windows.batch_size // 2))):
            yield torch.stack([slab[boxes[k]] for k in batch])[:, None].to(device)
        del slab  # else it would still be held while the next one is read
