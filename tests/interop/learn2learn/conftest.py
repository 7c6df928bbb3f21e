"""The real package, which the default environment lacks; `benchmarks/install_peers.sh` makes one that has it."""

from __future__ import annotations

import pytest


@pytest.fixture
def l2l():
    return pytest.importorskip("learn2learn", reason="learn2learn is not installed: see benchmarks/install_peers.sh")
