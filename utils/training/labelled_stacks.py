"""Labelled stacks as the data of a training, read as its flags say, scaled as in prediction."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.data.labelled import LabelledDataset, LabelledStack, find_pairs, open_pair
from utils.errors import UserError
from utils.prediction.network_voxels import estimate_spacing, network_shape
from utils.prediction.trained_network import TrainedNetwork
from utils.stacks import Stack
from utils.training.run import TrainingData

VALIDATION_PATCHES = 16
"""At least, where a held-out part is smaller: each lies about another annotated voxel."""


def load_labelled(
    flags: argparse.Namespace,
    train: Sequence[str],
    valid: Sequence[str],
    *,
    patches: tuple[int | None, int | None],
    ancestor: TrainedNetwork | None = None,
    spacing: float | None = None,
    **cutting: Any,
) -> TrainingData:
    """Open labelled stacks as the data of a training; a set without stacks is None.

    Args:
        flags: ``channel``, ``axes``, ``voxel_size``, ``ignore_label``, ``scale``, ``val_share``
            (held out of those to train on, where it is given) and ``seed`` are read.
        train: what :func:`utils.data.labelled.find_pairs` takes.
        valid: likewise to validate on.
        patches: in an epoch, to train and to validate on; None: to cover the stacks once, to
            validate at least :data:`VALIDATION_PATCHES`.
        **cutting: for :class:`utils.data.labelled.LabelledDataset`.
        ancestor: its rule for grey values and its spacing are kept to.
        spacing: of the columns of other training data, in voxels, where there is no ancestor; None
            leaves the stacks' own, and measures it: by the spectrum where that is certain, else by
            the labels.

    Raises:
        UserError: a pair cannot be read, gives nothing to train or validate on, or is for both.
    """
    known = ancestor.spacing if ancestor else spacing
    measured: list[float] = []

    def shape_for(stack: Stack) -> tuple[tuple[int, ...], list[str]]:
        scale = 1.0 if known is None and flags.scale == "auto" else flags.scale
        found = estimate_spacing(stack) if known is None and len(stack.shape) == 3 else None
        if found and found.sure:  # else noise may be taken for a ring
            measured.append(found.spacing * float(scale))
        return network_shape(stack, scale, known or 0.0, by_planes=False)

    def read(names: Sequence[str]) -> list[LabelledStack]:
        return [
            open_pair(
                pair,
                axes=flags.axes,
                voxel_size=flags.voxel_size,
                ignore_label=flags.ignore_label,
                shape_for=shape_for,
                normalizer=ancestor.normalizer if ancestor else None,
            )
            for name in names
            for pair in find_pairs(name, channel=flags.channel)
        ]

    stacks, others = read(train), read(valid)
    named = [{one.pair.labels.resolve() for one in part} for part in (stacks, others)]
    if twice := named[0] & named[1]:
        raise UserError(
            f"{min(twice)}: is named to train on and to validate on; name other labels to validate "
            "on, or none: --val_share then holds a part of each stack out"
        )
    everything = [*stacks, *others]
    about = {
        f"stack {k}": "; ".join([stack.line(), *stack.reasons])
        for k, stack in enumerate(everything, 1)
    }
    whole = all(stack.annotated.sum() == math.prod(stack.shape) for stack in everything)
    if whole and flags.ignore_label is not None:
        about["labels"] = f"--ignore_label {flags.ignore_label} marks no voxel"
    if known is None:
        # Else the edge of the square or cube that each column has of what is annotated.
        annotated = sum(int(stack.annotated.sum()) for stack in everything)
        columns = max(1, sum(stack.columns or 0 for stack in everything))
        crowding = (annotated / columns) ** (1 / len(everything[0].shape))
        known = float(np.median(measured) if measured else crowding)
    if stacks and flags.val_share is not None:
        halves = [stack.split(flags.val_share) for stack in stacks]
        stacks, others = [first for first, _ in halves], [second for _, second in halves]
        annotated = sum(int(stack.annotated.sum()) for stack in others)
        about["held out"] = f"{annotated:,} annotated voxels beyond a plane, to validate on"

    training = validation = None
    if stacks:
        seed, number = flags.seed, patches[0]
        training = LabelledDataset(stacks, seed=seed, patches_per_epoch=number, **cutting)
    if others:  # always the same patches, so that runs of different seeds can be compared
        number = patches[1] or max(VALIDATION_PATCHES, len(LabelledDataset(others, **cutting)))
        validation = LabelledDataset(others, seed=0, patches_per_epoch=number, **cutting)
    return TrainingData(training, validation, [known] * len(everything[0].shape), about)
