"""Tables by the command line: training and test, and errors of mistyped columns."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import polars as pl
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, TabularTasksDataModule
from lightning_meta.cli import main
from lightning_meta.data.tabular.table_preparation import TablePreparation
from tests.data.tabular.made import patients

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = patients().with_columns(high=pl.col("dose") > 0)
    table.write_csv("visits.csv")


def arguments(*options: str, features: str = '["dose"]', outputs: int = 1, loss: str = "MSELoss") -> list[str]:
    return [
        *("--model=MAML", "--model.model=MLP", f"--model.model.out_features={outputs}"),
        *(f"--model.loss_fn=torch.nn.{loss}", "--model.inner_lr=0.05"),
        *("--data=TabularTasksDataModule", "--data.file=visits.csv", "--data.task_column=patient"),
        *("--data.target_column=level", "--data.shots=4", f"--data.feature_columns={features}"),
        *("--data.tasks_per_batch=4", "--data.train_tasks=8", "--trainer.max_epochs=1", *QUIET, *options),
    ]


def test_regression():
    cli = main(["fit", *arguments("--data.time_column=day")])
    assert math.isfinite(cli.trainer.callback_metrics["val/mse"])
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    tested = main(["test", *arguments("--data.time_column=day"), "--ckpt_path", checkpoint])
    assert math.isfinite(tested.trainer.callback_metrics["test/mse"])
    state = torch.load(checkpoint, weights_only=True)["meta_learner_preparation"]
    assert state == cli.datamodule.preparation.state()
    assert TablePreparation.from_state(state).feature_names == ["dose"]
    loaded = TabularTasksDataModule.load_from_checkpoint(checkpoint)
    assert (loaded.file, loaded.time_column, loaded.feature_columns) == (Path("visits.csv"), "day", ("dose",))


def test_classification():
    options = ["--data.task=classification", "--data.target_column=high", "--data.query_shots=3"]
    given = arguments(*options, outputs=2, loss="CrossEntropyLoss")
    checkpoint = main(["fit", *given]).trainer.checkpoint_callback.best_model_path
    tested = main(["test", *given, "--ckpt_path", checkpoint])
    assert 0 <= tested.trainer.callback_metrics["test/acc"] <= 1
    assert tested.datamodule.preparation.targets.classes == ("false", "true")


def test_a_path_may_be_given():
    data = TabularTasksDataModule(Path("visits.csv"), task_column="patient", target_column="level", train_tasks=8)
    trainer = L.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(MAML(MLP(data.num_features), nn.MSELoss()), data)
    checkpoint = trainer.checkpoint_callback.best_model_path
    assert TabularTasksDataModule.load_from_checkpoint(checkpoint).file == Path("visits.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.target_column=levle"], "target_column='levle'.*did you mean 'level'"),
        (["--data.shots=40"], "none of its 14 groups for 'train' has shots=40 support rows and 1 query rows"),
        (["--data.file=visit.csv"], "there is no file 'visit.csv'"),
        (['--data.feature_columns=["dose","ward"]'], r"model cannot take one task's inputs, \(4, 3\).*4x3 and 1x40"),
    ],
)
def test_errors_come_before_training(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["fit", *arguments(*options)])


def test_a_checkpoint_is_not_tested_on_data_prepared_otherwise():
    checkpoint = main(["fit", *arguments()]).trainer.checkpoint_callback.best_model_path
    patients().with_columns(pl.col("dose") * 2).write_csv("visits.csv")
    with pytest.raises(ValueError, match="prepared with columns="):
        main(["test", *arguments(), "--ckpt_path", checkpoint])


def test_features_are_named_in_the_log(caplog):
    main(["fit", *arguments(features='["dose","ward"]'), "--model.model.in_features=3"])
    assert "3 features (dose, ward=north, ward=south); groups: 14 train, 3 val, 3 test" in caplog.text
