"""A fixture that several files of tests share."""

from __future__ import annotations

import pickle
import sys

import pytest

from tests.checkpoints.saved import Evil


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The file that any of the payloads would make, and a pickle and a program that would make it too."""
    file = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(file)!r}, 'w')\nModel = loss = instantiate = print\n")
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps(Evil(file)))
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    assert not file.exists()
    assert "evil_module" not in sys.modules
