from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode, collate_episodes
from lightning_meta.models import TaskBatchNorm2d
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def batch():
    return Episode(torch.randn(3, 6, 3), torch.randint(2, (3, 6)), torch.randn(3, 5, 3), torch.randint(2, (3, 5)))


def test_evaluation_uses_the_batch_by_default(model, batch):
    learner = MAML(model, inner_lr=0.1)
    in_training = learner.predict_step(batch)
    learner.eval()
    torch.testing.assert_close(learner.predict_step(batch), in_training)


def test_running_statistics_stay_and_are_used(model, batch):
    learner = MAML(model, inner_lr=0.1, batch_statistics="running")
    learner.train()
    before = copy.deepcopy(dict(model.named_buffers()))
    _, gradient = meta_gradient(learner, batch)
    # The same network with normalization written out as the fixed affine map it then is.
    norm = model[1]

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = (
                nn.Parameter(norm.weight.detach().clone()),
                nn.Parameter(norm.bias.detach().clone()),
            )

        def forward(self, x):
            return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * self.weight + self.bias

    plain = nn.Sequential(copy.deepcopy(model[0]), Fixed(), nn.Tanh(), copy.deepcopy(model[3]))
    assert_same(gradient, loop_meta_gradient(plain, nn.CrossEntropyLoss(), batch, 0.1, 1)[1])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_support_statistics_make_queries_independent(model, batch):
    learner = MAML(model, inner_lr=0.1, batch_statistics="support").eval()
    outputs = learner.predict_step(batch)
    other = batch._replace(query_x=torch.cat([batch.query_x[:, :1], torch.randn(3, 4, 3)], dim=1))
    torch.testing.assert_close(learner.predict_step(other)[:, 0], outputs[:, 0])
    transductive = MAML(model, inner_lr=0.1).eval()
    assert not torch.allclose(transductive.predict_step(other)[:, 0], transductive.predict_step(batch)[:, 0])
    # By hand: the query in one batch with the support set, through the adapted network.
    task = learner.adapt(batch.support_x[0], batch.support_y[0])
    together = torch.cat([batch.support_x[0], batch.query_x[0, :1]])
    expected = learner.query_output({f"model.{n}": p for n, p in model.named_parameters()}, task.state, together)[-1]
    torch.testing.assert_close(outputs[0, 0], expected)


@pytest.mark.parametrize("tracking", [True, False])
def test_normalization_that_does_not_show_yet_keeps_padding_out(tracking):
    """A gate at 0 hides it in every output, but not in the gate's gradient."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.layer = nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=tracking)
            self.gate = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            hidden = self.hidden(x)
            return hidden + self.gate * self.layer(hidden)

    model, sizes = Gated(), [(4, 5), (7, 3)]
    tasks = [Episode(torch.randn(s, 3), torch.randn(s, 2), torch.randn(q, 3), torch.randn(q, 2)) for s, q in sizes]
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2)
    found = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [loop_meta_gradient(model, nn.MSELoss(), collate_episodes([task]), 0.1, 2)[1] for task in tasks]
    assert_same(found, {name: (alone[0][name] + alone[1][name]) / 2 for name in found})


def test_layers_that_cannot_run_per_task_are_refused():
    with pytest.raises(TypeError, match="model.0 is a SyncBatchNorm"):
        MAML(nn.Sequential(nn.SyncBatchNorm(3), nn.Linear(3, 2)))
    with pytest.raises(TypeError, match="model.1 is a lazy module"):
        MAML(nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2)))
    with pytest.raises(TypeError, match="model.0 is a TaskBatchNorm2d, which keeps none"):
        MAML(nn.Sequential(TaskBatchNorm2d(3), nn.Conv2d(3, 2, 1)), batch_statistics="running")
    with pytest.raises(ValueError, match="batch_statistics='eval' is not one of"):
        MAML(nn.Linear(3, 2), batch_statistics="eval")
