"""Texts through the command line."""

from __future__ import annotations

import pytest
import torch

from lightning_meta import MAML, CLINC150DataModule, TextDataModule
from lightning_meta.cli import main
from lightning_meta.data.text.preparation import TextPreparation
from tests.data.text.look_alikes import requests, write_clinc150, write_requests

SMALL = [
    *("--data.ways=2", "--data.query_shots=2", "--data.train_tasks=32", "--data.val_tasks=4", "--data.test_tasks=8"),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"),
    "--trainer.enable_progress_bar=false",
]
MODEL = [
    *("--model=MAML", "--model.loss_fn=torch.nn.CrossEntropyLoss", "--model.model=TextEncoder"),
    *("--model.model.num_classes=2", "--model.model.embedding_size=8", "--model.model.vocabulary_size=100"),
]
WORDS = ["--data.vocabulary_size=100", "--data.hash_buckets=20"]


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_fit_and_test(tmp_path, capsys):
    file = write_requests(tmp_path / "made.csv")
    arguments = [*MODEL, "--data=TextDataModule", f"--data.file={file}", *WORDS, *SMALL]
    cli = main(["fit", *arguments])
    assert {"val/acc", "val/acc_ci95"} <= cli.trainer.callback_metrics.keys()
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    tested = main(["test", *arguments, "--ckpt_path", checkpoint])
    assert "± 95 % interval over tasks of these classes." in capsys.readouterr().out
    assert 0 <= tested.trainer.callback_metrics["test/acc"] <= 1

    kept = torch.load(checkpoint, weights_only=True)["meta_learner_preparation"]
    assert TextPreparation.from_state(kept).state() == cli.datamodule.preparation.state()
    data = TextDataModule.load_from_checkpoint(checkpoint)
    assert (data.file, data.ways, data.vocabulary_size) == (tmp_path / "made.csv", 2, 100)
    learner = MAML.load_from_checkpoint(checkpoint)
    x = TextPreparation.from_state(kept).inputs(requests(1))
    torch.testing.assert_close(learner.model(x), cli.model.model(x))


def test_clinc150(tmp_path):
    write_clinc150(tmp_path)
    data = ["--data=CLINC150DataModule", f"--data.root={tmp_path}", "--data.split_by=domain"]
    cli = main(["fit", *MODEL, *data, *WORDS, *SMALL])
    assert isinstance(cli.datamodule, CLINC150DataModule)
    assert cli.trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data.text_column=txt"], "text_column='txt'.*did you mean 'text'"),
        (["--data.label_column=lable"], "label_column='lable'.*did you mean 'label'"),
        (["--model.model.vocabulary_size=99"], "ids of words go up to 99.*set the model's vocabulary_size=100"),
        (["--data.file=other.csv"], "is empty in 1 of 60 rows .rows 60;"),
    ],
)
def test_errors_come_before_training(tmp_path, change, message):
    file = write_requests(tmp_path / "made.csv")
    table = requests()
    table[59, "text"] = ""
    write_requests(tmp_path / "other.csv", table)
    with pytest.raises(ValueError, match=message):
        main(["fit", *MODEL, "--data=TextDataModule", f"--data.file={file}", *WORDS, *SMALL, *change])
