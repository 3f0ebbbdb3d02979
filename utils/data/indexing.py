"""What data sets say to an index: one check, so that all say the same."""

from __future__ import annotations

import operator
from typing import Any


def item_index(index: Any, length: int) -> int:
    """Return an index as an int of 0..length - 1; negative ones count from the end.

    Raises IndexError, naming it, for another number, and TypeError for what is no whole number.
    """
    try:
        number = operator.index(index)
    except TypeError:
        raise TypeError(
            f"data sets take whole numbers, not {index!r}; "
            "torch.utils.data.Subset(dataset, range(2)) is a data set of the first two"
        ) from None
    if not -length <= number < length:
        raise IndexError(f"item {number} is outside {-length}..{length - 1}")
    return number % length
