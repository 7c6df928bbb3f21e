"""Ragged batches: padding may stay only where a model is known to treat its examples one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_meta import CNP, MAML, MLP, Conv4, Episode, collate_episodes
from lightning_meta.execution.example_independence import dims_after
from tests.reference import assert_same, loop_meta_gradient, meta_gradient
from tests.registry import every

pytestmark = pytest.mark.usefixtures("float64")


def task(support, query):
    return Episode(*(torch.randn(n, d) for n, d in [(support, 3), (support, 1), (query, 3), (query, 1)]))


TASKS = [(4, 6), (7, 3), (5, 5)]


class Gated(nn.Module):
    """Couples examples by a gate that training opens."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 8), nn.Linear(8, 1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return self.head(hidden + self.gate * hidden.mean(0))


@pytest.mark.parametrize("compile", [None, False])
def test_a_gate_that_opens_in_training_has_each_tasks_own_gradient(compile):
    model = Gated()
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=compile)
    for gate in (0.0, 0.0, 0.8):
        with torch.no_grad():
            model.gate.fill_(gate)
        tasks = [task(*sizes) for sizes in TASKS]
        found = meta_gradient(learner, collate_episodes(tasks))[1]
        alone = [loop_meta_gradient(model, nn.MSELoss(), collate_episodes([one]), 0.1, 2)[1] for one in tasks]
        assert_same(found, {n: sum(own[n] for own in alone) / len(alone) for n in found})


@every(lambda entry: not entry.classes_only and not entry.draws)
def test_other_learners_are_not_misled_either(entry):
    learner = entry.learner(Gated(), inner_lr=0.05, inner_steps=2)
    tasks = [task(*sizes) for sizes in TASKS]
    together = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [meta_gradient(learner, collate_episodes([one]))[1] for one in tasks]
    assert_same(together, {n: sum(own[n] for own in alone) / len(alone) for n in together}, 1e-9)


def test_functions_of_the_users_own_need_no_thought_of_masks():
    class Smooth(MAML):
        def task_loss(self, meta, task):
            loss, result = super().task_loss(meta, task)
            return loss + self.call_model(self.model_parameters(meta), task.query_x).square().mean(), result

    class Unweighted(CNP):
        def encode(self, meta, known, support):
            return super().encode(meta, known, support._replace(mask=None))

    tasks = [task(*sizes) for sizes in TASKS]
    for learner in (Smooth(nn.Linear(3, 1), nn.MSELoss(), inner_lr=0.1), Unweighted(nn.Linear(3, 1), nn.MSELoss())):
        together = meta_gradient(learner, collate_episodes(tasks))[1]
        alone = [meta_gradient(learner, collate_episodes([one]))[1] for one in tasks]
        assert_same(together, {n: sum(own[n] for own in alone) / len(alone) for n in together})


def images(*layers):
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))


class Residual(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.mean(0)


def hooked():
    layer = nn.Linear(3, 2)
    layer.register_forward_hook(lambda module, inputs, output: output - output.mean(0))
    return layer


def patched():
    layer = nn.Linear(3, 2)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) + x.mean(0)[:2]
    return layer


APART = {
    "mlp": (MLP(3, 1), (5, 3)),
    "linear layers on tokens": (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)), (5, 6, 3)),
    "group norm": (images(nn.GroupNorm(2, 4)), (5, 2, 4, 4)),
    "instance norm": (images(nn.InstanceNorm2d(4)), (5, 2, 4, 4)),
    "embedding": (nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2), nn.Softmax(-1)), (5, 3)),
    "flatten a part": (nn.Sequential(nn.Flatten(1, 2), nn.Linear(4, 2)), (5, 2, 3, 4)),
    "nested": (nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 1)), (5, 3)),
}
TOGETHER = {
    "batch norm": (images(nn.BatchNorm2d(4)), (5, 2, 4, 4)),
    "conv4": (Conv4(5, 2, 4), (5, 2, 28, 28)),
    "examples as channels": (nn.Sequential(nn.Conv1d(5, 5, 1)), (5, 3)),
    "examples as features": (nn.Linear(5, 1), (5,)),
    "softmax over examples": (nn.Sequential(nn.Linear(3, 2), nn.Softmax(0)), (5, 3)),
    "softmax over examples, from behind": (nn.Sequential(nn.Linear(3, 2), nn.LogSoftmax(-2)), (5, 3)),
    "softmax2d without a batch": (nn.Softmax2d(), (5, 3, 3)),
    "flattened examples": (nn.Sequential(nn.Flatten(0), nn.Linear(15, 2)), (5, 3)),
    "flattened from behind": (nn.Sequential(nn.Flatten(-2), nn.Linear(15, 2)), (5, 3)),
    "norm over examples": (nn.LayerNorm([5, 3]), (5, 3)),
    "attention over examples": (nn.TransformerEncoderLayer(4, 2, batch_first=True), (5, 4)),
    "recurrent": (nn.Sequential(nn.LSTM(3, 2)), (5, 2, 3)),
    "derived": (Residual(3, 3), (5, 3)),
    "hooked": (hooked(), (5, 3)),
    "patched": (patched(), (5, 3)),
    "parametrized": (weight_norm(nn.Linear(3, 2)), (5, 3)),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_known_to_keep_examples_apart_does(name):
    model, shape = APART[name]
    x = torch.randint(9, shape) if name == "embedding" else torch.randn(shape)
    model.double()
    output = model(x)
    assert dims_after(model, x.ndim, "batch") == output.ndim
    torch.testing.assert_close(torch.cat([model(one) for one in x.split(1)]), output)


@pytest.mark.parametrize("name", TOGETHER)
def test_what_may_couple_examples_is_not_trusted(name):
    model, shape = TOGETHER[name]
    assert dims_after(model, len(shape), "batch") is None


def test_batch_normalization_by_stored_statistics_keeps_examples_apart():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    learner = MAML(copy.deepcopy(model), nn.MSELoss(), batch_statistics="running")
    assert dims_after(learner.model, 2, "running") == 2
    assert dims_after(learner.model, 2, "batch") is None
    model[1].track_running_stats, model[1].running_mean, model[1].running_var = False, None, None
    assert dims_after(model.eval(), 2, "running") is None


def test_layers_known_to_keep_examples_apart_still_train_in_one_piece():
    seen = []

    learner = MAML(MLP(3, 1), nn.MSELoss(), compile=False)
    own = learner._mapping._summed_gradients
    learner._mapping._summed_gradients = lambda meta, piece: seen.append(piece.num_tasks) or own(meta, piece)
    learner.training_step(collate_episodes([task(*sizes) for sizes in TASKS]), 0)
    assert seen == [3]
