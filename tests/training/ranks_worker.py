"""What each rank runs in test_distributed.py, and the single process that it is compared with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from models import ModelConfig, build_model
from utils.data import OnTheFly3DDataset
from utils.data.epochs import EpochDataset
from utils.data.simulated import MixedDataset, split_batch
from utils.devices import Compute
from utils.errors import UserError
from utils.simulation import VolumeConfig
from utils.training import ranks
from utils.training.ending import record_exit
from utils.training.experiment import Experiment
from utils.training.loaders import build_loader
from utils.training.loop import evaluate, train, train_one_epoch
from utils.training.losses import build_loss
from utils.training.options import TrainingOptions
from utils.training.ranks import Processes, make_fabric
from utils.training.run import load_in_turn

TRAINING, VALIDATION, BATCH = 10, 3, 5
"""Items and batch size; two ranks share batches of five unevenly."""


class Patches(EpochDataset):
    """Noise whose first voxel tells the index; no memory is left in the epoch ``spoilt``."""

    def __init__(self, length: int, spoilt: int = -1) -> None:
        super().__init__()
        self.length, self.spoilt = length, spoilt

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.epoch == self.spoilt:
            raise MemoryError
        rng = np.random.default_rng(index)
        image = rng.random((1, 8, 8, 8), np.float32)
        image[0, 0, 0, 0] = index
        mask = (rng.random((1, 8, 8, 8)) < rng.random()).astype(np.float32)
        return torch.from_numpy(image), torch.from_numpy(mask)


class Real(Patches):
    """Patches that are -1 - index in every voxel, where simulated ones lie in 0..1."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = super().__getitem__(index)
        return torch.full_like(image, -1 - index), mask


def network() -> nn.Module:
    """Return a small U-Net whose batch norm stays in eval mode."""
    torch.manual_seed(1)
    model = build_model(ModelConfig(arch="unet", spatial_dims=3, depth=2, start_channels=2))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
            module.train = lambda mode=True, same=module: same
    return model


def measure(fabric: Fabric) -> dict[str, object]:
    """Train two epochs and validate; return all that must not depend on the number of ranks."""
    options = TrainingOptions(batch_size=BATCH, loss_type="dice", seed=4)
    model = network()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen: list[list[int]] = [[], []]
    model.module.register_forward_pre_hook(
        lambda _, inputs: seen[data.epoch].extend(inputs[0][:, 0, 0, 0, 0].int().tolist())
    )
    data = Patches(TRAINING)
    loader = build_loader(fabric, data, options, training=True)
    loss = build_loss(options)
    trained = []
    for epoch in range(2):
        data.set_epoch(epoch)
        trained.append(train_one_epoch(fabric, model, loss, loader, optimizer, "training"))
    seen_in_training = [list(epoch) for epoch in seen]
    valid_loader = build_loader(fabric, Patches(VALIDATION), options)
    validated, examples = evaluate(model, loss, valid_loader, "validation")
    return {
        "gradients": [parameter.grad.clone() for parameter in model.module.parameters()],
        "weights": [parameter.detach().clone() for parameter in model.module.parameters()],
        "names": list(model.state_dict()),
        "seen": seen_in_training,
        "losses": [result.loss for result in (*trained, validated)],
        "counts": [vars(result.confusion) for result in (*trained, validated)],
        "samples": [result.samples for result in (*trained, validated)],
        "shown": [int(image[0, 0, 0]) for image, _, _ in examples],
    }


def mixed(fabric: Fabric) -> list[list[list[float]]]:
    """Return the mean of each image, batch by batch, of two epochs of ``--mix 0.5``."""
    volumes = VolumeConfig(shape=(32, 32, 32), lattice_intervals=(4, 5), min_columns=5)
    live = OnTheFly3DDataset(volumes, patch_size=8, patches_per_epoch=8, patches_per_volume=2)
    data = MixedDataset(live, Real(8), split_batch(4, 0.5, ranks.world_size()))
    loader = build_loader(fabric, data, TrainingOptions(batch_size=4))
    epochs = []
    for epoch in (1, 2):
        data.set_epoch(epoch)
        epochs.append([images.mean((1, 2, 3, 4)).tolist() for images, _ in loader])
    return epochs


def refused() -> list[str]:
    """Return how loading ends where the first rank finds a mistake, and where there is none."""
    ends = []
    for mistake in (True, False):

        def load(mistake: bool = mistake) -> str:
            if mistake and not ranks.rank():
                raise UserError("no labels")
            return "loaded"

        try:
            ends.append(load_in_turn(load))
        except (UserError, SystemExit) as error:
            ends.append(repr(error))
    return ends


def average_of_ranks() -> float:
    """Return the mean over ranks of a running mean that is the rank's number."""
    norm = nn.BatchNorm3d(1)
    norm.running_mean.fill_(ranks.rank())
    ranks.average_buffers(norm)
    return float(norm.running_mean)


def share(fabric: Fabric, folder: Path) -> None:
    """Measure; each rank writes what it found."""
    found = {**measure(fabric), "average": average_of_ranks(), "mixed": mixed(fabric)}
    found["refused"] = refused()
    found["word"] = ranks.word_of_the_first(not ranks.rank())
    torch.save(found, folder / f"rank_{ranks.rank()}.pt")


def fail(fabric: Fabric, folder: Path, failing: int) -> int:
    """Train until the rank ``failing`` has no memory left in epoch 2."""
    Experiment.draw = lambda self, history, examples: None
    if ranks.rank():
        experiment = Experiment(folder / "run", writes=False)
    else:
        experiment = Experiment.create(folder / "run", {}, __file__)
    data = Patches(6, spoilt=2 if ranks.rank() == failing else -1), Patches(2)
    options = TrainingOptions(batch_size=4, epochs=3)
    loss = build_loss(options)
    return record_exit(
        experiment, lambda: train(fabric, network(), loss, *data, options, experiment, {})
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    launcher, place, failing_rank = sys.argv[1:]
    planned = Processes(2, 1, launcher if launcher == "torchrun" else None)
    two = make_fabric(Compute("cpu", "32-true", "test"), 0, planned)
    share(two, Path(place))
    sys.exit(fail(two, Path(place), int(failing_rank)))
