import itertools

import pytest
import torch

from utils.prediction.views import View, averaged_views


def windows(*space):
    return torch.rand((2, 1, *space), generator=torch.Generator().manual_seed(0))


def same(x):
    return x


@pytest.mark.parametrize("space", [(4, 6), (4, 6, 5)])
def test_mirror_images_are_put_back(space):
    inputs, seen = windows(*space), []
    ramp = torch.arange(space[0]).view(-1, *[1] * (len(space) - 1)) * torch.ones(space)

    def predict(x):
        seen.append(x)
        return x + ramp  # knows where it is, unlike a convolution

    answers = View(flipped=(0,)).answer(predict, inputs)
    assert torch.equal(seen[0], inputs.flip(2))
    torch.testing.assert_close(answers, inputs + ramp.flip(0))


def test_grey_values_change_as_told():
    inputs = windows(3, 3, 3)
    torch.testing.assert_close(View(power=2.0).answer(same, inputs), inputs * inputs)


def test_noise_has_its_spread_and_comes_from_the_generator():
    inputs = torch.full((1, 1, 40, 40, 40), 0.5)
    noise = [
        View(noise=0.1).answer(same, inputs, torch.Generator().manual_seed(seed)) - 0.5
        for seed in (1, 1, 2)
    ]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert float(noise[0].std()) == pytest.approx(0.1, rel=0.02)
    assert View(noise=5.0).answer(same, inputs).aminmax() == (0, 1)


@pytest.mark.parametrize(("scale", "edges"), [(0.8, (8, 16, 1)), (1.25, (12, 25, 1))])
def test_scaled_windows_have_their_edges_and_answers_those_of_before(scale, edges):
    inputs = torch.linspace(0, 1, 20).view(1, 1, 1, 20, 1).expand(1, 1, 10, 20, 1)
    seen = []

    def predict(x):
        seen.append(tuple(x.shape[2:]))
        return x

    answers = View(scale=scale).answer(predict, inputs)
    assert seen == [edges] and answers.shape == inputs.shape
    inner = (..., slice(2, -2), 0)
    torch.testing.assert_close(answers[inner], inputs[inner], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_views_that_are_averaged(dims):
    assert averaged_views((), dims) == (View(),)
    flips = averaged_views(("flips",), dims)
    subsets = {c for n in range(dims + 1) for c in itertools.combinations(range(dims), n)}
    assert {view.flipped for view in flips} == subsets and len(flips) == 2**dims
    everything = averaged_views(("scales", "flips"), dims)
    assert everything[0] == View() and len(set(everything)) == 2**dims + 2
    assert [view.scale for view in averaged_views(("scales",), dims)] == [1, 0.8, 1.25]
