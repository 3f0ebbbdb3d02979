"""Operations and memory traffic of a training step, counted as torch carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Work:
    """What one step takes."""

    operations: int
    """Multiplications and additions in convolutions and matrix products, forward and backward."""
    traffic: int
    """Bytes, if each operation read its tensors once and wrote its results once."""


class TrafficMode(TorchDispatchMode):
    """Adds up the bytes of the tensors that go into operations and come out; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call ``function`` and count."""
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not function.__name__.startswith(("empty", "detach")):
            self.total += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, result))
                if isinstance(leaf, Tensor)
            )
        return result


def count_work(step: Callable[[], object]) -> Work:
    """Return the work of one call of ``step``, which must not be compiled."""
    with FlopCounterMode(display=False) as operations:
        step()
    with TrafficMode() as traffic:
        step()
    return Work(operations.get_total_flops(), traffic.total)
