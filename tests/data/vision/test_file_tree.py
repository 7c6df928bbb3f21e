"""Files of folders and archives under one tree of names."""

from __future__ import annotations

import os
import sys
import zipfile

import pytest

from lightning_meta.data.vision import file_tree
from lightning_meta.data.vision.archive_tree import open_tree
from tests.data.vision.pictures import files, module, write


@pytest.fixture
def root(tmp_path):
    write(tmp_path, {"a/x.png": b"folder x", "a/y.png": b"folder y", "a/.hidden": b"", "b/c/z.txt": b"z", "top": b"t"})
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for name in ("a/y.png", "a/w.png", "d/e/v.png", "__MACOSX/a/y.png"):
            archive.writestr(name, f"archive {name[-5]}")
    return tmp_path


def test_a_folder(root):
    with open_tree(root, with_archives=False) as tree:
        assert tree.folders("") == ["a", "b"]
        assert tree.files("") == ["more.zip", "top"]
        assert tree.files("a") == ["x.png", "y.png"]
        assert tree.folders("b") == ["c"]
        assert tree.files("nowhere") == tree.folders("nowhere") == []
        assert tree.read("a/y.png") == b"folder y"
        assert tree.has_file("b/c/z.txt")
        assert not tree.has_file("b/c")


def test_archives_count_as_extracted(root):
    with open_tree(root, with_archives=True) as tree:
        assert tree.folders("") == ["a", "b", "d"]
        assert tree.files("a") == ["w.png", "x.png", "y.png"]
        assert tree.files("d/e") == ["v.png"]
        assert [tree.read(f"a/{name}.png") for name in "wxy"] == [b"archive w", b"folder x", b"archive y"]
        assert tree.read("d/e/v.png") == b"archive v"
        assert sorted(tree.files("a"), key=lambda name: tree.position(f"a/{name}")) == ["x.png", "y.png", "w.png"]
        assert tree.shown("a/y.png") == f"a/y.png in '{root / 'more.zip'}'"
        assert tree.shown("a/x.png") == f"'{root / 'a/x.png'}'"
        before = tree.stamp("a/y.png"), tree.stamp("a/x.png")
    os.utime(root / "more.zip", ns=(0, 1))
    with open_tree(root, with_archives=True) as tree:
        assert tree.stamp("a/y.png") != before[0]
        assert tree.stamp("a/x.png") == before[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files")
@pytest.mark.parametrize("what", ["pipe", "dangling", "loop", "device"])
def test_what_is_no_file_is_named(tmp_path, what):
    path = write(tmp_path, files()) / "train/train_0/0.png"
    path.unlink()
    make = {
        "pipe": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to("nowhere.png"),
        "loop": lambda: path.symlink_to(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make[what]()
    for cache_dir in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match="train_0/0.png' cannot be read .*: replace it, or leave it out"):
            module(tmp_path, cache_dir=cache_dir).setup("fit")


def test_a_large_file_is_named(tmp_path, monkeypatch):
    write(tmp_path, files())
    monkeypatch.setattr(file_tree, "LARGEST_FILE", 10_000)
    with (tmp_path / "train/train_0/0.png").open("r+b") as file:
        file.truncate(10**12)  # no more than its name on the disk
    with pytest.raises(ValueError, match="train_0/0.png' has more than 10000 bytes, too many for a picture"):
        module(tmp_path).setup("fit")
