"""Look-alikes of Omniglot's files, in place of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_meta.data.vision import omniglot_files
from tests.data.vision.look_alikes import COUNTS, drawings, write_folders, write_zips


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("slow") is None:  # keywords have folder names, too
        monkeypatch.setattr(omniglot_files, "_CHARACTERS", COUNTS)


@pytest.fixture
def files() -> dict[str, bytes]:
    return drawings()


@pytest.fixture
def root(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write_zips(tmp_path / "root", files)


@pytest.fixture
def folders(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write_folders(tmp_path / "folders", files)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The drawings decoded so far."""
    names: list[str] = []
    decode = omniglot_files._decode

    def counting(source: Path, name: str, content: bytes) -> np.ndarray:
        names.append(name)
        return decode(source, name, content)

    monkeypatch.setattr(omniglot_files, "_decode", counting)
    return names
