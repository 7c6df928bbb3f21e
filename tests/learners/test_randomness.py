"""Where random numbers come from: other ones for each task, step and process, the same whatever the machine."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from lightning_meta import ABML, MAML, AmortizedMAML, Conv4, Episode, Reptile
from lightning_meta.data import SinusoidDataModule
from lightning_meta.execution.capture import recorder
from lightning_meta.execution.surrogate import surrogate_loss

pytestmark = pytest.mark.usefixtures("float64")


class Drawing(nn.Linear):
    """Draws a number in each call."""

    def forward(self, x):
        self.drawn = float(torch.rand(()))
        return super().forward(x)


class Noting(L.Callback):
    """Notes the last number of each training step."""

    def __init__(self):
        self.drawn = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.drawn.append(pl_module.model.drawn)


def drawn_in_training(seed=1):
    L.seed_everything(seed, verbose=False)
    noting = Noting()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[noting],
    )
    learner = MAML(Drawing(1, 1), nn.MSELoss(), task_chunk_size=1, compile=False)
    trainer.fit(learner, SinusoidDataModule(shots=2, tasks_per_batch=2, train_tasks=6))
    return noting.drawn


def test_every_step_and_process_draws_its_own_numbers(monkeypatch):
    first = drawn_in_training()
    assert drawn_in_training() == first
    monkeypatch.setattr(L.Trainer, "global_rank", property(lambda self: 1))
    every = first + drawn_in_training() + drawn_in_training(seed=2)
    assert len(first) == 6
    assert len(set(every)) == len(every)


def test_evaluation_draws_the_same_for_a_batch_and_others_for_another():
    learner = ABML(nn.Linear(2, 1), nn.MSELoss(), initial_log_std=0.0).eval()
    learner.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    batch = Episode(*[torch.randn(2, 3, size) for size in (2, 1, 2, 1)])
    found = learner.predict_step(batch, 0)
    torch.manual_seed(torch.initial_seed())
    assert torch.equal(learner.predict_step(batch, 0), found)
    assert not torch.allclose(learner.predict_step(batch, 1), found)


def alike(model_inputs=2, tasks=3):
    """Tasks that are equal, with queries that are equal."""
    sets = [torch.randn(1, n, d).expand(tasks, n, d) for n, d in [(4, model_inputs), (4, 1)]]
    return Episode(*sets, *[torch.randn(1, 1, d).expand(tasks, 3, d) for d in (model_inputs, 1)])


@pytest.mark.parametrize("statistics", ["batch", "support"])
def test_equal_tasks_draw_different_numbers(statistics):
    model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    learners = [MAML(model, nn.MSELoss(), batch_statistics=statistics)]
    learners += [cls(nn.Sequential(nn.Linear(2, 16), nn.Linear(16, 1)), nn.MSELoss()) for cls in (ABML, AmortizedMAML)]
    for learner in learners:
        for outputs in (learner.train().evaluate(alike()).outputs[:, -1], learner.predict_step(alike())):
            assert len({float(output[0]) for output in outputs}) == 3
            if learner is learners[0]:  # dropout: each query has its own mask too
                assert len(outputs.unique()) == outputs.numel()


def test_equal_tasks_draw_different_numbers_in_training():
    """A mean over equal tasks with one draw for all would be each task's own gradient."""
    model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    learner, seen = MAML(model, nn.MSELoss(), compile=False), []
    learner.after_batch = lambda result: seen.append(result.loss)
    learner.training_step(alike(), 0)
    assert len(seen[0].unique()) == 3


@pytest.mark.parametrize("cls", [ABML, AmortizedMAML, Reptile, MAML])
def test_draws_do_not_depend_on_the_number_of_threads(cls):
    """Threads take pieces of a batch of images in any order; of learners that draw one thread takes all."""
    options = {Reptile: {"inner_batch_size": 2}, AmortizedMAML: {"generate": ["norms.*"]}}.get(cls, {})
    model = Conv4(3, filters=2)
    if cls is MAML:
        model.head = nn.Sequential(nn.Dropout(0.5), model.head)
    labels = torch.arange(3).expand(4, 3)
    batch = Episode(torch.rand(4, 3, 1, 28, 28), labels, torch.rand(4, 3, 1, 28, 28), labels)
    learner, before, found = cls(model, **options), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            learner.zero_grad()
            learner.training_step(batch, 0).backward()
            found.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[0])
    assert learner._traits().is_stochastic  # by which recorded steps, later ones, are not shared out


def test_draws_that_only_a_recording_shows_do_not_depend_on_threads_either(monkeypatch):
    class Dropping(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5)

    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    model = Conv4(3, filters=2)
    model.head = Dropping(model.head.in_features, 3)
    labels = torch.arange(3).expand(4, 3)
    batch = Episode(torch.rand(4, 3, 1, 28, 28), labels, torch.rand(4, 3, 1, 28, 28), labels)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            learner = MAML(model)
            for _ in range(2):  # the first step shows that it draws
                torch.manual_seed(3)
                learner.zero_grad()
                learner.training_step(batch, 0).backward()
            found.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[0])


def test_the_loss_to_call_backward_on_keeps_no_graph_of_its_value():
    parameter, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    value = (3 * other).sum()
    loss = surrogate_loss(value, [parameter], [torch.tensor([1.0, 2.0])], 0.5)
    assert float(loss.detach()) == 6
    pending, reached = [loss.grad_fn], []
    while pending:
        node = pending.pop()
        reached.append(getattr(node, "variable", None))
        pending += [following for following, _ in node.next_functions if following is not None]
    assert [tensor for tensor in reached if tensor is not None] == [parameter]
    loss.backward()
    assert parameter.grad.tolist() == [0.5, 1.0]
    assert other.grad is None
