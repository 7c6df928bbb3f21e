"""Pictures in folders and tables, as N-way tasks."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_meta import ImageFolderDataModule
from tests.data.vision.pictures import expected, files, module, picture, write


@pytest.fixture
def made():
    return files()


@pytest.fixture
def root(tmp_path, made):
    return write(tmp_path / "root", made)


def test_pictures_labels_and_names_are_those_of_the_folders(root, made):
    data = module(root, mean=[0.0] * 3, std=[1.0] * 3)
    for split in ("train", "val", "test"):
        examples = data.episodes(split).dataset
        names = sorted(name for name in made if name.startswith(split))
        pixels = np.stack([expected(made[name]) for name in names])
        torch.testing.assert_close(examples.inputs(np.arange(len(names))), torch.from_numpy(pixels).float() / 255)
        assert [examples.class_names[label] for label in examples.labels] == [name.split("/")[1] for name in names]


def test_tasks_are_well_formed(root):
    batch = next(iter(module(root).train_dataloader()))
    assert batch.support_x.shape == (2, 2, 3, 8, 8)
    assert batch.query_x.shape == (2, 4, 3, 8, 8)
    assert batch.support_x.dtype == torch.float32
    assert batch.query_y.tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize(("channels", "mode"), [("rgb", "RGB"), ("grayscale", "L")])
def test_default_statistics_are_those_of_the_training_pictures(root, made, channels, mode):
    data = module(root, channels=channels)
    train = np.stack([expected(made[name], mode=mode) for name in sorted(made) if name.startswith("train")])
    data.setup("fit")
    np.testing.assert_allclose(data.preparation.mean, (train / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.preparation.std, (train / 255).std((0, 2, 3)), rtol=1e-12)
    inputs = data.episodes("train").dataset.inputs(np.arange(len(train)))
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(len(train[0])), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(len(train[0])))


def test_pictures_of_one_color_need_statistics(tmp_path):
    black = io.BytesIO()
    Image.new("RGB", (8, 8)).save(black, "PNG")
    root = write(tmp_path, {name: black.getvalue() for name in files({"train": 2})})
    with pytest.raises(ValueError, match="one and the same color: pass mean and std"):
        module(root).setup("fit")
    module(root, mean=[0.0] * 3, std=[1.0] * 3).setup("fit")


def test_what_is_no_picture_is_ignored(root, made):
    junk = ["train/.DS_Store", "train/train_0/.DS_Store", "train/train_0/Thumbs.db", "train/notes.txt"]
    junk += ["train/.cache/x.png", "train/__MACOSX/x.png", "train/train_0/._0.png", "train/train_0/read.txt"]
    write(root, dict.fromkeys(junk, b"junk"))
    train = module(root).episodes("train").dataset
    assert train.class_names == ("train_0", "train_1", "train_2")
    assert len(train) == 12


def test_links_that_lead_outside_are_followed(root, tmp_path, made):
    os.rename(root / "train" / "train_0", tmp_path / "elsewhere")
    (root / "train" / "train_0").symlink_to(tmp_path / "elsewhere")
    train = module(root, mean=[0.0] * 3, std=[1.0] * 3).episodes("train").dataset
    first = torch.from_numpy(expected(made["train/train_0/0.png"])).float() / 255
    torch.testing.assert_close(train[0][0], first)


def test_an_archive_is_read_without_extraction(root, tmp_path, made):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name, content in reversed(made.items()):
            archive.writestr(name, content)
    from_archive, from_folder = module(tmp_path / "pictures.zip"), module(root)
    assert torch.equal(from_archive.episodes("test")[3].query_x, from_folder.episodes("test")[3].query_x)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures.zip", "root"]


def test_splits_may_be_absent(tmp_path):
    data = module(write(tmp_path, files({"train": 2})))
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="test=None"):
        data.test_dataloader()


class TestTables:
    @pytest.fixture
    def tables(self, tmp_path, made):
        images = {f"images/{name.replace('/', '_')}": content for name, content in made.items()}
        write(tmp_path, images)
        for split in ("train", "val", "test"):
            rows = [
                f"{name.replace('/', '_')},{name.split('/')[1]}" for name in reversed(made) if name.startswith(split)
            ]
            (tmp_path / f"{split}.csv").write_text("\n".join(["filename,label", *rows]))
        return tmp_path

    def test_tables_equal_folders(self, tables, root):
        from_tables, from_folders = module(tables, splits_dir="."), module(root)
        for split in ("train", "val", "test"):
            found, known = from_tables.episodes(split)[7], from_folders.episodes(split)[7]
            assert torch.equal(found.support_x, known.support_x)
            assert torch.equal(found.query_x, known.query_x)

    def test_folders_can_be_named_and_labels_are_texts(self, tables):
        (tables / "splits").mkdir()
        (tables / "images").rename(tables / "data")
        rows = [f"train_train_{number}_{i}.{'JPG' if i % 2 else 'png'}" for number in range(3) for i in range(4)]
        lines = [f"{row},{['1', '01', '001'][int(row[12])]}" for row in rows]
        (tables / "splits" / "train.csv").write_text("\n".join(["filename,label", *lines]))
        data = module(tables, splits_dir="splits", images_dir="data")
        assert data.episodes("train").dataset.class_names == ("001", "01", "1")
        assert data.num_tasks["val"] == 0

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            ("filename,class\na.png,x", ValueError, "label.*no such column"),
            ("filename,label\n../elsewhere/0.png,x", ValueError, "leads out of the folder"),
            ("filename,label\n/etc/a.png,x", ValueError, "leads out of the folder"),
            ("filename,label\nC:\\a.png,x", ValueError, "leads out of the folder"),
            (
                "filename,label\nnowhere.png,x",
                FileNotFoundError,
                "train.csv' names 'nowhere.png', but there is no file",
            ),
            ("filename,label\na.png,\n", ValueError, "rows without a filename or label"),
            ("filename,label\na.png,x\na.png,y", ValueError, "names 'a.png' twice"),
            ("filename,label", ValueError, "has no rows"),
            ("", ValueError, "cannot be read as a table"),
        ],
    )
    def test_broken_tables(self, tables, root, content, error, message):
        (tables / "train.csv").write_text(content)
        with pytest.raises(error, match=message):
            module(tables, splits_dir=".").setup("fit")

    def test_missing_table(self, tables):
        with pytest.raises(FileNotFoundError, match="splits_dir: there is no file '.*other/train.csv'"):
            module(tables, splits_dir="other").setup("fit")


class TestErrors:
    @pytest.mark.parametrize("content", [b"", b"no picture", picture(0)[:60], picture(0, file_format="JPEG")[:300]])
    def test_a_broken_picture_is_named_and_nothing_is_kept(self, root, tmp_path, content):
        (root / "val/val_1/2.png").write_bytes(content)
        for cache_dir in (None, tmp_path / "cache"):
            with pytest.raises(ValueError, match="root/val/val_1/2.png' is no .* picture.*replace it, or leave it out"):
                module(root, cache_dir=cache_dir).setup("fit")
        assert [path.name.split("_")[1] for path in (tmp_path / "cache").iterdir()] == ["train"]

    def test_a_bomb_is_an_error(self, root, monkeypatch):
        (root / "train/train_1/2.png").write_bytes(picture(0, (40, 40)))
        for limit in (1000, 500):  # Pillow warns up to twice the limit
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(ValueError, match=f"train_1/2.png' has more than {limit} pixels.*shrink it"):
                module(root).setup("fit")

    def test_a_class_without_pictures_is_named(self, root):
        (root / "train/empty").mkdir()
        with pytest.raises(ValueError, match="class 'empty' has no pictures: there are none in '.*train/empty'"):
            module(root).setup("fit")

    def test_a_class_with_too_few_is_named(self, root):
        (root / "val/val_1/0.png").unlink()
        (root / "val/val_1/1.JPG").unlink()
        with pytest.raises(ValueError, match=r"val split 1 classes have fewer \(class 'val_1' has 2\)"):
            module(root).setup("fit")

    @pytest.mark.parametrize(
        ("made", "error", "message"),
        [
            ({"class/0.png": picture(0)}, FileNotFoundError, "has no folder 'train'.*splits_dir"),
            ({"train/0.png": picture(0)}, ValueError, "train' has no folders of classes"),
        ],
    )
    def test_other_layouts(self, tmp_path, made, error, message):
        with pytest.raises(error, match=message):
            module(write(tmp_path, made)).setup("fit")

    def test_missing_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="root='.*nowhere' does not exist"):
            module(tmp_path / "nowhere").setup("fit")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="root='.*file' is a file"):
            module(tmp_path / "file").setup("fit")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": 0}, "image_size=0 must be an integer"),
            ({"channels": "cmyk"}, "channels='cmyk' is not one of"),
            ({"mean": [0.5] * 3}, "std=None: give both, or neither"),
            ({"mean": [0.5], "std": [0.5]}, r"mean=\[0.5\] must be 3 numbers, one for each channel"),
            ({"mean": [0.5] * 3, "std": [0.0] * 3}, "std=0.0 must be a positive number"),
            ({"augment": "flip"}, "augment='flip' is not one of"),
        ],
    )
    def test_arguments_are_checked_at_once(self, options, message):
        with pytest.raises(ValueError, match=message):
            ImageFolderDataModule("anywhere", **options)
