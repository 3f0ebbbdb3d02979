"""How ranks learn of each other's end, with two of them in one process."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from utils.training import processes, watch
from utils.training.watch import Watch, is_lost_connection


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Watch, Watch]]]:
    """Two ranks that share a store; interrupts and exits are recorded instead."""
    monkeypatch.setattr(_thread, "interrupt_main", lambda number: None)
    limit = timedelta(seconds=60)
    server = dist.TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, None, False, limit, wait_for_workers=False)
    made: list[Watch] = []

    def make(children: list[subprocess.Popen] | None = None) -> tuple[Watch, Watch]:
        made.extend([Watch(server, 0, 2, children or []), Watch(client, 1, 2)])
        for one in made:
            one.grace = 60.0
            one.start()
        return made[0], made[1]

    yield make
    for one in made:
        one.close()
        one.join()


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Return the results of functions that run side by side."""
    results: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda n=n, call=call: results.update({n: call()}))
        for n, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[n] for n in range(len(calls))]


def test_success_waits_for_all(pair: Callable[..., tuple[Watch, Watch]]) -> None:
    first, second = pair()
    endings = at_once(lambda: first.settle("completed", 0), lambda: second.settle("completed", 0))
    assert [(e.reason, e.status, e.own, e.speaks) for e in endings] == [
        ("completed", 0, True, True),
        ("completed", 0, True, False),
    ]


def test_the_first_failure_is_that_of_all(pair: Callable[..., tuple[Watch, Watch]]) -> None:
    first, second = pair()
    endings = at_once(lambda: second.settle("no memory", 1), lambda: first.settle("completed", 0))
    assert [(e.reason, e.status, e.own, e.speaks) for e in endings] == [
        ("rank 1: no memory", 1, True, False),
        ("rank 1: no memory", 1, False, True),
    ]


def test_a_lost_connection_is_explained(pair: Callable[..., tuple[Watch, Watch]]) -> None:
    first, second = pair()
    endings = at_once(
        lambda: first.settle("RuntimeError: closed", 1, lost=True),
        lambda: second.settle("no memory", 1),
    )
    assert endings[0].reason == "rank 1: no memory"


def test_an_interrupt_is_nobodys(pair: Callable[..., tuple[Watch, Watch]]) -> None:
    first, second = pair()
    interrupted = "interrupted by SIGTERM"
    endings = at_once(lambda: second.settle(interrupted, 130), lambda: first.settle("done", 0))
    assert {(e.reason, e.status) for e in endings} == {(interrupted, 130)}


def test_a_killed_process_is_named(pair: Callable[..., tuple[Watch, Watch]]) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    child.wait()
    first, second = pair([child])
    ending = first.settle("RuntimeError: closed", 1, lost=True)
    assert ending.reason == "the process of rank 1 was killed by SIGKILL" and not ending.own


def test_a_stuck_process_is_ended_with_its_last_words(
    pair: Callable[..., tuple[Watch, Watch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, words = threading.Event(), []

    def leave(status: int) -> None:
        words.append(status)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    first, second = pair()
    first.grace = 0.0
    first.last_words = lambda reason, status: words.append((reason, status))
    second.settle("no memory", 1)
    assert ended.wait(60)
    assert words == [("rank 1: no memory", 1), 1]


def test_leaving_without_a_word_is_a_failure(pair: Callable[..., tuple[Watch, Watch]]) -> None:
    first, second = pair()
    second.leave()
    assert first.settle("completed", 0).reason == "rank 1: ended without a word"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("shapes do not fit"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_which_errors_say_that_a_process_has_gone(error: Exception, expected: bool) -> None:
    assert is_lost_connection(error) is expected


def test_nothing_is_watched_in_a_single_process() -> None:
    watch.last_words(lambda reason, status: None)
    watch.disband(1)
    assert processes.settle("completed", 0).own
