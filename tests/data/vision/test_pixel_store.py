"""The file of decoded pictures: what makes it anew, broken files and interrupted writes."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from lightning_meta.data.vision import atomic_files, pixel_store
from tests.data.vision.pictures import files, module, picture, write


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "root", files())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "new" / "cache"


@pytest.fixture
def decoded(monkeypatch):
    names = []
    decode = pixel_store.pixels_of

    def counting(image, shown, *args):
        names.append(shown)
        return decode(image, shown, *args)

    monkeypatch.setattr(pixel_store, "pixels_of", counting)
    return names


def tasks(root, cache=None, **options):
    episodes = module(root, cache_dir=cache, **options).episodes("train")
    return episodes.make(np.arange(5)).query_x


def test_the_second_run_decodes_nothing_and_equals_memory(root, cache, decoded):
    data = module(root, cache_dir=cache)
    data.prepare_data()
    assert len(decoded) == 28
    first = data.episodes("train")
    second = tasks(root, str(cache))
    assert len(decoded) == 28
    assert isinstance(first.dataset.pixels, np.memmap)
    assert torch.equal(first.make(np.arange(5)).query_x, second)
    assert torch.equal(tasks(root), second)
    assert sorted("_".join(path.name.split("_")[:2]) for path in cache.iterdir()) == [
        "root_test",
        "root_train",
        "root_val",
    ]


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_workers_get_the_name_of_the_file(root, cache, augment):
    episodes = module(root, cache_dir=cache, augment=augment).episodes("train")
    (path,) = cache.glob("root_train_*")
    pickled = pickle.dumps(episodes)
    assert str(path).encode() in pickled
    pixels = path.read_bytes()[-200:]
    assert pixels not in pickled
    again = pickle.loads(pickled)
    examples = again.dataset if augment == "none" else again.dataset.examples
    assert isinstance(examples.pixels, np.memmap)
    assert torch.equal(again[3].query_x, episodes[3].query_x)
    in_memory = pickle.loads(pickle.dumps(module(root, augment=augment).episodes("train")))
    assert torch.equal(in_memory[3].query_x, episodes[3].query_x)


def test_a_changed_picture_makes_a_new_file(root, cache):
    before = tasks(root, cache)
    path = root / "train/train_0/0.png"
    path.write_bytes(picture(99, (10, 12)))
    os.utime(path, ns=(0, 1))
    assert not torch.equal(tasks(root, cache), before)
    assert torch.equal(tasks(root, cache), tasks(root))


def test_settings_names_and_pictures_make_new_files(root, cache, decoded):
    tasks(root, cache)
    for change in ({"image_size": 9}, {"channels": "grayscale"}):
        before = len(decoded)
        assert torch.equal(tasks(root, cache, **change), tasks(root, **change))
        assert len(decoded) == before + 56
    (root / "train/train_0/0.png").rename(root / "train/train_0/z.png")
    assert torch.equal(tasks(root, cache), tasks(root))
    write(root, {"train/train_0/more.png": picture(77)})
    assert torch.equal(tasks(root, cache), tasks(root))


class Evil:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:50],
        lambda content: content[:-1],
        lambda content: b"x" + content[1:],
        lambda content: content.replace(b"|u1", b"|b1"),
        lambda content: content.replace(b"(12,", b"(11,"),
        lambda content: pickle.dumps(Evil()),
    ],
)
def test_a_broken_file_is_made_again(root, cache, damage):
    expected = tasks(root, cache)
    (path,) = cache.glob("root_train_*")
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert torch.equal(tasks(root, cache), expected)
    assert path.read_bytes() == good


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(root, cache, monkeypatch, fault):
    def interrupted(*_):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, "replace", interrupted)
        with pytest.raises(fault):
            tasks(root, cache)
    assert list(cache.iterdir()) == []
    assert torch.equal(tasks(root, cache), tasks(root))


def test_leftovers_of_a_killed_process_go(root, cache):
    tasks(root, cache)
    (path,) = cache.glob("root_train_*")
    path.unlink()
    leftover = cache / f".{path.name}.{'0' * 32}"
    leftover.write_bytes(b"part")
    tasks(root, cache)
    assert not leftover.exists()


def test_a_folder_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cache_dir='.*file/cache'.*could not be written.*cache_dir=None"):
        tasks(root, tmp_path / "file" / "cache")
