"""What the processes of one training share: the sums, and the running statistics.

Everything here does nothing in a single process. The training is that of a single process with the
whole batch: ranks take their parts of the same batches, and a rank's loss weighs as much as its
part, so that the mean of the ranks' gradients (DDP) is the gradient of the mean over the batch.
Only batch norm differs: each rank normalises by its own part.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Return the number of this process, 0 where it is the only one."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _several() else 1


def own_block(length: int) -> range:
    """Return the indices of ``length`` items that are this rank's: each item is one rank's."""
    own, ranks = rank(), world_size()
    return range(own * length // ranks, (own + 1) * length // ranks)


def pooled(loss: float, samples: int, counts: Tensor) -> tuple[float, int, Tensor]:
    """Return the sums over all ranks: of losses, of samples, and of counts (int64, exactly).

    Every rank gets the same bits, so that all decide alike on what follows from them.
    """
    if not _several():
        return loss, samples, counts
    parts: list[tuple[float, int, list[int]]] = [(0.0, 0, [])] * world_size()
    dist.all_gather_object(parts, (loss, samples, counts.tolist()))
    losses, numbers, counted = zip(*parts, strict=True)
    return sum(losses), sum(numbers), torch.tensor(counted).sum(0)


def word_of_the_first(word: bool) -> bool:
    """Return, on every rank, the ``word`` of rank 0."""
    if not _several():
        return word
    told = [word]
    dist.broadcast_object_list(told, 0)
    return told[0]


@torch.no_grad()
def average_buffers(*modules: nn.Module | None) -> None:
    """Give batch norm on every rank the mean of all ranks' running statistics.

    Only rank 0's are kept otherwise, which come from its part of the patches alone.
    """
    if not _several():
        return
    for module in modules:
        for buffer in module.buffers() if module is not None else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world_size()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()
