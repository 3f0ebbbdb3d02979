"""The processes that train one network: who starts them, and what they share.

Each process, a rank, drives one device. torchrun and Slurm's srun start all of them; otherwise
Lightning Fabric starts the others on this machine, with the script's own command line. Ranks are
counted from 0, over all machines; rank 0 alone writes files.

The training is that of a single process with the whole batch: ranks take their parts of the same
batches, and a rank's loss weighs as much as its part, so that the mean of the ranks' gradients
(DDP) is the gradient of the mean over the batch. Only batch norm differs: each rank normalises by
its own part. In a single process what ranks share is what it has.

Batches reach a GPU from pinned memory without waiting: the loader pins, and Fabric's wrapper of it
copies with ``non_blocking`` to anything but a CPU.
"""

import atexit
import logging
import os
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from utils.devices import Compute, tune_gpu
from utils.errors import UserError
from utils.freed_memory import keep_all_freed
from utils.training.options import TrainingOptions


@dataclass(frozen=True)
class Processes:
    """The ranks of one training."""

    devices: int = 1  # on each machine, a process each
    nodes: int = 1  # machines
    launcher: str | None = None  # torchrun or srun where that has started all of them

    @property
    def total(self) -> int:
        """Ranks on all machines together."""
        return self.devices * self.nodes


ALONE = Processes()  # one process, one device
GRACE_SECONDS = 5.0  # in which the other processes may end by themselves once the first has ended


def choose_processes(
    options: TrainingOptions, device: str, environment: Mapping[str, str] = os.environ
) -> Processes:
    """Return the processes that --devices (None: auto) and --num_nodes ask for.

    ``auto`` is what torchrun or srun has started, else every GPU of this machine, and one process
    on a CPU. Raises UserError where these contradict each other or what there is, and for more
    devices than a batch has patches.
    """
    devices, nodes = options.devices, options.num_nodes
    found = torch.cuda.device_count() if device == "cuda" else 1
    planned = find_launcher(environment) or Processes(devices or found)
    if devices not in (None, planned.devices) or nodes not in (1, planned.nodes):
        launcher = planned.launcher or "the script alone"
        raise UserError(
            f"--devices {devices or 'auto'} --num_nodes {nodes}: {launcher} has started "
            f"{planned.devices} processes on each of {planned.nodes} machines; give the same "
            "numbers, or start it otherwise with torchrun or srun (docs/many_machines.md)"
        )
    if device == "cuda" and planned.devices > found:
        raise UserError(f"--devices {planned.devices}: torch finds {found} CUDA devices here")
    if options.batch_size < planned.total:
        raise UserError(
            f"--batch_size {options.batch_size}: fewer patches than the {planned.total} devices "
            "that share a batch; raise it, or lower --devices"
        )
    return planned


def find_launcher(environment: Mapping[str, str] = os.environ) -> Processes | None:
    """Return what torchrun or srun says in the environment that it has started, None without.

    srun with a single task is none: Fabric can start the other processes. Raises UserError where
    srun does not say how many tasks run on each machine.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        here, total = int(environment["LOCAL_WORLD_SIZE"]), int(environment["WORLD_SIZE"])
        return Processes(here, total // here, "torchrun")
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if interactive or int(environment.get("SLURM_NTASKS", 1)) == 1:
        return None
    try:
        here = int(environment["SLURM_NTASKS_PER_NODE"])
    except (KeyError, ValueError):
        raise UserError(
            f"srun has started {environment['SLURM_NTASKS']} tasks; say --ntasks-per-node to "
            "sbatch or srun (a number) instead of --ntasks"
        ) from None
    return Processes(here, int(environment.get("SLURM_NNODES", 1)), "srun")


def make_fabric(
    compute: Compute, seed: int, planned: Processes = ALONE, *, deterministic: bool = False
) -> Fabric:
    """Return a launched Fabric; seed torch, numpy, Python and loader workers.

    With several processes (DDP) all of them have met when this returns, started by torchrun, srun
    or by Fabric, which runs the script again with its own arguments. If one of those fails, Fabric
    kills all of them a few seconds later, this one too.
    """
    log = logging.getLogger("lightning_fabric")
    log.setLevel(logging.WARNING)  # the script's log says it all
    log.getChild("strategies.launchers").setLevel(logging.INFO)  # but which process has died
    tune_gpu(compute, deterministic)
    if compute.device == "cpu":
        keep_all_freed()
    strategy: DDPStrategy | str = "auto"
    if planned.total > 1:
        # Kernels of one voxel have several orders of axes in memory that are the same one.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Not before each forward pass: ranks.average_buffers averages them once an epoch.
        strategy = DDPStrategy(forward_sync_buffers=False)
    fabric = Fabric(
        accelerator=compute.device,
        devices=planned.devices,
        num_nodes=planned.nodes,
        precision=compute.precision,
        strategy=strategy,
        plugins=None if planned.launcher else LightningEnvironment(),
    )
    fabric.launch()
    if others := getattr(fabric.strategy.launcher, "procs", []):
        atexit.register(end, others)
    fabric.seed_everything(seed, workers=True, verbose=False)
    return fabric


def end(others: Sequence[subprocess.Popen]) -> None:
    """See to it that the ``others`` end: NCCL may wait for ever for a first rank that has gone."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(other.poll() is None for other in others):
        time.sleep(0.05)
    for other in others:
        other.kill()


def loader_processes(asked: int, neighbours: int = 1) -> int:
    """Return ``asked``, at most one a core of those that this process may use.

    ``neighbours`` training processes share the cores; each keeps one loader process at least.
    """
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(asked, max(1, len(usable) // neighbours))


def rank() -> int:
    """Return the number of this process, 0 where it is the only one."""
    return dist.get_rank() if _have_met() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _have_met() else 1


def own_block(length: int) -> range:
    """Return the indices of ``length`` items that are this rank's: each item is one rank's."""
    own, ranks = rank(), world_size()
    return range(own * length // ranks, (own + 1) * length // ranks)


def pooled(loss: float, samples: int, counts: Tensor) -> tuple[float, int, Tensor]:
    """Return the sums over all ranks: of losses, of samples, and of counts (int64, exactly).

    Every rank gets the same bits, so that all decide alike on what follows from them.
    """
    if not _have_met():
        return loss, samples, counts
    parts: list[tuple[float, int, list[int]]] = [(0.0, 0, [])] * world_size()
    dist.all_gather_object(parts, (loss, samples, counts.tolist()))
    losses, numbers, counted = zip(*parts, strict=True)
    return sum(losses), sum(numbers), torch.tensor(counted).sum(0)


def word_of_the_first(word: bool) -> bool:
    """Return, on every rank, the ``word`` of rank 0."""
    if not _have_met():
        return word
    told = [word]
    dist.broadcast_object_list(told, 0)
    return told[0]


@torch.no_grad()
def average_buffers(*modules: nn.Module | None) -> None:
    """Give batch norm on every rank the mean of all ranks' running statistics.

    Only rank 0's are kept otherwise, which come from its part of the patches alone.
    """
    if not _have_met():
        return
    for module in modules:
        for buffer in module.buffers() if module is not None else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world_size()


def _have_met() -> bool:
    """Return whether several processes train; a torch without distributed lacks is_initialized."""
    return dist.is_available() and dist.is_initialized()
