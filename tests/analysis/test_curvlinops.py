"""Curvature beside curvlinops, whose Hessians are linear operators of one task at a time, and scipy's eigensolver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.func import grad, vjp

from lightning_meta import MAML, MLP, Episode
from lightning_meta.analysis.hessians import curvature
from lightning_meta.analysis.inner_problem import flattened, support_loss
from tests.registry import BY_NAME

curvlinops = pytest.importorskip("curvlinops", reason="make test-peers installs curvlinops")

# Forward mode loads torch's own decompositions, which it still scripts.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def regression() -> tuple[MAML, Episode]:
    torch.manual_seed(0)
    learner = MAML(MLP(1, 1, hidden=[10, 10]), nn.MSELoss()).double()
    batch = BY_NAME["MAML"].batch(3)
    names = ("support_x", "support_y", "query_x", "query_y")
    return learner, batch._replace(**{name: getattr(batch, name).double() for name in names})


def images() -> tuple[MAML, Episode]:
    torch.manual_seed(0)
    # Without batch normalization: the derivatives that curvlinops takes of its weights inside of vmap are wrong, as
    # finite differences show, with which test_hessians.py compares ours.
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    learner = MAML(nn.Sequential(*layers, nn.Linear(144, 3))).double()
    x, y = torch.randn(3, 6, 1, 28, 28).double(), torch.arange(6).repeat(3, 1) % 3
    return learner, BY_NAME["ProtoNet"].batch(3)._replace(support_x=x, support_y=y, query_x=x, query_y=y)


def operator(learner: MAML, batch: Episode, task: int):
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    data = [(batch.support_x[task], batch.support_y[task])]
    return curvlinops.HessianLinearOperator(learner.model, learner.loss_fn, parameters, data)


@pytest.mark.parametrize("case", [regression, images], ids=["MLP", "convolutions"])
def test_extreme_eigenvalues_are_those_of_curvlinops(case):
    learner, batch = case()
    found = curvature(learner, batch, steps=40)
    for task in range(3):
        linear = operator(learner, batch, task).to_scipy()
        largest, smallest = (eigsh(linear, k=1, which=which, return_eigenvectors=False)[0] for which in ("LA", "SA"))
        assert float(found.largest[task]) == pytest.approx(largest, rel=1e-6)
        assert float(found.smallest[task]) == pytest.approx(smallest, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", [regression, images], ids=["MLP", "convolutions"])
def test_products_are_those_of_curvlinops(case):
    learner, batch = case()
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    for task in range(3):
        point, loss = support_loss(learner, meta, batch.select(task).support)
        _, pull_back = vjp(grad(loss), point)
        vector = torch.randn(sum(leaf.numel() for leaf in point.values()), dtype=torch.float64)
        own = flattened(lambda shaped, by=pull_back: by(shaped)[0], point)(vector)
        theirs = operator(learner, batch, task) @ vector
        np.testing.assert_allclose(own.numpy(), theirs.detach().numpy(), rtol=1e-8, atol=1e-10)
