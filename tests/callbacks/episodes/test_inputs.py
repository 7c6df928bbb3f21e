"""Examples as pictures, texts and numbers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from lightning_meta import TextDataModule
from lightning_meta.callbacks.episodes.inputs import cells, pictures_of, shown_inputs
from tests.data.text.look_alikes import OPTIONS, write_requests


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_become_colors(channels):
    pixels = torch.rand(2, channels, 8, 9)
    pictures = pictures_of(pixels)
    assert pictures.shape == (2, 8, 9, 3)
    assert pictures.dtype == np.uint8
    color = 0 if channels == 1 else 2
    assert np.abs(pictures[1, :, :, 2] - 255 * pixels[1, color].numpy()).max() <= 0.5


def test_pictures_without_channels_and_standardized_ones_are_shown():
    assert pictures_of(torch.rand(5, 12, 12)).shape == (5, 12, 12, 3)
    standardized = pictures_of(torch.linspace(-2, 3, 64).reshape(1, 1, 8, 8))
    assert (standardized.min(), standardized.max()) == (0, 255)
    assert pictures_of(torch.full((1, 8, 8), 300.0)).max() == 255
    assert pictures_of(torch.full((1, 8, 8), -1.0)).max() == 0


@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (3, 2, 8, 8), (3, 1, 4, 4), (3, 5, 1)])
def test_other_tensors_are_numbers(shape):
    assert pictures_of(torch.rand(shape)) is None
    kind, shown = shown_inputs(torch.rand(shape))
    assert kind == "input"
    assert len(shown) == 3


def test_numbers():
    assert cells(torch.tensor([[0.5], [2.0]])) == [0.5, 2.0]
    assert cells(torch.tensor([3, 1])) == [3, 1]
    assert cells(torch.tensor([[0.5, 1.0]])) == ["0.5, 1"]
    assert cells(torch.arange(20.0)[None]) == ["0, 1, 2, 3, 4, 5, 6, 7, ..."]
    assert cells({"a": torch.tensor([[1.0]]), "b": torch.tensor([[2, 3]])}) == ["1, 2, 3"]


def test_ids_become_words_again(tmp_path):
    data = TextDataModule(
        write_requests(tmp_path / "r.csv"), **OPTIONS, min_count=2, hash_buckets=0, vocabulary_size=100
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    kind, shown = shown_inputs({name: leaf[0] for name, leaf in batch.query_x.items()}, data.preparation)
    assert kind == "text"
    assert len(shown) == 4
    assert all(text.startswith("please do intent") and "word now" in text for text in shown)
    unknown = data.preparation.inputs(pl.DataFrame({"text": ["do that"]}))
    assert data.preparation.texts_of(unknown) == ["do [unknown]"]
    kind, shown = shown_inputs({name: leaf[0] for name, leaf in batch.query_x.items()})
    assert kind == "input"
    assert len(shown) == 4
