"""How characters are split, and the real data."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_meta.data import OmniglotDataModule
from lightning_meta.data.vision.omniglot import split_characters
from lightning_meta.data.vision.omniglot_files import OmniglotImages, load_omniglot
from tests.data.vision.look_alikes import BACKGROUND, EVALUATION


def named(count=1623):
    names = tuple(f"images_{'background' if i < 964 else 'evaluation'}/a/character{i}" for i in range(count))
    return OmniglotImages(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), names)


@pytest.mark.parametrize(("split", "sizes"), [("vinyals", (1100, 100, 423)), ("lake", (864, 100, 659))])
def test_splits_are_disjoint_complete_and_fixed(split, sizes):
    parts = split_characters(named(), split)
    assert tuple(len(parts[s]) for s in ("train", "val", "test")) == sizes
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1623))
    if split == "lake":
        assert min(parts["test"]) == 964
    # From the digests of the names, computed here on their own.
    order = sorted(range(1623), key=lambda i: hashlib.sha256(named().names[i].encode()).hexdigest())
    if split == "vinyals":
        assert parts["test"].tolist() == order[1200:]


@pytest.mark.slow
def test_real_omniglot(tmp_path, decoded):
    if "OMNIGLOT_ROOT" not in os.environ:
        pytest.skip("OMNIGLOT_ROOT does not name the folder with Omniglot")
    root = Path(os.environ["OMNIGLOT_ROOT"])
    first = load_omniglot(root, tmp_path)
    assert first.images.shape == (1623, 20, 28, 28)
    assert list(first.names) == sorted(set(first.names))
    for part, characters, alphabets in ((BACKGROUND, 964, 30), (EVALUATION, 659, 20)):
        names = [name for name in first.names if name.startswith(f"{part}/")]
        assert len(names) == characters
        assert len({name.split("/")[1] for name in names}) == alphabets
    background = root / f"{BACKGROUND}.zip"
    if background.exists():
        with zipfile.ZipFile(background) as archive:
            entries = sorted(entry for entry in archive.namelist() if entry.startswith(f"{first.names[500]}/"))
            gray = [Image.open(archive.open(entry)).convert("L") for entry in entries if entry.endswith(".png")]
        direct = np.stack([255 - np.array(image.resize((28, 28), Image.Resampling.LANCZOS)) for image in gray])
        assert torch.equal(first.images[500], torch.from_numpy(direct))
    second = load_omniglot(root, tmp_path)
    assert len(decoded) == 32_460
    assert second.names == first.names
    assert torch.equal(second.images, first.images)


@pytest.mark.slow
@pytest.mark.skipif("OMNIGLOT_ROOT" not in os.environ, reason="OMNIGLOT_ROOT does not name the folder of Omniglot")
def test_real_data_module(tmp_path):
    data = OmniglotDataModule(os.environ["OMNIGLOT_ROOT"], cache_dir=str(tmp_path), train_tasks=64)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.shape == (16, 5, 1, 28, 28)
    assert len(data.episodes("train")._sizes) == 4400
    assert len(data.episodes("test")._sizes) == 423
    assert 0.05 < float(batch.support_x.mean()) < 0.15
    drawings = data.episodes("train").dataset.tensors[0]
    assert torch.equal(drawings[1100 * 20], torch.rot90(drawings[0], 1, (1, 2)))
