"""A learner of one's own, of no more than the two methods that are abstract."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import MLP, Episode, SinusoidDataModule, TaskLearner, collate_episodes
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


class Shifted(TaskLearner):
    """Adds to the model's output what is missing in the support set on average."""

    def adapt_task(self, meta, support):
        missing = support.y - self.call_model(self.model_parameters(meta), support.x)
        if support.mask is None:
            return missing.mean(0)
        return (missing * support.mask[:, None]).sum(0) / support.mask.sum()

    def query_output(self, meta, state, x):
        return self.call_model(self.model_parameters(meta), x) + state


@pytest.fixture
def learner():
    return Shifted(MLP(hidden=[5]), nn.MSELoss())


def draw(support=4, query=6):
    return Episode(*[torch.randn(size, 1) for size in (support, support, query, query)])


def loss_of(model, parameters, task):
    def output(x):
        return functional_call(model, parameters, (x,))

    shift = (task.support_y - output(task.support_x)).mean(0)
    return (output(task.query_x) + shift - task.query_y).square().mean()


@pytest.mark.parametrize("sizes", [[(4, 6), (4, 6)], [(4, 6), (7, 2), (5, 5)]], ids=["alike", "ragged"])
@pytest.mark.parametrize("compile", [None, False])
def test_its_gradient_is_that_of_autograd(sizes, compile):
    learner, tasks = Shifted(MLP(hidden=[5]), nn.MSELoss(), compile=compile), [draw(*own) for own in sizes]
    parameters = {name: p.detach().clone().requires_grad_() for name, p in learner.model.named_parameters()}
    loss = sum(loss_of(learner.model, parameters, task) for task in tasks) / len(tasks)
    slopes = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    for _ in range(13):
        found = meta_gradient(learner, collate_episodes(tasks))
    torch.testing.assert_close(found[0], loss.detach())
    assert_same(found[1], slopes)


def test_it_trains_evaluates_and_predicts(tmp_path):
    torch.set_default_dtype(torch.float32)  # the fixture restores it
    learner = Shifted(MLP(hidden=[5]), nn.MSELoss())
    data = SinusoidDataModule(shots=4, tasks_per_batch=4, train_tasks=80, val_tasks=8, test_tasks=8)
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (before,) = trainer.test(learner, data, verbose=False)
    trainer.fit(learner, data)
    (after,) = trainer.test(learner, data, verbose=False)
    assert after["test/mse"] < before["test/mse"]
    assert after.keys() == {"test/loss", "test/loss_ci95", "test/mse", "test/mse_ci95"}
    loaded = Shifted.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    (again,) = trainer.test(loaded, data, verbose=False)
    assert again == after
    assert torch.cat(trainer.predict(learner, data)).shape == (8, 4, 1)


def test_it_adapts_to_one_task(learner):
    task = draw()
    with torch.inference_mode():
        adapted = learner.adapt(task.support_x, task.support_y)
        found = adapted(task.query_x)
    shift = (task.support_y - learner.model(task.support_x)).mean(0)
    torch.testing.assert_close(found, (learner.model(task.query_x) + shift).detach())
    torch.testing.assert_close(adapted.state, shift.detach())
    with pytest.raises(ValueError, match="steps=3, but Shifted takes no inner steps: leave it out"):
        learner.adapt(task.support_x, task.support_y, steps=3)


def test_a_learner_without_its_methods_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        TaskLearner(MLP(), nn.MSELoss())
