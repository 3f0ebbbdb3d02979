"""Streams of random numbers, and the bits of compiled kernels."""

import re
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kstest

from utils.errors import UserError
from utils.simulation.streams import (
    NORMAL_REACH,
    NORMALS,
    Purpose,
    check_seed,
    draw_key,
    make_rng,
    random_word,
)

WORDS = st.one_of(st.integers(0, 3), st.integers(2**32 - 4, 2**32 - 1), st.integers(0, 2**32 - 1))
KEYS = st.tuples(st.sampled_from(Purpose), WORDS, st.lists(WORDS, max_size=3).map(tuple))
FIRST_DRAWS = {
    (Purpose.VOLUME, 0, 0): 17438012079374151748,
    (Purpose.VOLUME, 9999, 63): 10246517604806942865,
    (Purpose.IMAGE, 111, 17): 9191510832852675861,
    (Purpose.LIVE_VOLUME, 2**32 - 1, 1, 2): 10869423321558829296,
    (Purpose.PATCH, 0, 1, 2): 11866300954621977147,
    (Purpose.AUGMENTATION, 0, 1, 2): 4401857146945863344,
    (Purpose.SAMPLE_ORDER, 0, 1): 6305436515894073016,
    (Purpose.BATCH_ORDER, 0, 1): 247721495143579847,
    (Purpose.MIXING, 0, 1, 0): 14117501958635080396,
    (Purpose.PRESET, 0, 1, 2): 6147368401742417358,
}


def first_draws(purpose: Purpose, seed: int, *place: int) -> list[int]:
    return make_rng(purpose, seed, *place).integers(2**64, size=2, dtype=np.uint64).tolist()


@given(KEYS, KEYS)
def test_no_two_keys_share_a_stream(
    a: tuple[Purpose, int, tuple[int, ...]], b: tuple[Purpose, int, tuple[int, ...]]
) -> None:
    assume(a != b)
    assert first_draws(*a[:2], *a[2]) != first_draws(*b[:2], *b[2])


def test_neighbouring_keys_share_no_stream() -> None:
    """All purposes, small and large seeds and places, of one, two and three numbers."""
    words = (0, 1, 2, 2**32 - 1)
    places = [(), *((a,) for a in words), *((a, b) for a in words for b in words)]
    places += [(*place, c) for place in places if len(place) == 2 for c in words]
    keys = [(p, seed, *place) for p in Purpose for seed in words for place in places]
    assert len({tuple(first_draws(*key)) for key in keys}) == len(keys)


def test_the_streams_have_not_changed() -> None:
    """As of data version 2.0.0; a change here makes other data of every seed."""
    assert {key[0] for key in FIRST_DRAWS} == set(Purpose)
    assert {key: first_draws(*key)[0] for key in FIRST_DRAWS} == FIRST_DRAWS


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 5, 2**63, 0.5, "a", None, True])
def test_other_seeds_are_refused(seed: object) -> None:
    message = rf"--random_state {re.escape(repr(seed))}: must be a whole number .* below 2\^32"
    with pytest.raises(UserError, match=message):
        check_seed(seed, "--random_state")
    with pytest.raises(UserError, match="^seed "):
        make_rng(Purpose.VOLUME, seed, 0)


def test_seeds_of_numpy_are_seeds() -> None:
    assert check_seed(np.int64(7)) == 7 and isinstance(check_seed(np.int64(7)), int)
    assert check_seed(2**32 - 1) == 2**32 - 1


@pytest.mark.parametrize("place", [(-1,), (0, 2**32)])
def test_other_places_are_refused(place: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="PATCH .*: every number must be"):
        make_rng(Purpose.PATCH, 0, *place)


def test_generators_for_data_and_training_are_made_here_only() -> None:
    utils = Path(__file__).resolve().parents[2] / "utils"
    rooms = [utils / name for name in ("simulation", "storage", "data", "training")]
    makers = [
        str(path.relative_to(utils))
        for room in rooms
        for path in sorted(room.rglob("*.py"))
        if re.search(r"default_rng\(|SeedSequence\(", path.read_text())
    ]
    assert makers == ["simulation/streams.py"]


@numba.njit
def words(key, n):
    out = np.empty(n, dtype=np.uint64)
    for i in range(n):
        out[i] = random_word(key, np.uint64(i))
    return out


def plain_splitmix64(key: int, counter: int) -> int:
    m = 2**64 - 1
    z = (key + counter * 0x9E3779B97F4A7C15) & m
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & m
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & m
    return z ^ (z >> 31)


def test_words_match_plain_integers_and_the_published_sequence():
    key = draw_key(np.random.default_rng(0))
    assert words(key, 50).tolist() == [plain_splitmix64(int(key), i) for i in range(50)]
    # first outputs of SplitMix64 seeded with 1234567, whose state starts one step on
    seeded = words(np.uint64(1234567), 4)[1:]
    assert seeded.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_every_sixteen_bits_are_uniform_and_uncorrelated():
    bits = words(draw_key(np.random.default_rng(1)), 40_000)
    lanes = np.stack([(bits >> np.uint64(s)) & np.uint64(0xFFFF) for s in (0, 16, 32, 48)])
    uniform = lanes.astype(float) / 65536
    for lane in uniform:
        assert kstest(lane, "uniform").pvalue > 1e-4
    off_diagonal = np.corrcoef(uniform) - np.eye(4)
    assert np.abs(off_diagonal).max() < 0.03
    assert abs(np.corrcoef(uniform[0][:-1], uniform[0][1:])[0, 1]) < 0.03


def test_the_table_is_standard_normal():
    assert NORMALS.mean() == pytest.approx(0, abs=1e-6)
    assert NORMALS.std() == pytest.approx(1, abs=1e-6)
    assert (NORMALS.astype(float) ** 4).mean() == pytest.approx(3, abs=0.02)
    assert NORMALS.max() < NORMAL_REACH


def test_keys_differ_and_repeat_with_the_seed():
    first = [draw_key(np.random.default_rng(s)) for s in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
