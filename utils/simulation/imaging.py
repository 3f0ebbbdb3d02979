"""The microscope: point spread, background, composition, shot and read noise, contrast.

Images are (X, Y, Z) float32, or (X, Y) where a function says n-D. All arithmetic is elementary and
in a fixed order (no BLAS, no fused or reordered sums), so that a machine's core count does not
change a bit.
"""

from collections.abc import Callable
from functools import lru_cache

import numba
import numpy as np

from utils.errors import UserError
from utils.simulation.streams import NORMALS, normals_of, random_word, random_words

PERCENTILE = 99.0  # percentile of the box image that composition divides by
OFFSET = 0.1  # constant light added in composition, in units of that percentile
KERNEL_REACH = 6.0  # background kernel is cut at this many sigmas
READ_NOISE_SHARE = 0.1  # read noise sd as a share of the sd of log(counts + LOG_COUNT_OFFSET)
LOG_COUNT_OFFSET, LOG_OFFSET = 1e-5, 1e-7
MOST_PHOTONS = 60_000  # means of photon counts are cut off here: counts are 16-bit
MOST_STORED = 65_504  # files hold no brighter voxel: float16
CUT_OFF = 0.001  # largest share of an image that may lie above either


@numba.njit(cache=True)
def box_sum(image: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum over a box of ``size`` voxels per axis, first across x and y, then along z.

    The box covers voxels i - size // 2 .. i + (size - 1) // 2 (scipy's convention); beyond the
    border there is nothing. Returns two (X, Y, Z) float32 arrays: after x and y, and after z too.
    """
    nx, ny, nz = image.shape
    before = size // 2
    across = np.empty_like(image)
    full = np.empty_like(image)
    for i in range(nx):
        for j in range(ny):
            row = across[i, j]
            row[:] = np.float32(0.0)
            for a in range(max(i - before, 0), min(i - before + size, nx)):
                for b in range(max(j - before, 0), min(j - before + size, ny)):
                    source = image[a, b]
                    for k in range(nz):
                        row[k] += source[k]
            out = full[i, j]
            out[:] = row
            for step in range(size):
                d = step - before
                for k in range(max(-d, 0), min(nz - d, nz) if d != 0 else 0):
                    out[k] += row[k + d]
    return across, full


@lru_cache(maxsize=64)
def blur_factors(n: int, sigma: float, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (R, n) analysis and (n, R) synthesis factors of a Gaussian blur along an axis.

    With borders that mirror without repeating the edge, a symmetric kernel is diagonal in the
    cosines cos(pi k x / (n - 1)) (the DCT-I basis), with the kernel's transform as eigenvalues.
    Those of a wide kernel vanish quickly: R keeps all above 1e-7, so that the product of the
    factors is the blur to float32 precision at a fraction of the dense matrix's cost.

    ``sigma`` of the Gaussian is in voxels, 0 blurs nothing; the blur is applied ``times`` over.
    """
    if n == 1 or sigma == 0:
        return np.eye(n, dtype=np.float32), np.eye(n, dtype=np.float32)
    reach = np.arange(-int(KERNEL_REACH * sigma), int(KERNEL_REACH * sigma) + 1)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum()
    k = np.arange(n)
    frequency = np.pi * k / (n - 1)
    eigenvalue = np.sum(kernel * np.cos(np.outer(frequency, reach)), axis=1) ** times
    kept = np.flatnonzero(np.abs(eigenvalue) > 1e-7)
    ends = np.where((k == 0) | (k == n - 1), 0.5, 1.0)
    cosines = np.cos(np.outer(frequency[kept], k))
    analysis = cosines * ends * (2.0 / (n - 1))
    synthesis = (cosines * (ends[kept] * eigenvalue[kept])[:, None]).T
    return np.ascontiguousarray(analysis, "f4"), np.ascontiguousarray(synthesis, "f4")


def background(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur ``image`` (X, Y, Z) by a Gaussian of ``sigma`` voxels: x and z once, y twice.

    Twice along y is the reference's quirk and part of its volumes' look.
    """
    factors = [blur_factors(n, sigma, t) for n, t in zip(image.shape, (1, 2, 1), strict=True)]
    for axis in (1, 0, 2):  # y first, with the fewest factors, where the volume is whole
        image = along(factors[axis][0], image, axis, _matrix_product)
    for axis in (2, 0, 1):
        image = along(factors[axis][1], image, axis, _matrix_product)
    return image


def along(matrix: np.ndarray, image: np.ndarray, axis: int, product: Callable) -> np.ndarray:
    """Multiply ``image`` (X, Y, Z) float32 by a ``matrix`` (m, n) along an axis.

    ``product`` (matrix, right (n, k), out (m, k)) writes the product of two matrices to ``out``.
    """
    shape = (*image.shape[:axis], len(matrix), *image.shape[axis + 1 :])
    out = np.empty(shape, dtype=np.float32)
    # along the first axis all is one plane
    planes, targets = (a if axis else a.reshape(1, len(a), -1) for a in (image, out))
    for plane, target in zip(planes, targets, strict=True):
        if axis == 2:
            turned = np.empty(target.shape[::-1], dtype=np.float32)
            product(matrix, np.ascontiguousarray(plane.T), turned)
            target[:] = turned.T
        else:
            product(matrix, plane, target)
    return out


@numba.njit(cache=True)
def _matrix_product(left, right, out):  # type: ignore[no-untyped-def]
    """Plain float32 product in a fixed order: sums by fours, column blocks that stay in the cache.

    ``left`` is padded with zeros to whole steps; that changes no sum.
    """
    rows, inner = left.shape
    padded = np.zeros((rows, (inner + 3) // 4 * 4), dtype=np.float32)
    padded[:, :inner] = left
    last, block = inner - 1, 256
    for start in range(0, right.shape[1], block):
        for i in range(rows):
            row = out[i, start : start + block]
            row[:] = np.float32(0.0)
            for j in range(0, padded.shape[1], 4):
                a, b, c, d = padded[i, j], padded[i, j + 1], padded[i, j + 2], padded[i, j + 3]
                r0 = right[j, start : start + block]
                r1 = right[min(j + 1, last), start : start + block]
                r2 = right[min(j + 2, last), start : start + block]
                r3 = right[min(j + 3, last), start : start + block]
                for k in range(row.size):
                    row[k] += (a * r0[k] + b * r1[k]) + (c * r2[k] + d * r3[k])


def compose(box_image: np.ndarray, background_image: np.ndarray, weight: float) -> np.ndarray:
    """Return box image / its 99th percentile + weight x background (undivided) + 0.1, float32.

    Where fewer than one voxel in a hundred is lit, the maximum stands in for the percentile.
    """
    scale = np.float32(percentile_of_nonnegative(box_image, PERCENTILE))
    if scale <= 0:
        scale = max(box_image.max(), np.float32(1.0))
    return _compose(box_image, background_image, np.float32(1.0) / scale, np.float32(weight))


def percentile_of_nonnegative(image: np.ndarray, percent: float) -> float:
    """Return what ``np.percentile(image, percent)`` does, but sooner; values below 0 count as 0.

    A sample tells where the values above the percentile begin, with half as many again to be sure;
    only those are put in order, or all where the sample was mistaken.
    """
    flat = np.ascontiguousarray(image).reshape(-1)
    position = (flat.size - 1) * percent / 100.0
    rank = int(position)
    sample = np.sort(flat[::61])
    start = sample[max(int(len(sample) * (1.0 - 1.5 * (1.0 - percent / 100.0))), 0)]
    upper = flat[flat >= start]
    if upper.size < flat.size - rank:
        upper = flat
    first = rank - (flat.size - upper.size)
    second = min(first + 1, upper.size - 1)
    ordered = np.partition(upper, (first, second))
    low, high = max(float(ordered[first]), 0.0), max(float(ordered[second]), 0.0)
    return low + (high - low) * (position - rank)


@numba.njit(cache=True)
def _compose(box, light, inverse, weight):  # type: ignore[no-untyped-def]
    return np.maximum(box * inverse + light * weight + np.float32(OFFSET), np.float32(0.0))


def check_cut_off(image: np.ndarray, limit: float, remedy: str) -> None:
    """Raise UserError if more than a thousandth of an n-D image lies above ``limit``."""
    share = np.count_nonzero(image > limit) / image.size if image.max() > limit else 0.0
    if share > CUT_OFF:
        raise UserError(f"{share:.1%} of an image would be too bright and cut off: lower {remedy}")


GRID = 16  # tabulated Poisson means per unit
TABLE_MEAN = 32  # means from here on are drawn as a sum of several of this mean and one below
COLUMN_BITS = 7  # A table's row has 2^7 columns: counts from 0 to 127
REMAINDERS = 5  # largest count drawn for a mean below 1/16; more come less than once in 10^10
BLOCK = 1024  # voxels whose random numbers are drawn at once and stay in the nearest cache


@lru_cache(maxsize=1)
def _poisson_tables() -> np.ndarray:
    """Return the alias tables (513, 128) uint32 of the means 0, 1/16, 2/16 .. 32."""
    means = np.arange(TABLE_MEAN * GRID + 1) / GRID
    probability = np.empty((len(means), 1 << COLUMN_BITS))
    probability[:, 0] = np.exp(-means)
    for k in range(1, probability.shape[1]):
        probability[:, k] = probability[:, k - 1] * means / k
    return np.stack([_alias_table(row) for row in probability])


def _alias_table(probability: np.ndarray) -> np.ndarray:
    """Return (n,) uint32: Walker's alias table of a distribution over 0 .. n - 1, n = 2^7.

    All columns are equally likely. Column k gives k with a probability in the upper 25 bits of its
    entry, else the number in the lower 7 bits, its alias: a number that is more likely than 1 / n.
    """
    n = len(probability)
    share = probability / probability.sum() * n
    kept, alias = np.ones(n), np.arange(n)
    small, large = list(np.flatnonzero(share < 1)), list(np.flatnonzero(share >= 1))
    while small and large:
        k, donor = small.pop(), large[-1]
        kept[k], alias[k] = share[k], donor
        share[donor] -= 1.0 - share[k]
        if share[donor] < 1:
            small.append(large.pop())
    steps = 2.0 ** (32 - COLUMN_BITS)
    threshold = np.minimum(np.round(kept * steps), steps - 1).astype(np.uint32)
    return (threshold << np.uint32(COLUMN_BITS)) | alias.astype(np.uint32)


def shot_noise(image: np.ndarray, gain: float, key: np.uint64) -> np.ndarray:
    """Draw n-D uint16 photon counts, Poisson with mean ``image`` x ``gain`` (float32 >= 0).

    A mean is split into tabulated parts (one multiple of 1/16 below 32, and as often as need be 32)
    and a remainder below 1/16; the sum of independent Poisson variables is Poisson, so that the
    split is exact (to 1e-8, the precision of the tables and of float32). Counts above 65535
    saturate.
    """
    counts = np.empty(image.shape, dtype=np.uint16)
    _shot_noise(image.reshape(-1), np.float32(gain), key, _poisson_tables(), counts.reshape(-1))
    return counts


@numba.njit(cache=True)
def _shot_noise(image, gain, key, tables, counts):  # type: ignore[no-untyped-def]
    """Draw in blocks: remainders, then tabulated parts, then the few with a mean from 32 on.

    The first two are loops that vectorise (only with arrays that the compiler can tell apart: each
    is allocated by itself), at 0.4 of the time of one loop over voxels.
    """
    words = np.empty(BLOCK, dtype=np.uint64)
    halves = words.view(np.uint32)
    steps, rests = np.empty(BLOCK, dtype=np.int32), np.empty(BLOCK, dtype=np.int32)
    for start in range(0, image.size, BLOCK):
        random_words(key, np.uint64(start), words)
        out = counts[start : start + BLOCK]
        means = image[start : start + BLOCK]
        largest = _draw_remainders(means, gain, halves[BLOCK:], steps, rests)
        _add_tabulated(steps, rests, halves[:BLOCK], tables, out)
        if largest >= TABLE_MEAN * GRID:
            _add_whole_tables(steps, key, start, tables[-1], out)


@numba.njit
def _draw_remainders(image, gain, words, steps, rests):  # type: ignore[no-untyped-def]
    """Split means into whole sixteenths, ``steps``, and a count of the rest; return the most steps.

    The probability of a count above k is that of a count above k - 1 less that of k itself.
    """
    one = np.float32(1.0)
    largest = np.int32(0)
    for i in range(image.size):
        mean = min(image[i] * gain, np.float32(MOST_PHOTONS))
        whole = np.int32(mean * np.float32(GRID))
        rest = mean - np.float32(whole) * np.float32(1 / GRID)
        u = np.float32(words[i]) * np.float32(2.0**-32)
        # 1 - exp(-rest) by its series
        series = np.float32(1 / 6) - rest * (np.float32(1 / 24) - rest * np.float32(1 / 120))
        above = rest * (one - rest * (np.float32(0.5) - rest * series))
        exactly = rest * (one - above)
        count = np.int32(0)
        for k in range(REMAINDERS):
            count += np.int32(u < above)
            above -= exactly
            exactly *= rest * np.float32(1 / (k + 2))
        rests[i] = count
        steps[i] = whole
        largest = max(largest, whole)
    return largest


@numba.njit
def _add_tabulated(steps, rests, words, tables, counts):  # type: ignore[no-untyped-def]
    """Write the counts: those of the rests and one of mean (steps mod 512) / 16."""
    flat = tables.reshape(-1)
    last_row, last_column = np.uint32(TABLE_MEAN * GRID - 1), np.uint32((1 << COLUMN_BITS) - 1)
    for i in range(counts.size):
        row, column = np.uint32(steps[i]) & last_row, words[i] & last_column
        entry = flat[(row << np.uint32(COLUMN_BITS)) + column]
        counts[i] = rests[i] + np.int32(_column_or_alias(words[i], entry))


@numba.njit
def _column_or_alias(word, entry):  # type: ignore[no-untyped-def]
    bits, low = np.uint32(COLUMN_BITS), np.uint32((1 << COLUMN_BITS) - 1)
    return word & low if (word >> bits) < (entry >> bits) else entry & low


@numba.njit
def _add_whole_tables(steps, key, start, table, counts):  # type: ignore[no-untyped-def]
    """Add as many counts of mean 32 as steps / 512 says, with a key of its own for each."""
    for i in range(counts.size):
        total = np.int64(counts[i])
        for part in range(1, steps[i] // (TABLE_MEAN * GRID) + 1):
            bits = random_word(key + np.uint64(part), ~np.uint64(start + i))
            word = np.uint32(bits >> np.uint64(32))
            total += _column_or_alias(word, table[word & np.uint32(len(table) - 1)])
        counts[i] = min(total, 65535)


def read_noise_sd(counts: np.ndarray) -> float:
    """Return a tenth of the sd of log(counts + 1e-5) over all voxels, from their histogram."""
    histogram = np.bincount(counts.reshape(-1))
    logs = np.log(np.arange(len(histogram)) + LOG_COUNT_OFFSET)
    mean = np.sum(histogram * logs) / counts.size
    return READ_NOISE_SHARE * float(np.sqrt(np.sum(histogram * (logs - mean) ** 2) / counts.size))


def read_noise_and_contrast(
    counts: np.ndarray, sd: float, contrast: float, key: np.uint64
) -> np.ndarray:
    """Add Gaussian read noise, clip at 0, and scale the contrast of the logarithm; n-D float32.

    With y = log(x + 1e-7) the result is exp(mean(y) + contrast (y - mean(y))). ``counts`` are n-D
    uint16, ``sd`` is the read noise's, in counts, and ``contrast`` > 0.
    """
    out = np.empty(counts.shape, dtype=np.float32)
    logs = out.reshape(-1)
    add_read_noise(counts.reshape(-1), np.float32(1.0), np.float32(sd), key, NORMALS, logs)
    total = _logarithm_and_sum(logs)
    shift = np.float32((1.0 - contrast) * total / counts.size)
    _exponential(logs, np.float32(contrast), shift)
    return out


@numba.njit(cache=True)
def add_read_noise(counts, scale, sd, key, table, out):  # type: ignore[no-untyped-def]
    """Write max(counts x scale + sd x normal, 0) to ``out``, block by block."""
    words, normals = np.empty(BLOCK // 4, dtype=np.uint64), np.empty(BLOCK, dtype=np.float32)
    for start in range(0, counts.size, BLOCK):
        random_words(key, np.uint64(start // 4), words)
        normals_of(words, table, normals)
        count, row = counts[start : start + BLOCK], out[start : start + BLOCK]
        for i in range(count.size):
            row[i] = max(np.float32(count[i]) * scale + sd * normals[i], np.float32(0.0))


@numba.njit(cache=True)
def _logarithm_and_sum(x):  # type: ignore[no-untyped-def]
    """Put log(x + 1e-7) in the place of x, and return the sum, block by block."""
    total = 0.0
    for start in range(0, x.size, BLOCK):
        log = x[start : start + BLOCK]
        for i in range(log.size):
            log[i] += np.float32(LOG_OFFSET)
        _logarithm(log)
        total += _sum(log)
    return total


@numba.njit
def _sum(x):  # type: ignore[no-untyped-def]
    """Sum float32 in double precision, in sixteen lanes that a vectorised loop adds to."""
    lanes = np.zeros(16)
    whole = x.size - x.size % 16
    for start in range(0, whole, 16):
        for lane in range(16):
            lanes[lane] += x[start + lane]
    total = 0.0
    for value in lanes:
        total += value
    for value in x[whole:]:
        total += value
    return total


@numba.njit(cache=True, error_model="numpy")  # a check for division by zero does not vectorise
def _logarithm(x):  # type: ignore[no-untyped-def]
    """Natural logarithm in place, normal positive float32, relative error about 1e-7.

    x = 2^e m with m in sqrt(1/2)..sqrt(2); log m = 2 atanh(s), s = (m - 1) / (m + 1), by its
    series. Plain IEEE operations that vectorise, and give the same bits on every processor.
    """
    bits = x.view(np.int32)
    one = np.float32(1.0)
    for i in range(x.size):
        shifted = bits[i] - np.int32(0x3F3504F3)
        exponent = shifted >> np.int32(23)
        bits[i] = (shifted & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)
        m = x[i]
        s = (m - one) / (m + one)
        q = s * s
        series = np.float32(1 / 9)
        series = series * q + np.float32(1 / 7)
        series = series * q + np.float32(1 / 5)
        series = series * q + np.float32(1 / 3)
        tail = s * q * series
        x[i] = np.float32(exponent) * np.float32(0.6931471805599453) + (
            np.float32(2.0) * s + np.float32(2.0) * tail
        )


@numba.njit(cache=True)
def _exponential(y, slope, shift):  # type: ignore[no-untyped-def]
    """Write exp(slope y + shift) in place, float32, relative error about 1e-6, for |exponent| < 87.

    exp v = 2^n exp r with n = round(v / log 2); exp r by its series to degree 7.
    """
    bits = y.view(np.int32)
    for i in range(y.size):
        v = min(max(slope * y[i] + shift, np.float32(-87.0)), np.float32(87.0))
        scaled = v * np.float32(1.4426950408889634)
        half = np.float32(0.5) if scaled >= np.float32(0.0) else np.float32(-0.5)
        n = np.int32(scaled + half)
        r = v - np.float32(n) * np.float32(0.693359375)
        r = r - np.float32(n) * np.float32(-2.12194440e-4)
        p = np.float32(1 / 5040)
        p = p * r + np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        p = p * r + np.float32(1.0)
        y[i] = p
        bits[i] += n << np.int32(23)
