"""The versions, which stand in one place."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from utils.provenance import VERSION, describe_program


def test_the_citation_has_the_version() -> None:
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == VERSION


def test_a_result_tells_its_versions() -> None:
    described = describe_program(ROOT / "predict.py")
    assert described["script"] == "predict.py"
    assert described["versions"]["3dsegmentation"] == VERSION
    assert {"python", "torch", "numpy", "h5py"} <= set(described["versions"])
    assert set(described["machine"]) == {"system", "processor", "cores", "threads"}
