"""What a training changes as it goes, how fast, and how that becomes a checkpoint and comes back.

``plateau`` follows the validation loss, once an epoch (torch's ReduceLROnPlateau). ``cosine`` and
``onecycle`` follow the share of the planned training that is done, batch by batch: the share of
the planned steps, or of ``max_minutes``, whichever is larger.

Epochs are counted from 1; checkpoints hold plain state: tensors, numbers, text, lists, dicts.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from utils.devices import memory_format
from utils.training.experiment import LAST, Experiment
from utils.training.options import TrainingOptions
from utils.training.speed_up_on_cpu import speed_up_on_cpu

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
    how = {"factor": options.lr_scheduler_factor, "patience": options.lr_scheduler_patience}
    return ReduceLROnPlateau(optimizer, **how) if options.lr_schedule == "plateau" else None


@dataclass
class Training:
    """The parts that a training changes, as Fabric has set them up, and how far it has come."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: ReduceLROnPlateau | None  # for plateau alone
    average: AveragedModel | None  # of the weights, with ema
    # what is validated and predicted with: the averaged network where there is one
    validated: nn.Module
    clock: TrainingClock
    history: list[dict[str, Any]] = field(default_factory=list)  # epochs, as in logs.json

    @property
    def best(self) -> Mapping[str, Any]:
        """The record of the epoch with the best validation IoU, the first of equal ones."""
        nothing = {"epoch": 0, "valid_iou": 0.0}
        return max(self.history, key=lambda record: record["valid_iou"], default=nothing)

    @property
    def stale_epochs(self) -> int:
        """Epochs in a row, up to the last one, without a lower validation loss."""
        losses = [record["valid_loss"] for record in self.history]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    @classmethod
    def begin(
        cls,
        fabric: Fabric,
        model: nn.Module,
        options: TrainingOptions,
        ndim: int,
        planned: int,
        state: Mapping[str, Any] | None = None,
    ) -> Self:
        """Bring a network for batches of ``ndim`` axes, and what trains it, to Fabric's device.

        ``planned`` are the steps of the whole training. It goes on from ``state``, the content of
        ``last.pth``, where that is given.
        """
        model = model.to(memory_format=memory_format(ndim))
        if fabric.device.type == "cpu":
            model = speed_up_on_cpu(model)
        optimizer = build_optimizer(model, options)
        scheduler = build_scheduler(optimizer, options)
        model, optimizer = fabric.setup(model, optimizer)
        average = make_average(model.module, options.ema)
        validated = fabric.setup_module(average.module) if average else model
        spent = state["pace"] if state else {}
        clock = TrainingClock(options, planned, agree=fabric.broadcast, **spent)
        training = cls(model, optimizer, scheduler, average, validated, clock)
        if state:
            training._go_on(state)
        return training

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state.get("raw_model_state", state["model_state"]))
        if self.average:
            self.average.module.load_state_dict(state["model_state"])
            self.average.n_averaged.fill_(state["averages"])
        self.optimizer.load_state_dict(state["optimizer_state"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler_state"])
        torch.set_rng_state(state["random_state"]["torch"])
        devices = state["random_state"]["cuda"]
        if devices and torch.cuda.device_count() == len(devices):
            torch.cuda.set_rng_state_all(devices)
        self.history = list(state["history"])

    def save(self, experiment: Experiment, description: Mapping[str, Any], policy: str) -> None:
        """Write ``last.pth`` with everything, and by policy what predicts of the best or each.

        Prediction takes ``description`` and ``model_state``, the averaged weights if there are any.
        """
        epoch = len(self.history)
        result = {
            **description,
            "model_state": dict(self.validated.state_dict()),
            "epoch": epoch,
            "metrics": dict(self.history[-1]) if self.history else {},
        }
        to_go_on = {
            "optimizer_state": self.optimizer.state_dict(),
            "scheduler_state": self.scheduler.state_dict() if self.scheduler else {},
            # Not numpy's and Python's: all else draws from generators of (seed, epoch, index).
            "random_state": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            "history": list(self.history),
            "pace": {"steps": self.clock.steps, "seconds": self.clock.seconds},
        }
        if self.average:
            to_go_on["raw_model_state"] = dict(self.model.state_dict())
            to_go_on["averages"] = int(self.average.n_averaged)
        if policy in ("best", "all") and self.best["epoch"] == epoch:
            experiment.save_checkpoint("best.pth", result)
        if policy == "all":
            experiment.save_checkpoint(f"epoch_{epoch:04d}.pth", result)
        # Last, so that a cut in between repeats this epoch instead of losing its weights.
        experiment.save_checkpoint(LAST, {**result, **to_go_on})


def build_optimizer(model: nn.Module, options: TrainingOptions) -> Optimizer:
    """Return the optimiser that ``options.optimizer`` names."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    how = {"lr": options.start_lr, "weight_decay": options.weight_decay}
    return kinds[options.optimizer](model.parameters(), **how)


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return a copy of ``model`` that follows its weights and buffers; None for a decay of 0.

    Call ``update_parameters(model)`` after each step. The n-th update keeps
    ``min(decay, (1 + n) / (10 + n))`` of the average, so that the random weights of the beginning
    are soon forgotten; counters (integer buffers) are copied.
    """
    if not decay:
        return None

    @torch.no_grad()
    def follow(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        n = int(average.n_averaged)  # on the host; for ``count`` it would wait for the device
        share = 1 - min(decay, (1 + n) / (10 + n))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    return average
