"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections import Counter

import pytest
import torch

from lightning_meta.data.vision import omniglot
from lightning_meta.data.vision.omniglot_files import OmniglotImages

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: together they have as many threads as cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would put the longest test last
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Begin with the documentation's build, one test of over a minute; then with the files of most tests."""
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name != "test_docs.py", -sizes[item.path], item.path))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch):
    """Lightning's command line warns when it is given arguments inside a program that has its own."""
    monkeypatch.setattr(sys, "argv", ["lightning-meta"])


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def noise():
    """Pixels of as many drawings as Omniglot has."""
    return torch.randint(256, (1623, 20, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def random_omniglot(monkeypatch, noise):
    """Noise in the place of Omniglot's drawings."""
    names = tuple(f"images_{'background' if i < 964 else 'evaluation'}/alphabet/character{i:04}" for i in range(1623))
    monkeypatch.setattr(omniglot, "load_omniglot", lambda *args, **kwargs: OmniglotImages(noise, names))
