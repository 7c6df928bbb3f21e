"""The real package, which the default environment lacks; `benchmarks/install_peers.sh` makes one that has it."""

from __future__ import annotations

import pytest

from tests.interop.learn2learn import stand_ins


@pytest.fixture(autouse=True)
def _stand_ins_are_of_the_package(monkeypatch):
    """For as long as a test runs: command lines import the modules of all classes of modules that there are."""
    for cls in stand_ins.MODULES:
        monkeypatch.setattr(cls, "__module__", "learn2learn.algorithms.stand_in")


@pytest.fixture
def l2l():
    return pytest.importorskip("learn2learn", reason="learn2learn is not installed: see benchmarks/install_peers.sh")
