"""Losses against plain numpy twins, in two and three dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from utils.training.losses import (
    SMOOTH,
    LossByParts,
    build_loss,
    foreground_weight,
    measure_foreground,
    outer_boundary,
)
from utils.training.options import CHOICES, TrainingOptions

SHAPES = [(3, 1, 8, 9), (2, 1, 6, 7, 5)]


def random_case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, shape)
    target = ndimage.uniform_filter(rng.random(shape), (0, 0, *(3,) * (len(shape) - 2))) > 0.5
    return logits, target.astype(np.float64)


def loss_of(logits: np.ndarray, target: np.ndarray, foreground: float | None = None, **options):
    loss = build_loss(TrainingOptions(**options), foreground)
    return loss(torch.from_numpy(logits), torch.from_numpy(target))


def plain_dice(p: np.ndarray, t: np.ndarray, w: np.ndarray | float = 1.0) -> float:
    """Return the mean over samples of the weighted soft Dice loss."""
    w = np.broadcast_to(w, p.shape)
    losses = []
    for k in range(len(p)):
        overlap = np.sum(w[k] * p[k] * t[k])
        total = np.sum(w[k] * p[k]) + np.sum(w[k] * t[k])
        losses.append(1 - (2 * overlap + SMOOTH) / (total + SMOOTH))
    return float(np.mean(losses))


def plain_bce(p: np.ndarray, t: np.ndarray, weight: float = 1.0) -> float:
    return float(-np.mean(weight * t * np.log(p) + (1 - t) * np.log1p(-p)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("shape", SHAPES)
def test_dice(shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape)
    expected = plain_dice(sigmoid(logits), target)
    assert loss_of(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bce_and_its_label_balanced_form(shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape)
    plain = plain_bce(sigmoid(logits), target)
    assert loss_of(logits, target, loss_type="bce").item() == pytest.approx(plain, rel=1e-5)
    balanced = plain_bce(sigmoid(logits), target, weight=0.8 / 0.2)
    found = loss_of(logits, target, 0.2, loss_type="weighted_bce").item()
    assert found == pytest.approx(balanced, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bce_and_dice_add_up(shape: tuple[int, ...]) -> None:
    logits, target = random_case(shape)
    p = sigmoid(logits)
    expected = plain_bce(p, target) + plain_dice(p[None], target[None])  # one ratio a batch
    found = loss_of(logits, target, loss_type="bce_dice").item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("thickness", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_boundary_weighted_dice(shape: tuple[int, ...], thickness: int) -> None:
    logits, target = random_case(shape)
    cube = np.ones((1, 1, *(2 * thickness + 1,) * (len(shape) - 2)), bool)
    shell = ndimage.binary_dilation(target > 0, cube) & (target == 0)
    assert 0 < shell.mean() < 1
    options = {"loss_type": "boundary_weighted_dice", "boundary_thickness": thickness}
    found = loss_of(logits, target, boundary_weight=3.0, **options).item()
    expected = plain_dice(sigmoid(logits), target, np.where(shell, 3.0, 1.0))
    assert found == pytest.approx(expected, rel=1e-5)
    assert found > loss_of(logits, target).item()
    same = loss_of(logits, target, boundary_weight=1.0, **options).item()
    assert same == pytest.approx(loss_of(logits, target).item(), rel=1e-6)


def test_outer_boundary_of_one_voxel() -> None:
    mask = torch.zeros(1, 1, 7, 7)
    mask[0, 0, 3, 3] = 1
    ring = outer_boundary(mask, 1)[0, 0]
    assert ring.sum() == 8 and ring[3, 3] == 0 and ring[2:5, 2:5].sum() == 8
    assert outer_boundary(mask, 2).sum() == 24
    assert outer_boundary(torch.zeros(1, 1, 5, 5, 5), 1).sum() == 0


@pytest.mark.parametrize("loss_type", CHOICES["loss_type"])
def test_every_loss_is_float32_with_finite_gradients_under_autocast(loss_type: str) -> None:
    loss = build_loss(TrainingOptions(loss_type=loss_type, boundary_weight=2.0), 0.1)
    logits = torch.linspace(-30, 30, 2 * 4**3).reshape(2, 1, 4, 4, 4).bfloat16().requires_grad_()
    target = (logits.detach() > 5).to(torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, target)
    assert value.dtype == torch.float32 and value.ndim == 0
    value.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("loss_type", CHOICES["loss_type"])
def test_right_predictions_cost_nothing_and_wrong_ones_much(loss_type: str) -> None:
    target = np.zeros((1, 1, 6, 6))
    target[..., 2:4, 2:4] = 1
    right = np.where(target > 0, 20.0, -20.0)
    good = loss_of(right, target, 0.1, loss_type=loss_type).item()
    bad = loss_of(-right, target, 0.1, loss_type=loss_type).item()
    assert good == pytest.approx(0, abs=1e-4)
    assert bad > 0.9


def test_an_empty_patch_predicted_empty_has_no_dice_loss() -> None:
    empty = np.zeros((1, 1, 4, 4))
    assert loss_of(empty - 50, empty).item() == pytest.approx(0, abs=1e-4)


def test_foreground_weight_balances_the_labels() -> None:
    assert foreground_weight(0.2) == pytest.approx(4.0)
    assert foreground_weight(0.5) == 1.0
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="no weight can balance"):
            foreground_weight(share)


def test_foreground_is_measured_on_the_first_crops() -> None:
    shares = (0.1, 0.3, 0.9)
    items = [(torch.zeros(1, 10), (torch.arange(10)[None] < 10 * s).float()) for s in shares]
    assert measure_foreground(items, crops=2) == pytest.approx(0.2)
    assert measure_foreground(items) == pytest.approx(1.3 / 3)


LEFT_OUT = -1.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss_type", CHOICES["loss_type"])
def test_voxels_that_nobody_annotated_count_nowhere(loss_type: str, shape: tuple[int, ...]) -> None:
    """A slab is left out of every sample: the loss is that of the rest alone."""
    logits, target = random_case(shape)
    options = {"loss_type": loss_type, "boundary_weight": 2.0}
    sparse = target.copy()
    sparse[:, :, -3:] = LEFT_OUT
    rest = logits[:, :, :-3], target[:, :, :-3]
    expected = loss_of(*rest, 0.2, **options).item()
    found = loss_of(logits, sparse, 0.2, **options).item()
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(loss_of(logits, target, 0.2, **options).item(), rel=1e-3)
    other = np.where(sparse < 0, -logits, logits)
    assert loss_of(other, sparse, 0.2, **options).item() == found


@pytest.mark.parametrize("loss_type", CHOICES["loss_type"])
def test_a_sample_without_annotations_is_as_if_it_were_not_there(loss_type: str) -> None:
    logits, target = random_case((3, 1, 6, 7, 5))
    sparse = target.copy()
    sparse[1] = LEFT_OUT
    expected = loss_of(logits[[0, 2]], target[[0, 2]], 0.2, loss_type=loss_type).item()
    assert loss_of(logits, sparse, 0.2, loss_type=loss_type).item() == pytest.approx(
        expected, rel=1e-5
    )
    nothing = np.full_like(target, LEFT_OUT)
    assert loss_of(logits, nothing, 0.2, loss_type=loss_type).item() == 0.0


@pytest.mark.parametrize("loss_type", CHOICES["loss_type"])
def test_only_annotated_voxels_pass_a_gradient(loss_type: str) -> None:
    logits, target = map(torch.from_numpy, random_case((2, 1, 6, 7, 5)))
    target[:, :, :2] = LEFT_OUT
    logits.requires_grad_()
    build_loss(TrainingOptions(loss_type=loss_type), 0.2)(logits, target).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, :, :2].any() and logits.grad[:, :, 2:].all()


@pytest.mark.parametrize("loss_type", CHOICES["loss_type"])
def test_kinds_of_patches_count_by_their_number_in_a_batch(loss_type: str) -> None:
    """Two that are annotated in a single plane as much as two that are whole."""
    logits, target = map(torch.from_numpy, random_case((4, 1, 6, 7, 5)))
    target[2:, :, 1:] = LEFT_OUT
    logits.requires_grad_()
    loss = build_loss(TrainingOptions(loss_type=loss_type, boundary_weight=2.0), 0.2)
    both = LossByParts(loss, (2, 2))(logits, target)
    halves = [loss(logits[half], target[half]) for half in (slice(2), slice(2, 4))]
    torch.testing.assert_close(both, (halves[0] + halves[1]) / 2)
    one = LossByParts(loss, (6, 2))(logits, target)  # as its rank sees a batch of eight
    expected = (3 * loss(logits[:3], target[:3]) + loss(logits[3:], target[3:])) / 4
    torch.testing.assert_close(one, expected)
    both.backward()
    whole, plane = logits.grad.abs().sum((1, 2, 3, 4)).split(2)
    assert plane.sum() > 0.3 * whole.sum()


def test_foreground_is_a_share_of_what_is_annotated() -> None:
    mask = torch.tensor([[1.0, 0.0, 0.0, 0.0, LEFT_OUT, LEFT_OUT]])
    assert measure_foreground([(mask, mask), (mask, mask)]) == 0.25
