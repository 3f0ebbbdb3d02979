"""How several processes of one training end together: by the first failure of any of them.

Each process runs a thread that asks a small store, kept by rank 0, whether another one has failed.
A process whose network waits for the failed one cannot notice otherwise: gloo tells only once the
connection breaks, NCCL not at all. The thread interrupts the main thread, which records how the run
ended, and ends the process where that thread is stuck. Shown with gloo; the same way out of a stuck
NCCL call has not been tried, for want of GPUs.
"""

from __future__ import annotations

import _thread
import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from lightning_fabric import Fabric

from utils.training import processes
from utils.training.processes import INTERRUPTED, Ending

POLL_SECONDS = 0.2
GRACE_SECONDS = 15.0
"""For the main thread to record another one's failure, before this process ends regardless."""
ANSWER_SECONDS = 20.0
"""For rank 0 to notice a failure, and for processes to end, before nobody waits for them."""
LOST_SECONDS = 5.0
"""For the cause of a lost connection to become known."""
_LOST = ("onnection closed by peer", "onnection reset by peer", "roken pipe", "onnection refused")

LastWords = Callable[[str, int], object]


class Watch(threading.Thread):
    """Tells the other processes of a failure of this one, and this one of theirs.

    Args:
        store: shared by all processes; rank 0 keeps it.
        rank: of this process.
        ranks: number of processes.
        children: processes that this one has started, in the order of their ranks from 1 on.
    """

    def __init__(
        self,
        store: dist.TCPStore,
        rank: int,
        ranks: int,
        children: Sequence[subprocess.Popen] = (),
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self.rank = rank
        self.ranks = ranks
        self.grace = 1.0
        """Seconds; :func:`last_words` raises it to GRACE_SECONDS."""
        self.last_words: LastWords | None = None
        self._store = store
        self._children = list(children)
        self._failure: Ending | None = None
        self._noticed = threading.Event()
        self._settled = threading.Event()
        self._deciding = threading.Lock()

    def run(self) -> None:
        """Wait for a failure elsewhere, then see to it that this process ends."""
        while not self._settled.wait(POLL_SECONDS):
            failure = self._look()
            if failure is None or failure.own:
                continue
            self._failure = failure
            self._noticed.set()
            _thread.interrupt_main(signal.SIGTERM)
            if not self._settled.wait(self.grace):
                self._end_process(failure)
            return

    def settle(self, reason: str, status: int, lost: bool = False) -> Ending:
        """Return how all processes end, when this one has ended so; see processes.settle."""
        if lost:
            self._noticed.wait(LOST_SECONDS)
        with self._deciding:
            ending = self._failure
            if ending is None and status == 0:
                ending = self._wait_for_success()
            if ending is None:
                ending = Ending(reason, status) if status == 0 else self._publish(reason, status)
            self._settled.set()
        return Ending(ending.reason, ending.status, ending.own, speaks=self.rank == 0)

    def close(self) -> None:
        """Stop watching, and wait for the processes that this one has started."""
        self._settled.set()
        deadline = time.monotonic() + ANSWER_SECONDS
        for child in self._children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def leave(self) -> None:
        """Tell the others that this process ends where it has never settled how."""
        if not self._settled.is_set():
            self.settle("ended without a word", 1)
        self.close()

    def _look(self) -> Ending | None:
        """Return the failure that another process has published, or died of, if there is one."""
        try:
            if self._store.check(["failure"]):
                if self.rank == 0:
                    self._store.set("seen", "1")
                return self._read()
        except RuntimeError:
            return Ending("the process of rank 0 has ended", 1, own=False)
        for rank, child in enumerate(self._children, 1):
            if child.poll() and not self._store.check(["failure"]):
                return Ending(f"the process of rank {rank} {_how(child.poll())}", 1, own=False)
        return None

    def _publish(self, reason: str, status: int) -> Ending:
        """Tell the failure of this process, and return it, or another one's that came before."""
        interrupted = status == INTERRUPTED  # which all are: no matter who says it first
        words = f"rank {self.rank}: {reason}" if self.rank and not interrupted else reason
        try:
            self._store.compare_set("failure", "", json.dumps([words, status, self.rank]))
            failure = self._read()
            if self.rank == 0:
                self._store.set("seen", "1")
            deadline = time.monotonic() + ANSWER_SECONDS
            # Until rank 0 knows: it would only see a broken connection when this process is gone.
            while not self._store.check(["seen"]) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)
        except RuntimeError:
            return Ending("the process of rank 0 has ended", 1, own=False)
        return failure

    def _read(self) -> Ending:
        reason, status, rank = json.loads(self._store.get("failure"))
        return Ending(reason, status, own=rank == self.rank)

    def _wait_for_success(self) -> Ending | None:
        """Return None once all processes have succeeded, the failure if one fails instead."""
        try:
            self._store.add("finished", 1)
            while self.rank == 0 and self._store.add("finished", 0) < self.ranks:
                if self._failure:
                    return self._failure
                time.sleep(POLL_SECONDS / 4)
        except RuntimeError:
            return Ending("the process of rank 0 has ended", 1, own=False)
        return None

    def _end_process(self, failure: Ending) -> None:
        """Do what the main thread should have done, and end the process."""
        with self._deciding:
            if self._settled.is_set():
                return
            try:
                if self.rank == 0 and self.last_words:
                    self.last_words(failure.reason, failure.status)
                elif self.rank == 0:
                    print(failure.reason, file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                _kill(self._children)
                os._exit(failure.status)


@contextmanager
def watched_start(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """End this process within the block, in which all processes meet, if one cannot come.

    That is one of its ``children``, or the one that has started this process.
    """
    met, parent = threading.Event(), os.getppid()

    def wait() -> None:
        while not met.wait(POLL_SECONDS):
            if os.getppid() != parent:
                os._exit(1)
            gone = [(rank, child.poll()) for rank, child in enumerate(children, 1)]
            for rank, code in gone:
                if code is None:
                    continue
                line = f"the process of rank {rank} {_how(code)} before training began"
                print(line, file=sys.stderr, flush=True)
                _kill(children)
                os._exit(code if code > 0 else 1)

    watcher = threading.Thread(target=wait, name="watch the start", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        met.set()
        watcher.join()  # loader processes are forked soon, best beside no other thread


def watch(fabric: Fabric, children: Sequence[subprocess.Popen]) -> None:
    """Start watching over the processes of a launched ``fabric``, where there are several."""
    if fabric.world_size == 1:
        return
    limit = timedelta(seconds=300)
    host, port, store = os.environ["MASTER_ADDR"], 0, None
    if fabric.global_rank == 0:
        store = dist.TCPStore(host, 0, None, True, limit, wait_for_workers=False)
        port = store.port
    port = fabric.broadcast(port)
    store = store or dist.TCPStore(host, port, None, False, limit, wait_for_workers=False)
    watcher = Watch(store, fabric.global_rank, fabric.world_size, children)
    watcher.start()
    atexit.register(watcher.leave)
    processes.settle_with(watcher.settle)
    global _watch
    _watch = watcher


def last_words(record: LastWords) -> None:
    """Have ``record`` called with reason and status should the main thread be stuck at the end."""
    if _watch:
        _watch.last_words = record
        _watch.grace = GRACE_SECONDS


def disband(status: int = 0) -> None:
    """Let the processes part, once all has been recorded; this one goes on as a single one.

    After a failure (``status``) on GPUs this ends the process: NCCL may wait for ever in cleaning
    up after a rank that has gone.
    """
    global _watch
    if _watch is None:
        return
    atexit.unregister(_watch.leave)
    _watch.close()
    _watch = None
    if status and dist.get_backend() == "nccl":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    processes.settle_with(None)
    processes.forget_ranks()
    dist.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that another process has gone."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


_watch: Watch | None = None


def _kill(children: Sequence[subprocess.Popen]) -> None:
    for child in children:
        child.kill()


def _how(code: int) -> str:
    """Return how a process ended, from its return code."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
