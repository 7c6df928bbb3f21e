"""Published data sets, in small files of their publishers' layouts."""

from __future__ import annotations

import io
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_meta import (
    CIFARFSDataModule,
    FC100DataModule,
    ImageFolderDataModule,
    MiniImagenetDataModule,
    TieredImagenetDataModule,
)
from lightning_meta.data.vision import file_tree
from lightning_meta.data.vision.archive_tree import open_tree
from tests.data.vision.pictures import SMALL, files, module, picture, write

MODULES = [CIFARFSDataModule, FC100DataModule, MiniImagenetDataModule, TieredImagenetDataModule]
COUNTS = {"train": 3, "val": 2, "test": 2}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for cls in MODULES:
        monkeypatch.setattr(cls, "class_counts", COUNTS)


@pytest.fixture
def made():
    return files()


@pytest.fixture
def expected(tmp_path, made):
    """The tasks that the same pictures give in folders."""
    return tasks(module(write(tmp_path / "expected", made)))


def tasks(data):
    return {split: data.episodes(split).make(np.arange(5)) for split in ("train", "val", "test")}


def check_same(data, expected):
    for split, batch in tasks(data).items():
        assert torch.equal(batch.support_x, expected[split].support_x)
        assert torch.equal(batch.query_x, expected[split].query_x)


def write_zip(path: Path, made: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in reversed(made.items()):  # archives need not be sorted
            archive.writestr(name, content)
    return path


def write_tar(path: Path, made: dict[str, bytes], prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in reversed(made.items()):
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def bertinetto(made: dict[str, bytes]) -> dict[str, bytes]:
    """Pictures as in cifar100.zip: all classes in one folder, and a list of classes for each split."""
    found = {f"cifar100/data/{name.split('/', 1)[1]}": content for name, content in made.items()}
    for split in COUNTS:
        classes = sorted({name.split("/")[1] for name in made if name.startswith(f"{split}/")}, reverse=True)
        found[f"cifar100/splits/bertinetto/{split}.txt"] = "\n".join([*classes, ""]).encode()
    return found


def tables(made: dict[str, bytes]) -> dict[str, bytes]:
    """The tables of miniImageNet, in which the pictures of all splits are in one folder."""
    found = {}
    for split in COUNTS:
        rows = [f"{name.replace('/', '_')},{name.split('/')[1]}" for name in made if name.startswith(f"{split}/")]
        found[f"{split}.csv"] = "\n".join(["filename,label", *rows]).encode()
    return found


def flat(made: dict[str, bytes]) -> dict[str, bytes]:
    return {f"images/{name.replace('/', '_')}": content for name, content in made.items()}


class TestLayouts:
    def test_cifar_fs_zip(self, tmp_path, made, expected):
        root = tmp_path / "cifar_fs"
        archive = write_zip(root / "cifar100.zip", bertinetto(made))
        check_same(CIFARFSDataModule(root, **SMALL), expected)
        check_same(CIFARFSDataModule(archive, **SMALL), expected)
        assert [path.name for path in root.iterdir()] == ["cifar100.zip"]

    def test_cifar_fs_extracted(self, tmp_path, made, expected):
        write(tmp_path / "cifar_fs", bertinetto(made))
        check_same(CIFARFSDataModule(tmp_path / "cifar_fs", **SMALL), expected)
        check_same(CIFARFSDataModule(tmp_path / "cifar_fs" / "cifar100", **SMALL), expected)

    def test_mini_imagenet_tables(self, tmp_path, made, expected):
        root = write(tmp_path / "mini", tables(made))
        write_zip(root / "images.zip", flat(made))
        check_same(MiniImagenetDataModule(root, **SMALL), expected)
        write(tmp_path / "extracted", {**tables(made), **flat(made)})
        check_same(MiniImagenetDataModule(tmp_path / "extracted", **SMALL), expected)
        archive = write_tar(tmp_path / "mini.tar.gz", {**tables(made), **flat(made)}, "miniImageNet--ravi/")
        check_same(MiniImagenetDataModule(archive, **SMALL), expected)

    @pytest.mark.parametrize("cls", MODULES)
    def test_folders_of_splits(self, tmp_path, made, expected, cls):
        write(tmp_path / "plain", made)
        check_same(cls(tmp_path / "plain", **SMALL), expected)
        check_same(cls(write_zip(tmp_path / "a.zip", made), **SMALL), expected)
        for ending in (".tar", ".tar.gz", ".tgz", ".tar.bz2"):
            check_same(cls(write_tar(tmp_path / f"a{ending}", made, "./tiered_imagenet/"), **SMALL), expected)

    def test_an_archive_for_each_split(self, tmp_path, made, expected):
        for split in COUNTS:
            part = {name: content for name, content in made.items() if name.startswith(f"{split}/")}
            write_tar(tmp_path / "split" / f"{split}.tar", part)
        check_same(MiniImagenetDataModule(tmp_path / "split", **SMALL), expected)

    def test_the_cache_of_an_archive(self, tmp_path, made, expected):
        archive = write_tar(tmp_path / "a.tar.gz", made)
        options = {**SMALL, "cache_dir": tmp_path / "cache"}
        check_same(FC100DataModule(archive, **options), expected)
        written = sorted((tmp_path / "cache").iterdir())
        check_same(FC100DataModule(archive, **options), expected)
        assert sorted((tmp_path / "cache").iterdir()) == written
        made["train/train_0/0.png"] = picture(99)
        write_tar(archive, made)
        changed = module(write(tmp_path / "expected", made))
        check_same(FC100DataModule(archive, **options), tasks(changed))

    def test_what_systems_add_is_ignored(self, tmp_path, made, expected):
        junk = ["__MACOSX/train/train_0/._0.png", "train/.DS_Store", "train/train_0/._1.JPG", "train/train_0/Thumbs.db"]
        archive = write_zip(tmp_path / "a.zip", {**made, **dict.fromkeys(junk, b"junk")})
        check_same(FC100DataModule(archive, **SMALL), expected)

    @pytest.mark.parametrize(("cls", "size"), list(zip(MODULES, (32, 32, 84, 84), strict=True)))
    def test_sizes(self, cls, size):
        assert cls("anywhere").picture_format.image_size == size


@pytest.mark.parametrize(
    ("cls", "counts"), list(zip(MODULES, [(64, 16, 20), (60, 20, 20), (64, 16, 20), (351, 97, 160)], strict=True))
)
def test_published_numbers_of_classes(cls, counts, monkeypatch):
    monkeypatch.undo()
    assert tuple(cls.class_counts[split] for split in ("train", "val", "test")) == counts


class TestErrors:
    @pytest.mark.parametrize(
        "pickled", ["CIFAR_FS_train.pickle", "mini-imagenet-cache-train.pkl", "x/train_images.npz"]
    )
    @pytest.mark.parametrize("cls", MODULES)
    def test_pickles_are_not_read(self, tmp_path, cls, pickled):
        write(tmp_path, {pickled: b"cos\nabort\n(tR."})
        with pytest.raises(FileNotFoundError, match=r"; \S+ is pickled, and not read, as .* any code: give it .*train"):
            cls(tmp_path, **SMALL).setup("fit")

    @pytest.mark.parametrize("cls", MODULES)
    def test_nothing_known(self, tmp_path, cls):
        with pytest.raises(FileNotFoundError, match=f"root='.*' has no files of {cls.title} that are known: give it"):
            cls(tmp_path, **SMALL).setup("fit")

    def test_incomplete(self, tmp_path):
        write(tmp_path, files({"train": 3, "val": 1}))
        with pytest.raises(ValueError, match="has 1 classes in the val split, but FC100 has 2: extract or download"):
            FC100DataModule(tmp_path, **SMALL).setup("fit")

    def test_a_listed_class_is_missing(self, tmp_path, made):
        some = {name: content for name, content in bertinetto(made).items() if "data/val_1/" not in name}
        with pytest.raises(ValueError, match="class 'val_1' has no pictures: there are none in .*cifar100/data/val_1"):
            CIFARFSDataModule(write_zip(tmp_path / "cifar100.zip", some), **SMALL).setup("fit")

    def test_a_broken_picture_is_named(self, tmp_path, made):
        made["val/val_0/1.JPG"] = b"no picture"
        with pytest.raises(ValueError, match="val/val_0/1.JPG in '.*a.zip' is no readable picture"):
            FC100DataModule(write_zip(tmp_path / "a.zip", made), **SMALL).setup("fit")

    @pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
    @pytest.mark.parametrize("kept", [0.0, 0.5, None])
    def test_damaged_archives(self, tmp_path, made, name, kept):
        path = (write_zip if name == "a.zip" else write_tar)(tmp_path / name, made)
        content = path.read_bytes()
        path.write_bytes(b"<html>not found</html>" * 100 if kept is None else content[: int(kept * len(content))])
        with pytest.raises(ValueError, match=f"{name}' is no intact archive .*: download it again"):
            FC100DataModule(path, **SMALL).setup("fit")

    def test_encrypted(self, tmp_path, made):
        path = write_zip(tmp_path / "a.zip", made)
        flagged = path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
        assert flagged != path.read_bytes()
        path.write_bytes(flagged)
        with pytest.raises(ValueError, match="a.zip' is no intact archive"):
            FC100DataModule(path, **SMALL).setup("fit")


class TestHostileArchives:
    @pytest.mark.parametrize("name", ["../evil.png", "train/../../evil.png", "/evil.png", "C:/evil.png"])
    @pytest.mark.parametrize("write_archive", [write_zip, write_tar])
    def test_names_that_leave_the_folder(self, tmp_path, made, name, write_archive):
        path = write_archive(
            tmp_path / ("a.zip" if write_archive is write_zip else "a.tar"), {**made, name: picture(0)}
        )
        with pytest.raises(ValueError, match="is refused: its member .*evil.png' lies outside: extract"):
            ImageFolderDataModule(path, **SMALL).setup("fit")
        assert [each.name for each in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_links_and_devices_in_tar(self, tmp_path, kind):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            member = tarfile.TarInfo("train/a/0.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(ValueError, match="member 'train/a/0.png' is a link or device"):
            open_tree(tmp_path / "a.tar", with_archives=False)

    def test_links_in_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            member = zipfile.ZipInfo("train/a/0.png")
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
        with pytest.raises(ValueError, match="member 'train/a/0.png' is a link or device"):
            open_tree(tmp_path / "a.zip", with_archives=False)

    @pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
    def test_bombs(self, tmp_path, made, name, monkeypatch):
        """Zeros that compress a thousandfold."""
        monkeypatch.setattr(file_tree, "LARGEST_FILE", 100_000)
        made["train/train_1/2.png"] += bytes(20_000_000)
        path = (write_zip if name == "a.zip" else write_tar)(tmp_path / name, made)
        tracemalloc.start()
        with pytest.raises(ValueError, match="train_1/2.png in '.*' has more than 100000 bytes"):
            FC100DataModule(path, **SMALL).setup("fit")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000
