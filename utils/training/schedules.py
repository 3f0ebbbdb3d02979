"""How the learning rate falls over a training, and when its time is up.

``plateau`` follows the validation loss, once an epoch (torch's ReduceLROnPlateau). ``cosine`` and
``onecycle`` follow the share of the planned training that is done, batch by batch: the share of
the planned steps, or of ``max_minutes``, whichever is larger.
"""

import math
import time
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from utils.training.options import TrainingOptions

WARM_UP = 0.1  # share of a onecycle training in which the rate climbs to start_lr
FIRST_RATE = 1 / 25  # of start_lr: where that climb begins, as in torch's OneCycleLR


def rate_factor(schedule: str, share: float) -> float:
    """Return the learning rate, in units of ``start_lr``, when ``share`` (0..1) is done.

    ``cosine`` falls from 1 to 0 along half a cosine (arXiv 1608.03983, without restarts);
    ``onecycle`` climbs in a straight line during :data:`WARM_UP` and falls likewise after it.
    """
    share = min(max(share, 0.0), 1.0)
    if schedule == "onecycle" and share < WARM_UP:
        return FIRST_RATE + (1 - FIRST_RATE) * share / WARM_UP
    start = WARM_UP if schedule == "onecycle" else 0.0
    return 0.5 * (1 + math.cos(math.pi * (share - start) / (1 - start)))


class TrainingClock:
    """Counts steps and time of one training, sets the rates of cosine and onecycle, ends in time.

    ``planned`` are the steps of the whole training; when one goes on, ``steps`` were done and
    ``seconds`` spent before. ``clock`` gives seconds from any origin, and ``agree`` makes the time
    of one process that of all. Whoever does a step adds it to :attr:`steps`.
    """

    def __init__(
        self,
        options: TrainingOptions,
        planned: int,
        *,
        steps: int = 0,
        seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        agree: Callable[[float], float] = float,
    ) -> None:
        self.options = options
        self.planned = planned
        self.steps = steps
        self._clock = clock
        self._agree = agree
        self._began = clock() - seconds
        self._agreed = seconds

    @property
    def seconds(self) -> float:
        """Time spent on this training so far, on this process's clock."""
        return self._clock() - self._began

    def share(self) -> float:
        """Return the share of the planned training that is done, by steps or time."""
        by_steps = self.steps / self.planned
        if self.options.max_minutes is None:
            return by_steps
        return max(by_steps, self._agreed / (60 * self.options.max_minutes))

    def set_rate(self, optimizer: Optimizer) -> None:
        """Set the rate of the coming step; ``plateau`` leaves that to its own scheduler."""
        if self.options.lr_schedule == "plateau":
            return
        factor = rate_factor(self.options.lr_schedule, self.share())
        for group in optimizer.param_groups:
            group["lr"] = self.options.start_lr * factor

    def time_is_up(self) -> bool:
        """Read the clock; return whether ``max_minutes`` have passed, the same in all processes."""
        if self.options.max_minutes is None:
            return False
        self._agreed = self._agree(self.seconds)
        return self._agreed >= 60 * self.options.max_minutes


def build_scheduler(optimizer: Optimizer, options: TrainingOptions) -> ReduceLROnPlateau | None:
    """Return what is stepped with the validation loss after each epoch, for ``plateau`` alone."""
    if options.lr_schedule != "plateau":
        return None
    return ReduceLROnPlateau(
        optimizer, factor=options.lr_scheduler_factor, patience=options.lr_scheduler_patience
    )
