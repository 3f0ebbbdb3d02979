"""The loop on tiny stub data: learning, stacks, schedule, stopping, checkpoints, repeatability."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.checkpoints.loading import load_checkpoint
from utils.data.epochs import EpochDataset
from utils.devices import Compute
from utils.errors import UserError
from utils.evaluation.confusion import confusion
from utils.training.ending import record_exit
from utils.training.experiment import Experiment
from utils.training.loaders import build_loader
from utils.training.loop import (
    evaluate,
    score,
    train,
    train_one_epoch,
)
from utils.training.losses import build_loss
from utils.training.options import TrainingOptions
from utils.training.ranks import make_fabric
from utils.training.state import Training, build_optimizer, build_scheduler, rate_factor

DESCRIPTION = {"model_config": {"arch": "stub"}, "patch_size": 4, "spacing_voxels": [4.0] * 3}


class Blobs(EpochDataset):
    """Bright cubes in noise, drawn from (epoch, index) as the real patches are."""

    def __init__(self, length: int = 6, space: tuple[int, ...] = (4, 4, 4)) -> None:
        super().__init__()
        self.length = length
        self.space = space

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((int(self.epoch), index))
        mask = np.zeros(self.space, np.float32)
        mask[tuple(slice(k, k + 2) for k in rng.integers(0, 3, len(self.space)))] = 1
        image = 0.3 * rng.random(self.space) + 0.6 * mask
        return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(mask)[None]


class Signalling(Blobs):
    """Sends ``number`` to this process, once, when its epoch ``at`` begins."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__()
        self.number, self.at, self.sent = number, at, False

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if int(self.epoch) == self.at and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


def network(space: int = 3) -> nn.Module:
    conv, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[space - 2]
    return nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, 1, 1))


class TwoStacks(nn.Module):
    """A list of logits; the first stack is far from right, the last is right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, x: Tensor) -> list[Tensor]:
        right = self.scale * (x - 0.5)
        return [-right, right]


class Scripted(nn.Module):
    """A loss whose validation values follow a script; training stays at a constant."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return 0 * logits.mean() + 0.5
        return torch.tensor(next(self.values))


@pytest.fixture
def fabric() -> Fabric:
    return make_fabric(Compute("cpu", "32-true", "test"), 0)


@pytest.fixture
def experiment(tmp_path: Path, undrawn: None) -> Experiment:
    return Experiment.create(tmp_path / "run", {}, __file__)


def run(
    fabric: Fabric, experiment: Experiment, model: nn.Module, loss: nn.Module, **options
) -> str:
    settings = TrainingOptions(**{"batch_size": 2, "epochs": 3, **options})
    data = Blobs(6), Blobs(2)
    return train(fabric, model, loss, *data, settings, experiment, DESCRIPTION)


@pytest.mark.parametrize("space", [2, 3])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_training_learns_in_2d_and_3d(
    tmp_path: Path, fabric: Fabric, experiment: Experiment, space: int, optimizer: str
) -> None:
    options = TrainingOptions(
        batch_size=4, epochs=10, start_lr=0.05, optimizer=optimizer, loss_type="bce"
    )
    data = Blobs(16, (4,) * space), Blobs(4, (4,) * space)
    reason = train(
        fabric, network(space), build_loss(options), *data, options, experiment, DESCRIPTION
    )
    epochs = experiment.read_log()["epochs"]
    assert [record["epoch"] for record in epochs] == list(range(1, 11))
    assert epochs[-1]["train_loss"] < 0.3 * epochs[0]["train_loss"]
    assert epochs[-1]["valid_iou"] > 0.9
    assert reason.startswith("completed 10 epochs")


def test_records_hold_what_the_issue_names(fabric: Fabric, experiment: Experiment) -> None:
    run(fabric, experiment, network(), build_loss(TrainingOptions()), epochs=1)
    (record,) = experiment.read_log()["epochs"]
    assert {
        "epoch", "train_loss", "valid_loss", "train_iou", "valid_iou", "lr", "seconds",
        "samples_per_second",
    } <= set(record)  # fmt: skip
    assert record["lr"] == 1e-3
    assert record["seconds"] > 0 and record["samples_per_second"] > 0
    assert {"train_dice", "valid_total_error", "valid_false_negative_rate"} <= set(record)


def test_training_sums_over_stacks_and_validation_takes_the_last(fabric: Fabric) -> None:
    options = TrainingOptions(batch_size=2, loss_type="bce", start_lr=1e-9)
    data, loss, model = Blobs(4), build_loss(options), TwoStacks()
    batches = [data[k] for k in range(4)]
    images, masks = (torch.stack(parts) for parts in zip(*batches, strict=True))
    first, last = model(images)
    set_up, optimizer = fabric.setup(model, build_optimizer(model, options))
    loader = build_loader(fabric, data, options)
    trained = train_one_epoch(fabric, set_up, loss, loader, optimizer, "epoch 1")
    both = (loss(first, masks) + loss(last, masks)).item()
    assert trained.loss == pytest.approx(both, rel=1e-4)
    assert trained.confusion == confusion(torch.sigmoid(last), masks)
    validated, examples = evaluate(set_up, loss, loader, "epoch 1")
    assert validated.loss == pytest.approx(loss(last, masks).item(), rel=1e-4)
    assert validated.confusion.iou > 0.99
    assert validated.samples == 4
    assert [image.shape for image, _, _ in examples] == [(4, 4, 4)] * 3
    assert np.array_equal(examples[2][1], masks[2, 0].numpy())
    np.testing.assert_allclose(
        examples[1][2], torch.sigmoid(last)[1, 0].detach().numpy(), rtol=1e-4, atol=1e-6
    )


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, at which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(fabric: Fabric) -> None:
    options = TrainingOptions(batch_size=2)
    model = network()
    set_up, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loss, reads = build_loss(options), []
    for length in (2, 12):
        batches = list(build_loader(fabric, Blobs(length), options))
        with HostReads() as counter:
            train_one_epoch(fabric, set_up, loss, batches, optimizer, "training")
            with torch.no_grad():  # within inference mode nothing is counted
                evaluate.__wrapped__(set_up, loss, batches, "validation")
            loss(*batches[0]).item()
        reads.append(counter.count)
    assert reads == [1, 1]  # the one of this test


def test_each_stack_gets_the_gradient_of_its_own_loss(fabric: Fabric) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1)])

        def forward(self, x: Tensor) -> list[Tensor]:
            return [head(x) for head in self.heads]

    options = TrainingOptions(batch_size=2, start_lr=0.1)
    model = Heads()
    before = [head.weight.detach().clone() for head in model.heads]
    set_up, optimizer = fabric.setup(model, build_optimizer(model, options))
    loader = build_loader(fabric, Blobs(2), options)
    train_one_epoch(fabric, set_up, build_loss(options), loader, optimizer, "epoch 1")
    for head, old in zip(model.heads, before, strict=True):
        assert not torch.equal(head.weight, old)


def test_epoch_loss_is_the_mean_over_samples_with_a_short_last_batch(fabric: Fabric) -> None:
    options = TrainingOptions(batch_size=4, loss_type="bce")
    data, loss, model = Blobs(6), build_loss(options), network().eval()
    result, _ = evaluate(model, loss, build_loader(fabric, data, options), "validation")
    single = [loss(model(data[k][0][None]), data[k][1][None]).item() for k in range(6)]
    assert result.loss == pytest.approx(np.mean(single), rel=1e-5)
    assert score(fabric, model, loss, data, options) == pytest.approx(
        {"loss": result.loss, **result.confusion.metrics()}, rel=1e-5
    )


def test_evaluation_leaves_the_network_as_it_is(fabric: Fabric) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = build_loader(fabric, Blobs(2), TrainingOptions())
    evaluate(model, build_loss(TrainingOptions()), loader, "validation")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_early_stopping_after_patience_epochs_without_a_lower_loss(
    fabric: Fabric, experiment: Experiment
) -> None:
    losses = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.75, 0.9, 0.1]
    reason = run(
        fabric, experiment, network(), Scripted(losses), epochs=9, early_stopping_patience=3
    )
    assert [r["valid_loss"] for r in experiment.read_log()["epochs"]] == pytest.approx(losses[:8])
    assert reason.startswith("early stopping: no lower validation loss for 3 epochs")


def test_plateau_lowers_the_rate_after_its_patience(fabric: Fabric, experiment: Experiment) -> None:
    losses = [0.9, 0.9, 0.9, 0.9, 0.9, 0.2]
    options = {"lr_scheduler_patience": 1, "lr_scheduler_factor": 0.1, "start_lr": 0.01}
    run(fabric, experiment, network(), Scripted(losses), epochs=6, **options)
    rates = [record["lr"] for record in experiment.read_log()["epochs"]]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 1e-3, 1e-3, 1e-4])


def test_weight_decay_and_rate_reach_the_optimiser() -> None:
    options = TrainingOptions(weight_decay=0.25, start_lr=0.5, optimizer="rmsprop")
    optimizer = build_optimizer(network(), options)
    assert isinstance(optimizer, torch.optim.RMSprop)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert build_scheduler(optimizer, options).factor == 0.2


def test_the_best_iou_and_the_lowest_loss_are_kept_apart(fabric: Fabric) -> None:
    training = Training.begin(fabric, network(), TrainingOptions(), 5, planned=1)
    assert (training.best["epoch"], training.best["valid_iou"], training.stale_epochs) == (0, 0, 0)
    for epoch, loss, iou in ((1, 0.5, 0.2), (2, 0.6, 0.4), (3, 0.4, 0.3), (4, 0.4, 0.4)):
        training.history.append({"epoch": epoch, "valid_loss": loss, "valid_iou": iou})
    assert training.best is training.history[1]
    assert training.stale_epochs == 1


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        ("last", set()),
        ("best", {"best.pth"}),
        ("all", {"best.pth", "epoch_0001.pth", "epoch_0002.pth", "epoch_0003.pth"}),
    ],
)
def test_checkpoint_policies(
    fabric: Fabric, experiment: Experiment, policy: str, names: set[str]
) -> None:
    loss = build_loss(TrainingOptions())
    run(fabric, experiment, network(), loss, checkpoint_policy=policy, start_lr=0.05)
    assert set(os.listdir(experiment.checkpoints)) == {"last.pth", *names}
    assert not (experiment.directory / "tensorboard").exists()  # unless it is asked for
    epochs = experiment.read_log()["epochs"]
    if policy != "last":
        best = load_checkpoint(experiment.checkpoints / "best.pth")
        top = max(epochs, key=lambda record: record["valid_iou"])
        assert (best["epoch"], best["metrics"]) == (top["epoch"], top)
    if policy == "all":
        second = load_checkpoint(experiment.checkpoints / "epoch_0002.pth")
        assert second["metrics"] == epochs[1]


def test_last_checkpoint_holds_all_that_going_on_needs(
    fabric: Fabric, experiment: Experiment
) -> None:
    model, options = network(), TrainingOptions()
    run(fabric, experiment, model, build_loss(options), epochs=2)
    state = load_checkpoint(experiment.checkpoints / "last.pth")
    assert state["epoch"] == len(state["history"]) == 2
    assert state["history"] == experiment.read_log()["epochs"]
    assert {name: state[name] for name in DESCRIPTION} == DESCRIPTION
    assert set(state["random_state"]) == {"torch", "cuda"}
    fresh = network()
    fresh.load_state_dict(state["model_state"])
    image = Blobs()[0][0][None]
    assert torch.equal(fresh.eval()(image), model.eval()(image))
    optimizer = build_optimizer(fresh, options)
    optimizer.load_state_dict(state["optimizer_state"])
    assert optimizer.state_dict()["state"][0]["step"] == 6
    scheduler = build_scheduler(optimizer, options)
    scheduler.load_state_dict(state["scheduler_state"])
    assert scheduler.last_epoch == 2


def weights_after(tmp_path: Path, name: str, **options) -> dict[str, Tensor]:
    fabric = make_fabric(Compute("cpu", "32-true", "test"), options.get("seed", 0))
    model = network()
    run(fabric, Experiment.create(tmp_path / name, {}, __file__), model, build_loss(
        TrainingOptions()), epochs=2, **options)  # fmt: skip
    return model.state_dict()


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_trains_the_same_network_to_the_bit(tmp_path: Path) -> None:
    first = weights_after(tmp_path, "a")
    again = weights_after(tmp_path, "b")
    workers = weights_after(tmp_path, "c", num_workers=2)
    other = weights_after(tmp_path, "d", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], workers[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("values", "where"),
    [([0.5, float("nan")], "epoch 2, validation, batch 1"), ([float("inf")], "epoch 1, valid")],
)
def test_a_non_finite_validation_loss_stops(
    fabric: Fabric, experiment: Experiment, values: list[float], where: str
) -> None:
    with pytest.raises(UserError, match=where):
        run(fabric, experiment, network(), Scripted(values))


def test_a_non_finite_training_loss_stops_with_its_place_recorded(
    fabric: Fabric, experiment: Experiment
) -> None:
    class Breaking(nn.Module):
        calls = 0

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            self.calls += torch.is_grad_enabled()
            return logits.mean() * (float("nan") if self.calls == 5 else 1.0)

    model = network()
    status = record_exit(experiment, lambda: run(fabric, experiment, model, Breaking()))
    log = experiment.read_log()
    assert status == log["exit"]["status"] == 1
    assert "nan in epoch 2, training, batch 2" in log["exit"]["reason"]
    assert len(log["epochs"]) == 1
    kept = load_checkpoint(experiment.checkpoints / "last.pth")
    assert kept["epoch"] == 1
    assert all(torch.isfinite(weights).all() for weights in kept["model_state"].values())
    assert load_checkpoint(experiment.checkpoints / "last.pth")["epoch"] == 1


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_last_completed_epoch(
    fabric: Fabric, experiment: Experiment, number: int, at: int
) -> None:
    options = TrainingOptions(batch_size=2, epochs=5)
    data = Signalling(number, at), Blobs(2)
    status = record_exit(
        experiment,
        lambda: train(
            fabric, network(), build_loss(options), *data, options, experiment, DESCRIPTION
        ),
    )
    log = experiment.read_log()
    assert status == 130
    assert log["exit"] == {
        "reason": f"interrupted by {signal.Signals(number).name}",
        "status": 130,
    }
    assert len(log["epochs"]) == at - 1
    state = load_checkpoint(experiment.checkpoints / "last.pth")
    assert state["epoch"] == at - 1
    network().load_state_dict(state["model_state"])


def test_bfloat16_keeps_losses_and_weights_in_float32(
    tmp_path: Path, experiment: Experiment
) -> None:
    fabric = make_fabric(Compute("cpu", "bf16-mixed", "test"), 0)
    seen = []

    class Watching(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            seen.append((logits.dtype, torch.is_autocast_enabled("cpu")))
            return build_loss(TrainingOptions())(logits, target)

    model = network()
    run(fabric, experiment, model, Watching(), epochs=1)
    assert set(seen) == {(torch.float32, False)}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_batch_norm_measures_in_float32_under_bfloat16() -> None:
    """The running statistics are those of a float64 sum over the same bfloat16 activations."""
    fabric = make_fabric(Compute("cpu", "bf16-mixed", "test"), 0)
    model, seen = network(), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    set_up = fabric.setup_module(model)
    norm = model[1]
    norm.momentum = 1.0
    with torch.no_grad():
        model[0].bias += 20  # a mean that bfloat16 sums would lose the digits of
    set_up.train()(torch.rand(4, 1, 8, 8, 8))
    assert seen[0].dtype == torch.bfloat16
    values = seen[0].double().transpose(0, 1).flatten(1)
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean.double(), values.mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=1e-3, atol=0)


def test_averaged_weights_are_validated_and_kept_as_the_network(
    fabric: Fabric, experiment: Experiment
) -> None:
    model, options = network(), TrainingOptions(batch_size=2, epochs=2, ema=0.5, loss_type="bce")
    data, loss = (Blobs(6), Blobs(2)), build_loss(TrainingOptions(loss_type="bce"))
    train(fabric, model, loss, *data, options, experiment, DESCRIPTION)
    last = load_checkpoint(experiment.checkpoints / "last.pth")
    assert last["averages"] == 6
    raw, averaged = last["raw_model_state"], last["model_state"]
    assert all(torch.equal(raw[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(raw["0.weight"], averaged["0.weight"])
    kept = network()
    kept.load_state_dict(averaged)
    data[1].set_epoch(int(data[1].epoch))
    result, _ = evaluate(kept, loss, build_loader(fabric, data[1], options), "again")
    assert result.loss == pytest.approx(experiment.read_log()["epochs"][-1]["valid_loss"], rel=1e-5)
    best = load_checkpoint(experiment.checkpoints / "best.pth")
    assert "raw_model_state" not in best and "pace" not in best


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_rates_of_a_planned_training_come_down(
    fabric: Fabric, experiment: Experiment, schedule: str
) -> None:
    loss = build_loss(TrainingOptions())
    run(fabric, experiment, network(), loss, epochs=4, lr_schedule=schedule, start_lr=0.01)
    rates = [record["lr"] for record in experiment.read_log()["epochs"]]
    expected = [0.01 * rate_factor(schedule, epoch / 4) for epoch in range(4)]
    assert rates == pytest.approx(expected)
    state = load_checkpoint(experiment.checkpoints / "last.pth")
    assert state["scheduler_state"] == {} and state["pace"]["steps"] == 12


def test_the_loop_writes_event_files_where_they_are_wanted(
    fabric: Fabric, experiment: Experiment
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loss = build_loss(TrainingOptions(), None)
    run(fabric, experiment, network(), loss, epochs=2, tensorboard=True)
    events = EventAccumulator(str(experiment.directory / "tensorboard")).Reload()
    history = experiment.read_log()["epochs"]
    for tag, name in (("iou/valid", "valid_iou"), ("loss/train", "train_loss")):
        values = [point.value for point in events.Scalars(tag)]
        assert values == pytest.approx([record[name] for record in history])
    assert len(events.Images("examples/patch_1")) == 2
