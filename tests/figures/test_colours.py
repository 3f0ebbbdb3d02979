"""The colours of fluorescence."""

import numpy as np

from utils.figures import colours


def test_blue_ramp_grows_brighter() -> None:
    ramp = colours.blue(np.linspace(0.0, 1.0, 50))
    assert np.all(np.diff(ramp.sum(axis=1)) > 0)
    assert not ramp[0].any()
