"""The state dictionary of an adapted task: a plain copy of the model that loads it computes what the task does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_meta import MAML, TaskLearner
from lightning_meta.models import Conv4
from tests.registry import every

INNER = {"inner_lr": 0.05, "inner_steps": 2}
HAVE_HEADS_OR_DRAWS = (
    *("ProtoNet", "MatchingNet", "RelationNet", "ProtoMAML", "BayesianMAML", "ABML", "AmortizedMAML"),
    *("Baseline", "BaselinePlusPlus", "SimpleShot", "R2D2", "MetaOptNet", "PLATIPUS", "VERSA", "DKT", "DKT-classes"),
    "PACOH",
)
HAVE_NETWORKS = ("CNP", "AttentiveNP", "TNP")


def disturb(learner):
    """Change all that a learner holds, as training or another checkpoint would."""
    with torch.no_grad():
        for tensor in learner.state_dict().values():
            tensor.add_(1)


def one_model(entry):
    return entry.name not in (*HAVE_HEADS_OR_DRAWS, *HAVE_NETWORKS)


def normalized(outputs):
    return nn.Sequential(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs))


@every(one_model)
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_a_plain_copy_computes_what_the_task_does(entry, statistics):
    model, one = normalized(entry.outputs), entry.task()
    plain = copy.deepcopy(model)
    learner = entry.learner(model, batch_statistics=statistics, **INNER).eval()
    with torch.no_grad():
        model[1].running_mean += 0.5
    task = learner.adapt(one.support_x, one.support_y)
    expected = task(one.query_x)
    disturb(learner)
    plain.load_state_dict(task.state_dict())
    with torch.no_grad():
        found = plain.train(statistics == "batch")(one.query_x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, entry.learner(copy.deepcopy(model)).model.eval()(one.query_x))


@every(lambda entry: not one_model(entry))
def test_tasks_of_another_form_say_what_to_use(entry):
    one = entry.task()
    with pytest.raises(TypeError, match=f"a task of {entry.cls.__name__} .* has no state_dict.*use export"):
        entry.learner(**INNER).adapt(one.support_x, one.support_y).state_dict()


class Tied(nn.Module):
    """Shared and frozen parameters, a buffer that is not saved, and one that is."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("shift", torch.tensor(1.0), persistent=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) * self.scale + self.shift


def test_shared_and_frozen_parameters_and_buffers_have_their_names():
    model, x, y = Tied(), torch.randn(5, 3), torch.randn(5, 3)
    plain = copy.deepcopy(model)
    task = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, adapt=["first.weight"]).adapt(x, y)
    values = task.state_dict()
    assert values.keys() == model.state_dict().keys()
    assert torch.equal(values["first.weight"], values["second.weight"])
    assert not any(value.requires_grad for value in values.values())
    plain.load_state_dict(values)
    torch.testing.assert_close(plain(x).detach(), task(x))
    with torch.no_grad():
        model.scale += 1
        model.second.bias += 1
    torch.testing.assert_close(plain(x).detach(), task(x))
    torch.testing.assert_close(task.export(x).module()(x), task(x))


def test_normalization_per_step_is_that_after_the_last_step():
    model = Conv4(3, filters=4)
    plain = copy.deepcopy(model)
    learner = MAML(model, inner_lr=0.1, inner_steps=2, batch_norm_per_step=True)
    with torch.no_grad():
        for p in learner.step_norms.parameters():
            p.add_(torch.randn_like(p))
    x, y = torch.rand(6, 1, 28, 28), torch.arange(6) % 3
    task = learner.adapt(x, y)
    plain.load_state_dict(task.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(x), task(x))


def test_a_learner_of_ones_own_has_them_if_its_state_is_parameters():
    class Doubled(MAML):
        def query_output(self, meta, state, x):
            return 2 * self.call_model({**self.model_parameters(meta), **state}, x)

    class Shifted(TaskLearner):
        def adapt_task(self, meta, support):
            return {"bias": (support.y - self.call_model(self.model_parameters(meta), support.x)).mean(0)}

        def query_output(self, meta, state, x):
            return self.call_model({**self.model_parameters(meta), **state}, x)

        def adapted_parameters(self, meta, state):
            return state

    x, y = torch.randn(5, 3), torch.randn(5, 2)
    with pytest.raises(TypeError, match="a task of Doubled .* has no state_dict"):
        Doubled(nn.Linear(3, 2), nn.MSELoss()).adapt(x, y).state_dict()
    plain, task = nn.Linear(3, 2), Shifted(nn.Linear(3, 2), nn.MSELoss()).adapt(x, y)
    plain.load_state_dict(task.state_dict())
    torch.testing.assert_close(plain(x).detach(), task(x))
