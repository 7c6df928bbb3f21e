"""What holds for every baseline: it runs without training, on ragged tasks as on each alone, and can be saved."""

from __future__ import annotations

import copy
import pickle

import lightning as L
import pytest
import torch
from torch import nn

from lightning_meta import MLP, Episode, ProtoNet, collate_episodes
from lightning_meta.algorithms import baselines
from lightning_meta.algorithms.baselines import (
    LastTarget,
    LogisticRegression,
    MeanTarget,
    PooledModel,
    PooledRidge,
    RidgeClassifier,
    RidgeRegression,
)
from lightning_meta.cli import main
from tests.registry import BY_NAME

pytestmark = pytest.mark.usefixtures("float64")


def regression(support=6, query=5, seed=0, features=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(support, features), (support, 1), (query, features), (query, 1)]
    return Episode(*[torch.randn(shape, generator=generator) for shape in shapes])


def classification(ways=3, shots=2, query=5, seed=0, features=3):
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(ways * shots) % ways)[torch.randperm(ways * shots, generator=generator)]
    x, query_x = (torch.randn(size, features, generator=generator) for size in (ways * shots, query))
    return Episode(x, y, query_x, torch.arange(query) % ways)


def body(features=3):
    return nn.Sequential(nn.Linear(features, 4), nn.Tanh())


def fitted(**options):
    tasks = [regression(4, 3, seed) for seed in range(10, 14)]
    return PooledRidge(**options).fit_tasks([collate_episodes(tasks)])


OF_NUMBERS = {
    "mean": MeanTarget,
    "last": LastTarget,
    "ridge": lambda **options: RidgeRegression(penalty=0.5, **options),
    "ridge of features": lambda **options: RidgeRegression(body(), **options),
    "pooled model": lambda **options: PooledModel(MLP(3, 1, [4]), nn.MSELoss(), **options),
    "pooled ridge": fitted,
}
OF_CLASSES = {
    "ridge classifier": lambda **options: RidgeClassifier(penalty=0.5, **options),
    "logistic": lambda **options: LogisticRegression(penalty=0.5, **options),
    "logistic of features": lambda **options: LogisticRegression(body(), **options),
    "nearest prototype": lambda **options: ProtoNet(nn.Flatten(), **options),
}
ALL = [(make, regression) for make in OF_NUMBERS.values()] + [(make, classification) for make in OF_CLASSES.values()]
every = pytest.mark.parametrize(("make", "draw"), ALL, ids=[*OF_NUMBERS, *OF_CLASSES])


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, accelerator="cpu", **quiet, **options)


def test_every_baseline_is_tested_here():
    classes = {type(make()).__name__ for make in (OF_NUMBERS | OF_CLASSES).values()}
    assert set(baselines.__all__) == classes - {"ProtoNet"}


@every
@pytest.mark.parametrize("chunk", [None, 1])
def test_ragged_tasks_are_evaluated_as_each_alone(make, draw, chunk):
    learner = make(task_chunk_size=chunk)
    sizes = [(6, 5), (9, 3), (4, 7)] if draw is regression else [(2, 3), (3, 2), (5, 1)]
    tasks = [draw(*own, seed=seed) for seed, own in enumerate(sizes)]
    result = learner.evaluate(collate_episodes(tasks))
    for index, task in enumerate(tasks):
        alone = learner.evaluate(collate_episodes([task]))
        expected = alone.outputs[0, -1]
        found = result.outputs[index, -1][: len(expected), : expected.shape[1]]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(result.loss[index], alone.loss[0])
        torch.testing.assert_close(learner.adapt(task.support_x, task.support_y)(task.query_x), expected)


@every
def test_examples_left_out_by_a_mask_do_not_count(make, draw):
    learner, task = make(), draw()
    mask = torch.tensor([True, False, True, True, True, False])
    task = task._replace(support_y=torch.tensor([0, 2, 1, 2, 0, 1]) if draw is classification else task.support_y)
    kept = learner.adapt(task.support_x[mask], task.support_y[mask])(task.query_x)
    masked = collate_episodes([task._replace(support_mask=mask)])
    torch.testing.assert_close(learner.adapt(*task[:2], support_mask=mask)(task.query_x), kept)
    torch.testing.assert_close(learner.evaluate(masked).outputs[0, -1], kept)


@every
def test_it_is_tested_without_training_saved_and_exported(make, draw, tmp_path):
    learner, tasks = make(), [draw(seed=seed) for seed in range(5)]
    batches = torch.utils.data.DataLoader(tasks, batch_size=2, collate_fn=collate_episodes)
    runner = trainer(tmp_path)
    (logged,) = runner.test(learner, batches, verbose=False)
    metric = "test/mse" if draw is regression else "test/acc"
    assert {"test/loss", metric, f"{metric}_ci95"} <= logged.keys()
    assert torch.cat(runner.predict(learner, batches)).shape == (5, 5, 1 if draw is regression else 3)
    runner.save_checkpoint(tmp_path / "baseline.ckpt")
    loaded = type(learner).load_from_checkpoint(tmp_path / "baseline.ckpt")
    others = loaded, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))
    for other in others:
        assert trainer(tmp_path).test(other, batches, verbose=False) == [logged]
    x = torch.randn(8, 3)
    task = learner.adapt(tasks[0].support_x, tasks[0].support_y)
    torch.testing.assert_close(task.export(tasks[0].query_x).module()(x), task(x))


@pytest.mark.parametrize("make", OF_CLASSES.values(), ids=OF_CLASSES)
def test_any_number_of_ways(make):
    for ways in (2, 20):
        task = classification(ways, 3, 7)
        output = make().adapt(task.support_x, task.support_y)(task.query_x)
        assert output.shape == (7, ways)
        assert output.isfinite().all()
    few, many = classification(2, 6, 5), classification(6, 2, 5)
    outputs = make().evaluate(collate_episodes([few, many])).outputs[:, -1]
    assert (outputs[0, :, 2:] == -torch.inf).all()


@pytest.mark.parametrize("make", [OF_CLASSES[n] for n in OF_CLASSES if n != "logistic of features"])
def test_separate_classes_are_told_apart(make):
    centers, labels = 20 * torch.randn(5, 3), torch.arange(10) % 5
    x, query_x = (centers[labels] + torch.randn(10, 3) for _ in range(2))
    assert (make().adapt(x, labels)(query_x).argmax(1) == labels).all()


def test_prototypes_of_a_frozen_model_are_those_of_its_features():
    model, task = body().requires_grad_(False), classification()
    found = ProtoNet(model).adapt(task.support_x, task.support_y)(task.query_x)
    of_features = ProtoNet(nn.Flatten()).adapt(model(task.support_x), task.support_y)
    torch.testing.assert_close(found, of_features(model(task.query_x)))


@pytest.mark.parametrize("make", [make for name, make in (OF_NUMBERS | OF_CLASSES).items() if name != "pooled model"])
def test_training_is_refused(make, tmp_path):
    batches = torch.utils.data.DataLoader([regression()], collate_fn=collate_episodes)
    with pytest.raises(ValueError, match="nothing to meta-learn. Leave out the training"):
        trainer(tmp_path, max_epochs=1).fit(make(), batches, batches)


@pytest.mark.parametrize("cls", [RidgeRegression, RidgeClassifier, LogisticRegression, PooledRidge])
def test_arguments_are_checked(cls):
    with pytest.raises(ValueError, match="penalty=0.0 must be a positive number"):
        cls(penalty=0.0)
    with pytest.raises(TypeError, match="model=3 must be a torch.nn.Module"):
        cls(model=3)
    with pytest.raises(TypeError, match="penalti"):
        cls(penalti=2.0)


def test_losses_of_classes_are_refused_where_numbers_are_predicted():
    with pytest.raises(ValueError, match="loss_fn=CrossEntropyLoss.* MeanTarget predicts real numbers: use a loss"):
        MeanTarget(nn.CrossEntropyLoss())


@pytest.mark.parametrize("short_name", [True, False])
def test_the_command_line_takes_baselines(short_name, tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)  # the fixture restores it
    monkeypatch.chdir(tmp_path)
    name = "RidgeRegression" if short_name else "lightning_meta.algorithms.baselines.RidgeRegression"
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    data = ["--data=SinusoidDataModule", "--data.test_tasks=4"]
    cli = main(["test", f"--model={name}", "--model.penalty=2", *data, *quiet])
    assert cli.model.penalty == 2
    assert "test/mse" in cli.trainer.callback_metrics


def test_data_modules_serve_baselines():
    data = BY_NAME["ProtoNet"].data(tasks_per_batch=2, test_tasks=4)
    torch.set_default_dtype(torch.float32)
    (logged,) = trainer(None).test(LogisticRegression(), data, verbose=False)
    assert logged["test/acc"] > 0.4
