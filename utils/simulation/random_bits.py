"""Counter-based random numbers for compiled kernels: bits from (key, counter), no state.

A kernel's draw depends on its key and on the counter alone, so culling, order and the number of
threads cannot change it. Keys are drawn from the sample's Generator. Normals come from a table of
quantiles: four 16-bit look-ups of one 64-bit word.

These functions are compiled into the kernels of other files, whose cache numba renews only when
those files change: touch fluorescence.py and imaging.py after a change here.
"""

import numba
import numpy as np
from scipy.special import ndtri

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
