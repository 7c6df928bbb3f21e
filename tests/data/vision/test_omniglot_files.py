"""Omniglot's drawings: decoding, errors and downloads."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import PngImagePlugin

from lightning_meta.data.vision import omniglot_files
from lightning_meta.data.vision.omniglot_files import load_omniglot
from tests.data.vision.look_alikes import (
    BACKGROUND,
    CACHE,
    COUNTS,
    EVALUATION,
    FIRST,
    NAMES,
    contents,
    drawings,
    expected_images,
    png,
    write_folders,
    write_zips,
    zip_names,
)


class TestDecoding:
    def test_zips_equal_direct_computation(self, root, files):
        loaded = load_omniglot(root)
        assert loaded.names == NAMES
        assert loaded.images.dtype == torch.uint8
        assert torch.equal(loaded.images, expected_images(files))

    def test_folders_equal_zips(self, root, folders):
        from_zips, from_folders = load_omniglot(root), load_omniglot(folders)
        assert from_folders.names == from_zips.names
        assert torch.equal(from_folders.images, from_zips.images)

    def test_one_of_each(self, root, folders, files):
        (root / f"{EVALUATION}.zip").unlink()
        shutil.copytree(folders / EVALUATION, root / EVALUATION)
        assert torch.equal(load_omniglot(root).images, expected_images(files))

    def test_zip_goes_before_folder(self, root, files):
        write_folders(root, drawings(seed=1))
        assert torch.equal(load_omniglot(root).images, expected_images(files))

    def test_ink_is_255_on_paper_0(self, tmp_path, files):
        ink_left = np.full((105, 105), 255, np.uint8)
        ink_left[:, :52] = 0
        files[f"{FIRST}/0001_01.png"] = png(ink_left)
        image = load_omniglot(write_zips(tmp_path / "root", files)).images[NAMES.index(FIRST), 0]
        assert image[:, :10].eq(255).all()  # away from the edge, where resizing rings
        assert image[:, 18:].eq(0).all()

    @pytest.mark.parametrize("write", [write_zips, write_folders])
    def test_ignores_what_is_no_drawing(self, tmp_path, files, write):
        junk = [
            f"__MACOSX/{FIRST}/._0001_01.png",
            f"{FIRST}/._0001_01.png",
            f"{FIRST}/.DS_Store",
            f"{BACKGROUND}/.DS_Store",
            f"{BACKGROUND}/preview.png",
        ]
        root = write(tmp_path / "root", files | dict.fromkeys(junk, b"junk"))
        assert torch.equal(load_omniglot(root).images, expected_images(files))

    def test_zip_entries_reach_no_file(self, tmp_path, files):
        evil = [f"../../{BACKGROUND}.png", f"/{BACKGROUND}.png", f"{BACKGROUND}/../../../evil.png"]
        root = write_zips(tmp_path / "root", files | dict.fromkeys(evil, b"evil"))
        load_omniglot(root)
        assert contents(tmp_path) == ["root", *(f"root/{name}" for name in zip_names(CACHE))]


class TestErrors:
    def test_missing_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"root='.*nowhere' does not exist: .*pass download=True"):
            load_omniglot(tmp_path / "nowhere")

    @pytest.mark.parametrize("download", [False, True])
    def test_root_is_a_file(self, tmp_path, download):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match=r"root='.*file' is a file: name the folder"):
            load_omniglot(tmp_path / "file", download=download)

    def test_neither_zip_nor_folder(self, root):
        (root / f"{EVALUATION}.zip").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"root='.*root' holds neither images_evaluation\.zip nor .*pass download=True"
        ):
            load_omniglot(root)

    def test_folder_lacks_drawings(self, folders):
        (folders / FIRST / "0001_20.png").unlink()
        (folders / FIRST / "0001_19.png").unlink()
        with pytest.raises(
            ValueError,
            match=rf"{BACKGROUND}' has .* for 1 characters, first for {FIRST} \(18 of 20\): unzip .* remove the folder",
        ):
            load_omniglot(folders)

    @pytest.mark.parametrize("emptied", [True, False])
    def test_folder_lacks_a_character(self, folders, emptied):
        shutil.rmtree(folders / FIRST)
        if emptied:
            (folders / FIRST).mkdir()
        with pytest.raises(ValueError, match=r"has 2 characters instead of 3: unzip .* or remove the folder"):
            load_omniglot(folders)

    def test_empty_folder(self, folders):
        shutil.rmtree(folders / EVALUATION)
        (folders / EVALUATION).mkdir()
        with pytest.raises(ValueError, match=rf"{EVALUATION}' has 0 characters instead of 2"):
            load_omniglot(folders)

    def test_zip_lacks_a_character(self, tmp_path, files):
        some = {name: content for name, content in files.items() if not name.startswith(f"{FIRST}/")}
        root = write_zips(tmp_path / "root", some)
        with pytest.raises(
            ValueError, match=r"images_background\.zip' has 2 characters instead of 3: delete the archive"
        ):
            load_omniglot(root)

    def test_zip_has_a_character_too_many(self, tmp_path, files):
        more = {name.replace("Greek/", "More/"): content for name, content in files.items()}
        root = write_zips(tmp_path / "root", files | more)
        with pytest.raises(ValueError, match="has 5 characters instead of 3"):
            load_omniglot(root)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda content: b"<html>not found</html>", id="no zip"),
            pytest.param(lambda content: b"", id="empty"),
            pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
            pytest.param(lambda content: content.replace(b"IDAT", b"IDAX", 1), id="wrong CRC"),
            pytest.param(
                lambda content: content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
                id="encrypted",
            ),
        ],
    )
    def test_corrupt_zip(self, tmp_path, files, damage: Callable[[bytes], bytes]):
        root = write_zips(tmp_path / "root", files, zipfile.ZIP_STORED)
        archive = root / f"{BACKGROUND}.zip"
        broken = damage(archive.read_bytes())
        assert broken != archive.read_bytes()
        archive.write_bytes(broken)
        with pytest.raises(
            ValueError,
            match=r"images_background\.zip' is no intact zip archive .*: delete the archive and download it again",
        ):
            load_omniglot(root)

    @pytest.mark.parametrize("content", [b"", b"no image", drawings()[f"{FIRST}/0001_01.png"][:80]])
    def test_undecodable_png_in_zip(self, tmp_path, files, content):
        files[f"{FIRST}/0001_07.png"] = content
        root = write_zips(tmp_path / "root", files)
        with pytest.raises(
            ValueError,
            match=rf"{FIRST}/0001_07\.png in '.*{BACKGROUND}\.zip' is no readable PNG .*: delete the archive",
        ):
            load_omniglot(root)

    def test_undecodable_png_in_folder(self, folders):
        (folders / FIRST / "0001_07.png").write_bytes(b"no image")
        with pytest.raises(
            ValueError,
            match=rf"{FIRST}/0001_07\.png in '.*{BACKGROUND}' is no readable PNG .*: unzip .* or remove the folder",
        ):
            load_omniglot(folders)

    def test_wrong_size(self, tmp_path, files):
        files[f"{FIRST}/0001_07.png"] = png(np.zeros((28, 105), np.uint8))
        root = write_zips(tmp_path / "root", files)
        with pytest.raises(
            ValueError, match=rf"{FIRST}/0001_07\.png in .* has \(105, 28\) pixels instead of Omniglot's \(105, 105\)"
        ):
            load_omniglot(root)

    @pytest.mark.parametrize("claimed", [None, 300])
    def test_zip_bomb(self, tmp_path, files, claimed):
        """Zeros that compress a thousandfold; the archive may claim that they are few."""
        name = f"{FIRST}/0001_01.png"
        files[name] = files[name] + bytes(20_000_000)
        root = write_zips(tmp_path / "root", files)
        archive = root / f"{BACKGROUND}.zip"
        if claimed is not None:
            entry = archive.read_bytes().replace(
                (len(files[name])).to_bytes(4, "little"), claimed.to_bytes(4, "little")
            )
            archive.write_bytes(entry)
        assert archive.stat().st_size < 200_000
        message = rf"{name} in .* has more than 65536 bytes" if claimed is None else "no intact zip archive"
        tracemalloc.start()
        with pytest.raises(ValueError, match=rf"{message}.*: delete the archive and download it again"):
            load_omniglot(root)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000

    def test_image_bomb(self, tmp_path, files, monkeypatch):
        files[f"{FIRST}/0001_07.png"] = png(np.zeros((6000, 6000), np.uint8))
        root = write_zips(tmp_path / "root", files)
        load = PngImagePlugin.PngImageFile.load

        def load_small(image):
            assert image.size == (105, 105)
            return load(image)

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load_small)
        with pytest.raises(ValueError, match=r"has \(6000, 6000\) pixels instead of Omniglot's \(105, 105\)"):
            load_omniglot(root)

    def test_large_file_in_folder(self, folders):
        with (folders / FIRST / "0001_07.png").open("r+b") as file:
            file.truncate(10**12)  # no more than its name on the disk
        with pytest.raises(ValueError, match=rf"{FIRST}/0001_07\.png in .* has more than 65536 bytes"):
            load_omniglot(folders)

    @pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files")
    @pytest.mark.parametrize("what", ["pipe", "dangling", "folder", "loop", "device"])
    def test_what_is_no_file_in_folder(self, folders, what):
        path = folders / FIRST / "0001_07.png"
        path.unlink()
        make = {
            "pipe": lambda: os.mkfifo(path),
            "dangling": lambda: path.symlink_to("nowhere.png"),
            "folder": path.mkdir,
            "loop": lambda: path.symlink_to(path),
            "device": lambda: path.symlink_to("/dev/zero"),
        }
        make[what]()
        with pytest.raises(
            ValueError,
            match=rf"{FIRST}/0001_07\.png in '.*{BACKGROUND}' cannot be read .*: unzip .* or remove the folder",
        ):
            load_omniglot(folders)

    def test_link_to_a_drawing_is_one(self, folders, files):
        path = folders / FIRST / "0001_07.png"
        path.rename(folders / "elsewhere.png")
        path.symlink_to(folders / "elsewhere.png")
        assert torch.equal(load_omniglot(folders).images, expected_images(files))


class TestDownload:
    @pytest.fixture
    def published(self, tmp_path, files, monkeypatch) -> Path:
        folder = write_zips(tmp_path / "published", files)
        archives = {}
        for part in COUNTS:
            archive = folder / f"{part}.zip"
            archives[part] = (archive.as_uri(), hashlib.md5(archive.read_bytes()).hexdigest())
        monkeypatch.setattr(omniglot_files, "_ARCHIVES", archives)
        return folder

    def test_fetches_what_is_missing(self, published, tmp_path, files):
        root = tmp_path / "a" / "new"
        assert torch.equal(load_omniglot(root, download=True).images, expected_images(files))
        assert contents(root) == zip_names(CACHE)
        for part in COUNTS:
            assert (root / f"{part}.zip").read_bytes() == (published / f"{part}.zip").read_bytes()

    def test_fetches_one_part(self, published, root, files):
        (root / f"{EVALUATION}.zip").unlink()
        (published / f"{BACKGROUND}.zip").unlink()
        assert torch.equal(load_omniglot(root, download=True).images, expected_images(files))

    def test_leaves_what_is_there(self, published, tmp_path):
        changed = drawings(seed=1)
        root = write_zips(tmp_path / "mirror", changed)
        assert torch.equal(load_omniglot(root, download=True).images, expected_images(changed))

    def test_leaves_folders(self, published, folders, files):
        assert torch.equal(load_omniglot(folders, download=True).images, expected_images(files))
        assert not (folders / f"{BACKGROUND}.zip").exists()

    def test_wrong_md5(self, published, tmp_path):
        archive = published / f"{BACKGROUND}.zip"
        archive.write_bytes(archive.read_bytes()[:-1])
        root = tmp_path / "new"
        with pytest.raises(
            ValueError, match=r"images_background\.zip has the MD5 \w{32} instead of \w{32} and was not kept"
        ):
            load_omniglot(root, download=True)
        assert contents(root) == []

    def test_unreachable(self, published, tmp_path):
        (published / f"{EVALUATION}.zip").unlink()
        root = tmp_path / "new"
        with pytest.raises(
            OSError, match=r"images_evaluation\.zip could not be downloaded to root='.*new' .*: try again, or put"
        ):
            load_omniglot(root, download=True)
        assert contents(root) == [f"{BACKGROUND}.zip"]

    def test_nothing_is_fetched_unasked(self, published, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="pass download=True"):
            load_omniglot(tmp_path / "empty")
        assert contents(tmp_path / "empty") == []

    def test_published_archives(self):
        base = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
        assert omniglot_files._ARCHIVES[BACKGROUND] == (
            f"{base}/images_background.zip",
            "68d2efa1b9178cc56df9314c21c6e718",
        )
        assert omniglot_files._ARCHIVES[EVALUATION] == (
            f"{base}/images_evaluation.zip",
            "6b91aef0f799c5bb55b94e3f2daec811",
        )
