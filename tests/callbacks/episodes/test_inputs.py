"""Examples as pictures, texts and numbers."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from lightning_meta import TextDataModule
from lightning_meta.callbacks.episodes.inputs import cells, pictures_of, shown_inputs, shown_sets
from lightning_meta.data.vision.image_preparation import ImagePreparation
from tests.data.text.look_alikes import OPTIONS, write_requests


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_become_colors(channels):
    pixels = torch.rand(2, channels, 8, 9)
    pictures = pictures_of(pixels)
    assert pictures.shape == (2, 8, 9, 3)
    assert pictures.dtype == np.uint8
    color = 0 if channels == 1 else 2
    assert np.abs(pictures[1, :, :, 2] - 255 * pixels[1, color].numpy()).max() <= 0.5


def test_pictures_outside_of_the_unit_interval_are_scaled():
    standardized = pictures_of(torch.linspace(-2, 3, 64).reshape(1, 1, 8, 8))
    assert (standardized.min(), standardized.max()) == (0, 255)
    assert pictures_of(torch.full((1, 1, 8, 8), 300.0)).max() == 255
    assert pictures_of(torch.full((1, 1, 8, 8), -1.0)).max() == 0


@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (3, 2, 8, 8), (3, 1, 4, 4), (3, 5, 1), (3, 48, 37)])
def test_other_tensors_are_numbers(shape):
    assert pictures_of(torch.rand(shape)) is None
    kind, shown = shown_inputs(torch.rand(shape))
    assert kind == "input"
    assert len(shown) == 3


@pytest.mark.parametrize(("channels", "invert"), [("rgb", False), ("rgb", True), ("grayscale", True)])
def test_a_preparation_is_undone_exactly(channels, invert):
    count = 3 if channels == "rgb" else 1
    pixels = np.random.default_rng(0).integers(60, 200, (5, count, 9, 9), dtype=np.uint8)
    preparation = ImagePreparation(9, channels, [0.5, 0.3, 0.4][:count], [0.2, 0.1, 0.3][:count], invert)
    kind, shown = shown_inputs(preparation.normalize(pixels), preparation)
    assert kind == "picture"
    assert np.array_equal(np.stack(shown), np.broadcast_to(pixels, (5, 3, 9, 9)).transpose(0, 2, 3, 1))


def test_a_task_of_two_sets_is_scaled_alike():
    support, query = torch.full((2, 1, 8, 8), -1.0), torch.linspace(-1, 3, 64).reshape(1, 1, 8, 8)
    kind, (first, second) = shown_sets(support, query)
    assert kind == "picture"
    assert (len(first), len(second)) == (2, 1)
    assert first[0].max() == 0
    whole = pictures_of(torch.cat([support, query]))
    assert np.array_equal(np.stack([*first, *second]), whole)
    brighter = shown_sets(support + 1.5, query)[1][0]
    assert np.unique(brighter[0]).tolist() == [round(1.5 / 4 * 255)]


def test_sets_of_other_shapes_are_shown_each():
    assert shown_sets(torch.rand(2, 3, 1), torch.rand(1, 4, 1))[0] == "input"
    ids = {"a": torch.tensor([[1], [2]])}, {"a": torch.tensor([[3, 4]])}
    assert shown_sets(*ids) == ("input", ([1, 2], ["3, 4"]))


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
