"""All random numbers: streams of a Generator, and in compiled kernels bits of a key and a counter.

Only here is a Generator made for data and training, one for each purpose, seed and place, and no
two of them the same; everything else is handed one, or asks here. A change of these streams changes
all data: raise ``DATA_VERSION`` (utils/provenance.py).

A kernel's draw depends on its key, drawn from the sample's Generator, and on its counter alone, so
that culling, order and the number of threads cannot change it. Normals come from a table of
quantiles: four 16-bit look-ups of one 64-bit word. Other files' kernels hold compiled copies of
these functions, which numba renews only when those files change: touch fluorescence.py and
imaging.py after a change here.
"""

import operator
from enum import IntEnum
from typing import Any

import numba
import numpy as np
from scipy.special import ndtri

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


_quantiles = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
NORMALS = (_quantiles / _quantiles.std()).astype(np.float32)
"""The 2^16 mid-point quantiles of the standard normal, scaled to unit variance."""
NORMAL_REACH = 4.33  # none of them lies further out (the outermost one: 4.325)


def draw_key(rng: np.random.Generator) -> np.uint64:
    """Draw a kernel's 64-bit key."""
    return rng.integers(0, 1 << 64, dtype=np.uint64)


@numba.njit(inline="always")
def random_word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """Return 64 random bits: SplitMix64's output function (Steele et al., OOPSLA 2014)."""
    z = key + counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit
def random_words(key: np.uint64, first: np.uint64, words: np.ndarray) -> None:
    """Fill ``words`` (n,) uint64 with the random words of the counters first .. first + n - 1."""
    for i in range(words.size):
        words[i] = random_word(key, first + np.uint64(i))


@numba.njit
def normals_of(words: np.ndarray, table: np.ndarray, normals: np.ndarray) -> None:
    """Fill ``normals`` (4 n,) float32 from (n,) words, four each, lowest bits first.

    ``table`` is ``NORMALS``, an argument because kernels would store a copy of a global table.
    """
    quarters = words.view(np.uint16)
    for i in range(normals.size):
        normals[i] = table[quarters[i]]
