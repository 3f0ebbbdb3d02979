"""Presets by name, and mixtures: shares, seeds, what describes them, and mistakes."""

import numpy as np
import pytest

from utils.errors import UserError
from utils.simulation import Mixture, VolumeConfig, WideConfig, config_from_dict, preset
from utils.simulation.presets import PRESETS, preset_of


def test_presets_are_the_defaults() -> None:
    assert preset("reference") == VolumeConfig() and preset("wide") == WideConfig()
    assert preset("wide", shape=(8, 8, 8)).shape == (8, 8, 8)
    for name in PRESETS:
        config = preset(name)
        assert preset_of(config) == name and config_from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="preset 'narrow': must be one of reference, wide"):
        preset("narrow")


def test_volumes_are_chosen_by_their_shares_and_their_place_alone() -> None:
    mixture = Mixture(((preset("wide"), 0.7), (preset("reference"), 0.3)))
    places = [(epoch, index) for epoch in range(4) for index in range(250)]
    chosen = {place: preset_of(mixture.choose(0, *place)) for place in places}
    share = np.mean([name == "wide" for name in chosen.values()])
    assert share == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / 1000) ** 0.5)
    assert all(preset_of(mixture.choose(0, *place)) == chosen[place] for place in places[::-7])
    other = [preset_of(mixture.choose(1, *place)) for place in places]
    assert other != list(chosen.values())


def test_a_mixture_says_what_it_is() -> None:
    mixture = Mixture(((preset("wide"), 0.7), (preset("reference"), 0.3)))
    wide, reference = mixture.to_dict()
    assert (wide["preset"], wide["share"]) == ("wide", 0.7) and "sheet" in wide
    assert reference == {"preset": "reference", "share": 0.3, **VolumeConfig().to_dict()}
    alone = Mixture(((preset("reference"), 1.0),))
    assert alone.to_dict() == VolumeConfig().to_dict()
    assert alone.choose(0, 1, 2) == VolumeConfig()


@pytest.mark.parametrize("shares", [(0.7, 0.4), (1.0, 0.0), (1.5, -0.5)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="shares .*: must be above 0 and add up to 1"):
        Mixture(((preset("wide"), shares[0]), (preset("reference"), shares[1])))


def test_volumes_of_a_mixture_have_one_shape() -> None:
    with pytest.raises(UserError, match="shapes .*: must be equal"):
        Mixture(((preset("wide", shape=(8, 8, 8)), 0.5), (preset("reference"), 0.5)))
