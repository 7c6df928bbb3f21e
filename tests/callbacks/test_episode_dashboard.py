"""The dashboard of tasks: it shows what happens, and changes nothing."""

from __future__ import annotations

import copy
import csv
import io

import lightning as L
import polars as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image
from torch import nn

from lightning_meta import MAML, SinusoidDataModule
from lightning_meta.callbacks import EpisodeDashboard
from lightning_meta.models import MLP
from tests.offline_runs import without_drawing
from tests.registry import every


def trainer(folder, *callbacks, **options):
    settings = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "callbacks": callbacks}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings |= {"default_root_dir": folder, "logger": CSVLogger(folder, name="", version="")}
    return L.Trainer(**{**settings, **options, "callbacks": list(callbacks)})


def sinusoids(**options):
    return SinusoidDataModule(**{"tasks_per_batch": 2, "train_tasks": 8, "val_tasks": 5, "test_tasks": 5, **options})


def learner(**options):
    return MAML(MLP(hidden=[6]), nn.MSELoss(), **{"inner_lr": 0.05, "inner_steps": 2, **options})


@pytest.fixture
def quick(monkeypatch):
    without_drawing(monkeypatch)


@pytest.mark.usefixtures("quick")
@every(quick=["MAML", "ABML", "ProtoNet"])
def test_training_is_the_same_with_and_without(entry, tmp_path):
    weights, draws, logged = [], [], []
    for callbacks in ([], [EpisodeDashboard(num_episodes=3)]):
        torch.manual_seed(1)
        own = entry.learner(eval_inner_steps=2)
        data = entry.data(tasks_per_batch=2, train_tasks=24, val_tasks=4)  # enough steps to be captured and replayed
        options = {"max_epochs": 1, "accumulate_grad_batches": 2, "val_check_interval": 0.5}
        runner = trainer(tmp_path / str(len(weights)), *callbacks, **options)
        runner.fit(own, data)
        weights.append(copy.deepcopy(own.state_dict()))
        draws.append(torch.rand(3))
        logged.append({name: float(value) for name, value in runner.callback_metrics.items()})
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    assert torch.equal(*draws)
    norm = logged[1].pop("train/meta_gradient_norm")
    assert norm > 0
    assert logged[1] == pytest.approx(logged[0], nan_ok=True, rel=0, abs=0)


@pytest.mark.usefixtures("quick")
def test_the_meta_gradient_norm_is_that_of_the_step_before_clipping(tmp_path):
    norms = []

    class Norms(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            squares = [p.grad.square().sum() for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(sum(squares)) ** 0.5)

    runner = trainer(tmp_path, Norms(), EpisodeDashboard(), gradient_clip_val=1e-3)
    runner.fit(learner(), sinusoids())
    with open(tmp_path / "metrics.csv") as file:
        logged = [
            float(row["train/meta_gradient_norm"]) for row in csv.DictReader(file) if row["train/meta_gradient_norm"]
        ]
    assert logged == pytest.approx(norms, rel=1e-5)


def test_inner_gradients_are_those_of_the_support_loss(tmp_path):
    """For a linear model and one task the steps can be written down."""
    model = nn.Linear(1, 1)
    own, data = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=3), sinusoids(val_tasks=1)
    trainer(tmp_path, EpisodeDashboard(num_episodes=1)).validate(own, data, verbose=False)
    with open(tmp_path / "metrics.csv") as file:
        (row,) = [row for row in csv.DictReader(file) if row.get("val_episodes/mse_step_0")]
    task = next(iter(data.val_dataloader())).select(0)
    weight, bias = model.weight.detach()[0, 0].clone(), model.bias.detach()[0].clone()
    for step in range(4):
        error = task.query_y - (weight * task.query_x + bias)
        assert float(row[f"val_episodes/mse_step_{step}"]) == pytest.approx(float(error.square().mean()), rel=1e-4)
        residual = weight * task.support_x + bias - task.support_y
        slopes = 2 * (residual * task.support_x).mean(), 2 * residual.mean()
        if step < 3:
            norm = (slopes[0] ** 2 + slopes[1] ** 2) ** 0.5
            assert float(row[f"val_episodes/inner_gradient_norm_step_{step}"]) == pytest.approx(float(norm), rel=1e-4)
        weight, bias = weight - 0.1 * slopes[0], bias - 0.1 * slopes[1]


def test_a_folder_gets_pictures_and_tables(tmp_path):
    own, data = learner(eval_inner_steps=4), sinusoids()
    runner = trainer(tmp_path, EpisodeDashboard(num_episodes=3, num_examples=7))
    runner.fit(own, data)
    runner.test(own, data, verbose=False)
    for stage, step in (("val", 3), ("val", 7), ("test", 8)):
        folder = tmp_path / "episodes" / stage / f"step_{step}"
        assert {path.name for path in folder.iterdir()} == {
            *("adaptation.png", "difficulty.png", "tasks.png", "examples.csv", "per_task.csv")
        }
        for path in folder.glob("*.png"):
            with Image.open(path) as picture:
                assert len(picture.convert("L").getcolors()) > 10
    examples = pl.read_csv(folder / "examples.csv")
    assert examples["task"].unique().sort().to_list() == [0, 1, 2]
    assert examples.filter(set="query").group_by("task").len()["len"].to_list() == [7] * 3
    batch = next(iter(data.test_dataloader()))
    first = examples.filter((pl.col("task") == 1) & (pl.col("set") == "query"))
    assert first["truth"][0] == pytest.approx(float(batch.query_y[1, 0]), rel=1e-4)
    predicted = own.adapt(batch.support_x[1], batch.support_y[1])(batch.query_x[1])
    assert first["prediction"][-1] == pytest.approx(float(predicted[-1]), rel=1e-3)
    tasks = pl.read_csv(folder / "per_task.csv")
    assert tasks["mse"].mean() == pytest.approx(float(runner.callback_metrics["test/mse"]), rel=1e-4)


@pytest.mark.usefixtures("quick")
def test_every_so_many_validations_are_shown_and_no_sanity_check(tmp_path):
    runner = trainer(tmp_path, EpisodeDashboard(every_n_validations=2), max_epochs=4)
    runner.fit(learner(), sinusoids())
    assert {path.name for path in (tmp_path / "episodes/val").iterdir()} == {"step_3", "step_11"}


@pytest.mark.usefixtures("quick")
def test_without_loggers_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_meta.callbacks.episode_dashboard.record_of", None)
    trainer(tmp_path, EpisodeDashboard(), logger=False).fit(learner(), sinusoids())
    assert not list(tmp_path.rglob("*"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision(precision, tmp_path):
    runner = trainer(tmp_path, EpisodeDashboard(), precision=precision, max_epochs=1)
    runner.fit(learner(compile=False), sinusoids())
    assert pl.read_csv(tmp_path / "episodes/val/step_3/examples.csv")["prediction"].is_finite().any()


@pytest.mark.parametrize(("argument", "value"), [("num_episodes", 0), ("num_examples", -1), ("every_n_validations", 0)])
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        EpisodeDashboard(**{argument: value})


def test_other_modules_are_refused(tmp_path):
    with pytest.raises(TypeError, match="EpisodeDashboard shows the tasks of a TaskLearner, not a LightningModule"):
        EpisodeDashboard().setup(trainer(tmp_path), L.LightningModule(), "fit")


def test_tensorboard_gets_scalars_pictures_histograms_and_tables(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer(tmp_path, EpisodeDashboard(), logger=logger, max_epochs=1).fit(learner(), sinusoids())
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert {f"val_episodes/mse_step_{step}" for step in range(3)} <= set(tags["scalars"])
    assert {"train/meta_gradient_norm", "val_episodes/inner_gradient_norm_step_1"} <= set(tags["scalars"])
    assert {f"val_episodes/{name}" for name in ("adaptation", "difficulty", "tasks")} == set(tags["images"])
    (picture,) = events.Images("val_episodes/tasks")
    with Image.open(io.BytesIO(picture.encoded_image_string)) as pixels:
        assert len(pixels.convert("L").getcolors()) > 10
    (histogram,) = events.Histograms("val_episodes/difficulty_histogram")
    assert histogram.histogram_value.num == 5
    assert events.Scalars("val_episodes/mse_step_0")[0].step == events.Scalars("val/mse")[0].step
    assert len(pl.read_csv(tmp_path / "episodes/val/step_3/per_task.csv")) == 5


@pytest.mark.usefixtures("quick")
def test_other_loggers_get_scalars(tmp_path):
    logged = {}

    class Plain(Logger):
        name, version = "plain", 0

        def log_hyperparams(self, *args, **options):
            pass

        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    trainer(tmp_path, EpisodeDashboard(), logger=Plain(), max_epochs=1).fit(learner(), sinusoids())
    assert {"val_episodes/mse_step_2", "val_episodes/inner_gradient_norm_step_0"} <= logged.keys()
    assert not list(tmp_path.rglob("*.png"))
