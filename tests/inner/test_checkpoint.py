from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode, Support, collate_episodes
from lightning_meta.inner.update_rules import UpdateRule
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


def mlp():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def batch():
    return Episode(torch.randn(4, 5, 3), torch.randn(4, 5, 2), torch.randn(4, 6, 3), torch.randn(4, 6, 2))


@pytest.mark.parametrize("chunk", [None, 3, 1])
@pytest.mark.parametrize("steps", [1, 2, 7, 9])
def test_checkpointing_leaves_the_gradient_the_loops(chunk, steps):
    model, tasks = mlp(), batch()
    learner = MAML(model, nn.MSELoss(), 0.2, steps, checkpoint_inner_loop=True, task_chunk_size=chunk)
    loss, gradient = meta_gradient(learner, tasks)
    expected_loss, expected = loop_meta_gradient(model, nn.MSELoss(), tasks, 0.2, steps)
    torch.testing.assert_close(loss, expected_loss)
    assert_same(gradient, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"adapt": "head"},
        {"inner_optimizer": "adam"},
        {"learned_rates": "tensor_step", "inner_optimizer": "momentum"},
    ],
    ids=str,
)
def test_checkpointing_serves_every_option(options):
    model, tasks = mlp(), batch()
    found = meta_gradient(MAML(model, nn.MSELoss(), 0.1, 6, checkpoint_inner_loop=True, **options), tasks)
    expected = meta_gradient(MAML(model, nn.MSELoss(), 0.1, 6, **options), tasks)
    torch.testing.assert_close(found[0], expected[0])
    assert_same(found[1], expected[1])


def test_checkpointing_serves_labels_and_masks():
    model = mlp()
    tasks = [Episode(torch.randn(n, 3), torch.arange(n) % 2, torch.randn(4, 3), torch.arange(4) % 2) for n in (3, 5)]
    found = meta_gradient(MAML(model, inner_lr=0.3, inner_steps=5, checkpoint_inner_loop=True), collate_episodes(tasks))
    expected = meta_gradient(MAML(model, inner_lr=0.3, inner_steps=5), collate_episodes(tasks))
    assert_same(found[1], expected[1])


@pytest.mark.parametrize(("checkpointed", "calls"), [(False, 10), (True, 19)])
def test_the_steps_inside_a_piece_are_computed_again(checkpointed, calls):
    count = 0

    class Counting(nn.Linear):
        def forward(self, x):
            nonlocal count
            count += 1
            return super().forward(x)

    learner = MAML(Counting(3, 2), nn.MSELoss(), 0.1, 9, checkpoint_inner_loop=checkpointed)
    learner.output_shape(Support(torch.zeros(1, 1, 3), None))
    count = 0
    learner.training_step(batch(), 0)
    assert count == calls


class Counter(UpdateRule):
    """Gradient descent that counts its steps in an integer."""

    def init(self, parameters):
        return torch.zeros((), dtype=torch.int64)

    def update(self, parameters, gradients, state, rates, step):
        return {name: p - rates[name] * gradients[name] / (1 + state) for name, p in parameters.items()}, state + 1


def test_an_update_rules_state_may_hold_integers():
    model, tasks = mlp(), batch()
    found = meta_gradient(
        MAML(model, nn.MSELoss(), 0.1, 5, checkpoint_inner_loop=True, inner_optimizer=Counter()), tasks
    )
    expected = meta_gradient(MAML(model, nn.MSELoss(), 0.1, 5, inner_optimizer=Counter()), tasks)
    assert_same(found[1], expected[1])


@pytest.mark.parametrize("chunk", [None, 1])
def test_dropout_is_drawn_alike_when_computed_again(chunk):
    model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 2))
    tasks = batch()

    def gradient(checkpointed):
        torch.manual_seed(3)
        learner = MAML(model, nn.MSELoss(), 0.2, 4, checkpoint_inner_loop=checkpointed, task_chunk_size=chunk)
        return meta_gradient(learner, tasks)

    assert_same(gradient(True)[1], gradient(False)[1])


def test_what_checkpointing_cannot_do_is_refused():
    for wrong in ({"first_order": True}, {"multi_step_loss_epochs": 2}):
        with pytest.raises(ValueError, match="checkpoint_inner_loop"):
            MAML(mlp(), nn.MSELoss(), checkpoint_inner_loop=True, **wrong)

    class Own(MAML):
        def inner_loop(self, meta, support, steps):
            yield from super().inner_loop(meta, support, steps)

    with pytest.raises(TypeError, match="Own.inner_loop"):
        Own(mlp(), nn.MSELoss(), checkpoint_inner_loop=True)
