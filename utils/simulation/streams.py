"""Streams of random numbers: one for each purpose, seed and place, and no two of them the same.

Only here is a Generator made for data and training; everything else is handed one, or asks here. A
change of these streams changes all data: raise ``DATA_VERSION`` (utils/provenance.py).
"""

import operator
from enum import IntEnum
from typing import Any

import numpy as np

from utils.errors import UserError

WORD = 1 << 32
"""Seeds and places are below this: numpy cuts larger numbers in two, and their streams meet."""


class Purpose(IntEnum):
    """What a stream is for, and in brackets the place that follows the seed."""

    VOLUME = 1  # A simulated volume of a file [sample]
    IMAGE = 2  # A simulated image [sample]
    LIVE_VOLUME = 3  # a volume simulated while training, and where it is cut [epoch, volume]
    PATCH = 4  # where a patch is cut from a stored volume [epoch, item]
    AUGMENTATION = 5  # how an item is changed [epoch, item]
    SAMPLE_ORDER = 6  # in which order a data set goes through its samples [round]
    BATCH_ORDER = 7  # in which order the items of an epoch are put into batches [epoch]
    MIXING = 8  # how patches of live volumes are mixed into batches [epoch, rank]
    PRESET = 9  # of which preset a volume simulated while training is [epoch, volume]


def make_rng(purpose: Purpose, seed: int, *place: int) -> np.random.Generator:
    """Return the generator of a purpose, a seed and a place: whole numbers from 0, below 2^32.

    The seed is the entropy and the rest the spawn key, before which numpy fills the entropy up to
    the pool's size: no key can run into the seed, as (s, 0) does into s where both are entropy.

    Raises UserError for another seed, and ValueError for another place.
    """
    seed = check_seed(seed)
    if not all(0 <= number < WORD for number in place):
        raise ValueError(f"{purpose.name} {place}: every number must be at least 0 and below 2^32")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *place)))


def check_seed(seed: Any, name: str = "seed") -> int:
    """Return a seed as an int; UserError, naming it, unless it is a whole number of 32 bits."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < WORD:
        raise UserError(f"{name} {seed!r}: must be a whole number of at least 0 and below 2^32")
    return number
