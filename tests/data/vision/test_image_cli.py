"""Pictures from the command line."""

from __future__ import annotations

import pytest
import torch

from lightning_meta import ImageFolderDataModule
from lightning_meta.cli import main
from tests.data.vision.pictures import files, write

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.mark.parametrize("tables", [False, True])
def test_a_folder_of_pictures_trains(tmp_path, monkeypatch, tables):
    monkeypatch.chdir(tmp_path)
    made = files(each=5)
    write(tmp_path / "pictures", made)
    for split in ("train", "val"):
        rows = [f"{name},{name.split('/')[1]}" for name in made if name.startswith(split)]
        (tmp_path / "pictures" / f"{split}.csv").write_text("\n".join(["filename,label", *rows]))
    cli = main(
        [
            *("fit", "--model=MAML", "--model.model=Conv4", "--model.loss_fn=torch.nn.CrossEntropyLoss"),
            *("--model.model.in_channels=3", "--model.model.num_classes=2", "--model.model.filters=4"),
            *("--data=ImageFolderDataModule", "--data.root=pictures", "--data.image_size=16", "--data.ways=2"),
            *("--data.query_shots=2", "--data.augment=crop_flip", "--data.cache_dir=cache"),
            *("--data.mean=[0.5,0.5,0.5]", "--data.std=[0.25,0.25,0.25]"),
            *(["--data.splits_dir=.", "--data.images_dir=."] if tables else []),
            *("--data.tasks_per_batch=2", "--data.train_tasks=50", "--data.val_tasks=2", "--trainer.max_epochs=1"),
            *QUIET,
        ]
    )
    assert isinstance(cli.datamodule, ImageFolderDataModule)
    assert cli.datamodule.num_tasks["test"] == (0 if tables else 600)
    assert torch.isfinite(cli.trainer.callback_metrics["val/loss"])
    kept = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)["meta_learner_preparation"]
    assert kept["kind"] == "images"
    assert kept["image_size"] == 16
