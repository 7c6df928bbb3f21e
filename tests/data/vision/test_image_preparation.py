"""New pictures become the tensors that the model was trained on."""

from __future__ import annotations

import io
import shutil
import warnings

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_meta import MAML, Conv4, ImageFolderDataModule, OmniglotDataModule
from lightning_meta.data.vision import omniglot
from lightning_meta.data.vision.image_preparation import ImagePreparation
from tests.data.vision.look_alikes import drawings, write_folders
from tests.data.vision.pictures import SMALL, files, module, picture, write


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "root", files())


def preparation(**options):
    return ImagePreparation(**{"image_size": 8, "channels": "rgb", "mean": [0.5] * 3, "std": [0.2] * 3, **options})


@pytest.mark.parametrize("channels", ["rgb", "grayscale"])
def test_training_and_new_pictures_give_the_same_tensors(root, channels):
    data = module(root, channels=channels)
    examples = data.episodes("val").dataset
    rows = data.preparation.read(root / "val", labelled=True)
    assert torch.equal(data.preparation.inputs(rows), examples.inputs(np.arange(len(examples))))
    assert rows["class"].to_list() == [examples.class_names[label] for label in examples.labels]
    again = ImagePreparation.from_state(data.preparation.state())
    assert torch.equal(again.inputs(rows), data.preparation.inputs(rows))


def test_drawings_are_prepared_as_omniglots(tmp_path, monkeypatch):
    root = write_folders(tmp_path, drawings())
    monkeypatch.setattr(omniglot, "_TRAIN_AND_VAL", 4)
    monkeypatch.setattr(omniglot, "_VAL", 2)
    data = OmniglotDataModule(str(root), rotations=False)
    pictures = torch.cat([dataset.tensors[0] for dataset in data.datasets().values()])
    character = root / "images_background/Greek/character01"
    found = data.preparation.inputs(data.preparation.read(character, labelled=False))
    assert found.shape == (20, 1, 28, 28)
    assert any(torch.equal(found, pictures[start : start + 20]) for start in range(0, len(pictures), 20))


class TestFolders:
    def test_unlabelled_pictures_are_sorted_by_name(self, tmp_path):
        names = ["b.png", "a.JPG", "c.jpeg", ".hidden.png", "notes.txt", "inner/d.png"]
        write(tmp_path, {name: picture(0, file_format="PNG") for name in names})
        rows = preparation().read(tmp_path, labelled=False)
        assert rows.columns == ["file"]
        assert rows["file"].to_list() == [str(tmp_path / name) for name in ("a.JPG", "b.png", "c.jpeg")]
        assert preparation().inputs(rows).shape == (3, 3, 8, 8)

    def test_labelled(self, root):
        (root / "train" / ".git").mkdir()
        rows = preparation(target_column="kind").read(str(root / "train"), labelled=True)
        assert rows.columns == ["file", "kind"]
        assert rows["kind"].unique(maintain_order=True).to_list() == ["train_0", "train_1", "train_2"]
        assert rows["file"][0] == str(root / "train/train_0/0.png")

    def test_errors(self, root):
        with pytest.raises(ValueError, match="'.*root/train' has no pictures, only folders: name one of them"):
            preparation().read(root / "train", labelled=False)
        (root / "train" / "empty").mkdir()
        with pytest.raises(ValueError, match="class 'empty' has no pictures"):
            preparation().read(root / "train", labelled=True)
        with pytest.raises(ValueError, match="has no folders of classes"):
            preparation().read(root / "train/train_0", labelled=True)
        with pytest.raises(FileNotFoundError, match="nowhere.*trained on pictures: give a folder of pictures"):
            preparation().read(root / "nowhere", labelled=False)
        with pytest.raises(ValueError, match="is a single picture.*one folder of pictures for each class"):
            preparation().read(root / "train/train_0/0.png", labelled=True)
        (root / "text.txt").touch()
        with pytest.raises(ValueError, match="text.txt.*trained on pictures"):
            preparation().read(root / "text.txt", labelled=True)


class TestTables:
    def test_files_are_relative_to_the_table(self, root):
        (root / "rows.csv").write_text("user,file,class\n1,val/val_0/0.png,3\n2,val/val_1/1.JPG,04\n")
        rows = preparation(task_column="user").read(root / "rows.csv", labelled=True)
        assert rows.columns == ["user", "file", "class", *ImagePreparation.private_columns]
        assert rows["file"].to_list() == ["val/val_0/0.png", "val/val_1/1.JPG"]
        assert rows["class"].to_list() == ["3", "04"]
        direct = pl.DataFrame({"file": [str(root / "val/val_0/0.png"), str(root / "val/val_1/1.JPG")]})
        assert torch.equal(preparation().inputs(rows), preparation().inputs(direct))

    @pytest.mark.parametrize(
        ("content", "options", "labelled", "error", "message"),
        [
            ("file,class\n../a.png,x", {}, True, ValueError, "'../a.png', which leads out of the folder"),
            ("file,class\n/etc/passwd,x", {}, True, ValueError, "leads out of the folder"),
            ("file,class\nnowhere.png,x", {}, True, FileNotFoundError, "nowhere.png', which does not exist"),
            ("file,class\n,x", {}, True, ValueError, "row without a file"),
            ("file,picture path\na.png,x", {}, False, ValueError, "has a column 'picture path'.*rename it"),
            ("image,class\na.png,x", {}, True, ValueError, "no column 'file': the checkpoint was trained on pictures"),
            ("file,klass\na.png,x", {}, True, ValueError, "target_column='class'.*did you mean 'klass'"),
            ("file\na.png", {"task_column": "user"}, False, ValueError, "task_column='user'"),
        ],
    )
    def test_errors(self, root, content, options, labelled, error, message):
        (root / "rows.csv").write_text(content)
        with pytest.raises(error, match=message):
            preparation(**options).read(root / "rows.csv", labelled)


class TestKindsOfPictures:
    def inputs(self, tmp_path, image, file_format, **options):
        image.save(tmp_path / f"a.{file_format.lower()}", file_format, **options)
        own = preparation(mean=[0.0] * 3, std=[1.0] * 3)
        return own.inputs(own.read(tmp_path, labelled=False))[0]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
    @pytest.mark.parametrize("channels", ["rgb", "grayscale"])
    def test_every_mode_decodes(self, tmp_path, mode, channels):
        image = Image.open(io.BytesIO(picture(0, mode="RGB"))).convert(mode)
        image.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
        count = 3 if channels == "rgb" else 1
        own = preparation(channels=channels, mean=[0.5] * count, std=[0.5] * count)
        inputs = own.inputs(own.read(tmp_path, labelled=False))
        assert inputs.shape == (1, count, 8, 8)
        assert inputs.std() > 0.1

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_pixels_are_white(self, tmp_path, mode):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 4, 8))
        options = {"transparency": bytes([0] + [255] * 255)} if mode == "P" else {}
        if mode == "P":
            palette = Image.new("P", (8, 8), 0)
            palette.putpalette([0, 0, 0] * 256)
            palette.paste(1, (0, 0, 4, 8))
        found = self.inputs(tmp_path, palette if mode == "P" else image.convert(mode), "PNG", **options)
        assert found[:, :, :4].eq(0).all()
        assert found[:, :, 4:].eq(1).all()

    def test_the_camera_s_orientation_counts(self, tmp_path):
        image = Image.new("RGB", (8, 8))
        image.paste((255, 255, 255), (0, 0, 8, 4))  # the upper half
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        found = self.inputs(tmp_path, image, "JPEG", exif=exif, quality=100)
        assert found[:, 5:].min() > 0.9
        assert found[:, :3].max() < 0.1

    def test_deep_pixels_are_refused(self, tmp_path):
        deep = Image.fromarray(np.full((8, 8), 60_000, dtype=np.uint16))
        with pytest.raises(ValueError, match="a.png' has more than 8 bits per channel.*convert it to 8 bits"):
            self.inputs(tmp_path, deep, "PNG")

    def test_other_formats_are_not_opened(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")  # for Ghostscript
        with pytest.raises(ValueError, match="a.png' is no readable picture"):
            preparation().inputs(preparation().read(tmp_path, labelled=False))


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": "8"},
        {"target_column": "file"},
        {"image_size": 4097},
        {"mean": [10**400, 1, 1]},
        {"mean": [float("nan"), 0.1, 0.1]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [float("inf"), 1.0, 1.0]},
        {"channels": "cmyk"},
        {"mean": [0.1]},
        {"mean": None},
        {"mean": None, "std": None},
        {"std": ["a"] * 3},
        {"more": 1},
    ],
)
def test_a_changed_state_is_refused(change):
    with pytest.raises(ValueError, match="preparation of images data cannot be used"):
        ImagePreparation.from_state({**preparation().state(), **change})


class Module(nn.Module):
    """An augmentation that is a module, as torchvision's are."""

    def forward(self, picture):
        return picture.flip(-1)


@pytest.mark.parametrize("augment", ["crop_flip", Module(), lambda picture: picture])
def test_checkpoints_keep_arguments_and_preparation(root, tmp_path, augment):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    data = ImageFolderDataModule(
        root, augment=augment, cache_dir=tmp_path / "cache", **SMALL, train_tasks=4, val_tasks=4
    )
    trainer.fit(MAML(Conv4(2, in_channels=3, filters=4), nn.CrossEntropyLoss()), data)
    path = trainer.checkpoint_callback.best_model_path
    kept = torch.load(path, weights_only=True)["meta_learner_preparation"]
    assert ImagePreparation.from_state(kept).state() == data.preparation.state()
    if augment == "crop_flip":
        again = ImageFolderDataModule.load_from_checkpoint(path)
    else:
        with pytest.raises(ValueError, match="augment='a function that the checkpoint does not keep.*pass it again"):
            ImageFolderDataModule.load_from_checkpoint(path)
        again = ImageFolderDataModule.load_from_checkpoint(path, augment=augment)
    assert torch.equal(again.episodes("train")[3].query_x, data.episodes("train")[3].query_x)
    shutil.rmtree(root / "train" / "train_2")
    changed = ImageFolderDataModule(root, **SMALL)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="prepared with mean=.*training data"):
        trainer.test(MAML(Conv4(2, in_channels=3, filters=4), nn.CrossEntropyLoss()), changed, ckpt_path=path)
