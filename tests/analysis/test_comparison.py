"""Learners beside baselines."""

import copy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Conv4, ProtoNet, TabularTasksDataModule, TextDataModule, TextEncoder
from lightning_meta.analysis.comparison import compare_with_baselines
from lightning_meta.analysis.fresh_model import fresh_model
from lightning_meta.analysis.penalties import PENALTIES
from lightning_meta.analysis.short_training import quiet_trainer
from lightning_meta.cli import main
from tests.prediction.trained import sentences, visits


@pytest.fixture
def visits_data(tmp_path):
    visits(30).write_csv(tmp_path / "visits.csv")
    return TabularTasksDataModule(
        tmp_path / "visits.csv", "patient", "pain", ["size"], shots=5, query_shots=4, train_tasks=40, val_tasks=8
    )


def value(table: pl.DataFrame, learner: str, column: str = "mean") -> float:
    return table.filter(pl.col("learner") == learner)[column].item()


def test_a_regression(visits_data):
    learner = MAML(MLP(1, 1, hidden=[8]), nn.MSELoss(), inner_lr=0.1, inner_steps=2)
    found = compare_with_baselines(visits_data, learner, pooled_epochs=1)
    assert found["learner"].to_list() == [
        "MAML",
        "MAML, no adaptation",
        "pooled model",
        "mean of the support",
        "ridge regression per task",
        "ridge regression on all training tasks",
    ]
    episodes, std = visits_data.episodes("test"), visits_data.preparation.targets.std
    tasks = [episodes[i] for i in range(len(episodes))]
    by_hand = [float((t.query_y - t.support_y.mean()).square().mean().sqrt()) * std for t in tasks]
    assert value(found, "mean of the support") == pytest.approx(np.mean(by_hand), rel=1e-4)
    interval = 1.96 * np.std(by_hand, ddof=1) / len(by_hand) ** 0.5
    assert value(found, "mean of the support", "ci95") == pytest.approx(interval, rel=1e-4)
    own = [
        float((learner.adapt(t.support_x, t.support_y)(t.query_x) - t.query_y).square().mean().sqrt()) for t in tasks
    ]
    assert value(found, "MAML") == pytest.approx(np.mean(own) * std, rel=1e-3)
    before = [float((learner.model(t.query_x) - t.query_y).detach().square().mean().sqrt()) for t in tasks]
    assert value(found, "MAML, no adaptation") == pytest.approx(np.mean(before) * std, rel=1e-3)


def test_penalties_are_those_that_are_best_on_validation_tasks(visits_data):
    found = compare_with_baselines(visits_data)
    episodes = visits_data.episodes("val")
    errors = {}
    for penalty in PENALTIES:
        each = []
        for i in range(len(episodes)):
            task = episodes[i]
            x, y = task.support_x.double(), task.support_y.double()
            centered = x - x.mean(0)
            weight = torch.linalg.solve(centered.T @ centered + penalty * torch.eye(1), centered.T @ (y - y.mean(0)))
            output = (task.query_x.double() - x.mean(0)) @ weight + y.mean(0)
            each.append(float((output - task.query_y).square().mean().sqrt()))
        errors[penalty] = np.mean(each)
    assert value(found, "ridge regression per task", "penalty") == min(errors, key=errors.get)


def test_the_learner_is_not_changed(visits_data):
    learner = MAML(MLP(1, 1, hidden=[8]), nn.MSELoss(), inner_lr=0.1)
    before = copy.deepcopy(learner.state_dict())
    compare_with_baselines(visits_data, learner, pooled_epochs=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())
    assert all(p.requires_grad for p in learner.parameters())


def test_tasks_in_time_order_have_a_last_value(tmp_path):
    rows = visits(30).with_columns(day=pl.int_range(pl.len()).over("patient"))
    rows.write_csv(tmp_path / "visits.csv")
    data = TabularTasksDataModule(
        tmp_path / "visits.csv", "patient", "pain", ["size"], shots=5, query_shots=1, time_column="day", train_tasks=20
    )
    found = compare_with_baselines(data)
    episodes, std = data.episodes("test"), data.preparation.targets.std
    each = [float((episodes[i].query_y[0] - episodes[i].support_y[-1]).abs()) * std for i in range(len(episodes))]
    assert value(found, "last value") == pytest.approx(np.mean(each), rel=1e-4)


def test_classification_of_texts(tmp_path):
    sentences(24).write_csv(tmp_path / "requests.csv")
    data = TextDataModule(
        tmp_path / "requests.csv", "request", "intent", ways=3, shots=2, query_shots=4, vocabulary_size=256,
        hash_buckets=128, train_tasks=8, val_tasks=8, test_tasks=10,
    )  # fmt: skip
    found = compare_with_baselines(data, ProtoNet(TextEncoder(8, vocabulary_size=256, embedding_size=16)))
    assert found["learner"].to_list()[0] == "ProtoNet"
    assert {"nearest prototype", "ridge regression per task", "logistic regression per task"} <= set(found["learner"])
    assert value(found, "nearest prototype") > 0.8  # each intent has words of its own
    assert found["metric"].unique().to_list() == ["acc"]
    assert found["tasks"].unique().to_list() == [10]


def test_the_command_prints_and_saves_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    visits(30).write_csv("visits.csv")
    data = TabularTasksDataModule("visits.csv", "patient", "pain", ["size"], query_shots=4, train_tasks=40)
    trainer = quiet_trainer(max_epochs=1)
    learner = MAML(MLP(1, 1, hidden=[8]), nn.MSELoss(), inner_lr=0.1)
    trainer.fit(learner, data)
    trainer.save_checkpoint("trained.ckpt")
    Path("experiment.yaml").write_text(
        """
model:
  class_path: MAML
  init_args:
    model: {class_path: lightning_meta.models.MLP, init_args: {in_features: 1, hidden: [8]}}
    loss_fn: torch.nn.MSELoss
    inner_lr: 0.1
data:
  class_path: TabularTasksDataModule
  init_args:
    {file: visits.csv, task_column: patient, target_column: pain, feature_columns: [size], query_shots: 4}
"""
    )
    arguments = ["baselines", "--config", "experiment.yaml", "--ckpt_path", "trained.ckpt", "--output", "table.csv"]
    found = main(arguments)
    out = capsys.readouterr().out
    assert "ridge regression" in out
    assert "Means over test tasks, ± 95 % interval over tasks." in out
    assert out.splitlines()[-1] == "Saved: table table.csv"
    saved = pl.read_csv("table.csv")
    assert saved["mean"].to_list() == pytest.approx(found["mean"].to_list())
    trainer.test(learner, data, verbose=False)
    own = learner.per_task()["mse"].sqrt().mean() * data.preparation.targets.std
    assert value(found, "MAML") == pytest.approx(float(own), rel=1e-4)
    refused = {
        "pass --overwrite": arguments,
        "--data.val_fraction 0.15, or go on": [*arguments, "--overwrite", "--data.val_fraction=0.5"],
        "was trained on data prepared with": [
            *[*arguments, "--overwrite", "--accept_differences", "--data.val_fraction=0.5"]
        ],
        "no validation tasks": [*arguments[:3], "--data.val_fraction=0"],
        "no file": [*arguments[:3], "--data.file=nowhere.csv"],
    }
    for message, wrong in refused.items():
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_takes_the_configuration_that_fit_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    visits(30).write_csv("visits.csv")
    data = ["--data=TabularTasksDataModule", "--data.file=visits.csv", "--data.task_column=patient"]
    data += ["--data.target_column=pain", "--data.feature_columns=[size]", "--data.train_tasks=16"]
    model = ["--model=MAML", "--model.model=MLP", "--model.loss_fn=torch.nn.MSELoss", "--trainer.max_epochs=1"]
    main(["fit", *model, *data, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    (config,) = Path("lightning_logs").rglob("config.yaml")
    (checkpoint,) = Path("lightning_logs").rglob("*.ckpt")
    main(["baselines", "--config", str(config), "--ckpt_path", str(checkpoint)])
    assert "MAML, no adaptation" in capsys.readouterr().out
    whole = next(iter(main(["baselines", "--config", str(config)])["tasks"]))
    few = main(["baselines", "--config", str(config), "--data.tasks_per_batch=1", "--trainer.limit_test_batches=1"])
    assert set(few["tasks"]) == {1} != {whole}


def test_the_pooled_model_starts_from_new_values():
    trained = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    nn.init.constant_(trained[0].weight, 7.0)
    copied = fresh_model(trained, "leave it out")
    assert (copied[0].weight.abs() <= 1 / 2**0.5).all()
    assert (trained[0].weight == 7.0).all()
    owner = nn.Module()
    owner.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="set pooled_epochs=0"):
        fresh_model(owner, "set pooled_epochs=0")


@pytest.mark.parametrize("model", [Conv4(5), MLP(hidden=[4]), TextEncoder(vocabulary_size=20, num_classes=3)])
def test_each_model_of_the_library_can_have_new_values(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    copied = fresh_model(model, "leave it out")
    assert all((own != 7).any() for own in copied.parameters())
    assert all((own == 7).all() for own in model.parameters())
