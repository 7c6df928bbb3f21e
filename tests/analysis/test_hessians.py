"""Curvature by Lanczos, against the eigenvalues of explicit Hessians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg
from torch import nn
from torch.func import functional_call, grad, jacrev, vjp

from lightning_meta import MAML, MLP, Conv4, ImplicitMAML, ProtoNet, Reptile, collate_episodes
from lightning_meta.analysis.hessians import Curvature, cg_error_bound, cg_steps_for, curvature
from lightning_meta.analysis.inner_problem import flattened, support_loss
from lightning_meta.episodes import Support
from tests.registry import BY_NAME


def explicit(learner, names, x, y):
    """All eigenvalues of the Hessian of one task's support loss."""
    parameters = {name: p.detach() for name, p in learner.model.named_parameters()}
    sizes = [parameters[name].numel() for name in names]

    def loss(flat):
        pieces = zip(names, flat.split(sizes), strict=True)
        own = {name: piece.reshape(parameters[name].shape) for name, piece in pieces}
        return learner.loss_fn(functional_call(learner.model, {**parameters, **own}, (x,)), y)

    return torch.linalg.eigvalsh(jacrev(jacrev(loss))(torch.cat([parameters[name].flatten() for name in names])))


@pytest.mark.parametrize(
    ("cls", "options", "names"),
    [
        (MAML, {}, None),
        (MAML, {"adapt": "head"}, ["2.weight", "2.bias"]),
        (Reptile, {}, None),
        (ImplicitMAML, {}, None),
    ],
)
def test_extreme_eigenvalues_are_those_of_the_hessian(cls, options, names):
    torch.manual_seed(0)
    learner = cls(nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)), nn.MSELoss(), **options).double()
    names = names or [name for name, _ in learner.model.named_parameters()]
    batch = collate_episodes([BY_NAME["MAML"].task(support=4 + i) for i in range(3)])
    batch = batch._replace(**{f: getattr(batch, f).double() for f in ("support_x", "support_y", "query_x", "query_y")})
    found = curvature(learner, batch, steps=16)
    for task in range(3):
        real = batch.support_mask[task]
        values = explicit(learner, names, batch.support_x[task][real], batch.support_y[task][real])
        assert found.largest[task] == pytest.approx(float(values[-1]), rel=1e-8)
        assert found.smallest[task] == pytest.approx(float(values[0]), rel=1e-6, abs=1e-8)
    torch.testing.assert_close(found.stability_limit, 2 / found.largest)


def test_a_linear_models_hessian_is_its_second_moment():
    torch.manual_seed(0)
    learner = MAML(nn.Linear(3, 1, bias=False), nn.MSELoss())
    batch = BY_NAME["MAML"].batch(2, features=3, support=7)
    found = curvature(learner, batch)
    moments = 2 * batch.support_x.mT @ batch.support_x / 7
    expected = torch.linalg.eigvalsh(moments).double()
    torch.testing.assert_close(found.largest, expected[:, -1], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.smallest, expected[:, 0], rtol=1e-4, atol=0)


def test_the_spectral_density_has_the_moments_of_the_spectrum():
    torch.manual_seed(0)
    learner = MAML(MLP(1, 1, hidden=[8, 8]), nn.MSELoss()).double()
    batch = BY_NAME["MAML"].batch(1)
    batch = batch._replace(**{f: getattr(batch, f).double() for f in ("support_x", "support_y", "query_x", "query_y")})
    found = curvature(learner, batch, steps=25, probes=200)
    names = [name for name, _ in learner.model.named_parameters()]
    values = explicit(learner, names, batch.support_x[0], batch.support_y[0])
    first = (found.values * found.weights).sum(2).mean(1)
    second = (found.values.square() * found.weights).sum(2).mean(1)
    assert float(first) == pytest.approx(float(values.mean()), rel=0.2)
    assert float(second) == pytest.approx(float(values.square().mean()), rel=0.3)
    torch.testing.assert_close(found.weights.sum(2), torch.ones(1, 200, dtype=torch.float64))
    negative = values.clamp(max=0).abs().sum() / values.abs().sum()
    assert float(found.negative_share) == pytest.approx(float(negative), rel=0.3, abs=0.01)


def test_the_density_is_a_gaussian_around_each_eigenvalue():
    found = Curvature(torch.tensor([[[-1.0, 3.0]]]).double(), torch.tensor([[[0.25, 0.75]]]).double())
    points = torch.linspace(-8, 8, 4001).double()
    density = found.density(points, width=0.1, scale=0.5)[0]
    assert float(density.sum() * 16 / 4000) == pytest.approx(1, rel=1e-6)
    for value, weight in ((-1.0, 0.25), (3.0, 0.75)):
        nearest = (points - math.asinh(value / 0.5)).abs().argmin()
        assert float(density[nearest]) == pytest.approx(weight / (0.1 * math.sqrt(2 * math.pi)), rel=1e-3)


def test_a_task_does_not_depend_on_its_batch_and_images_work():
    torch.manual_seed(0)
    learner = MAML(Conv4(num_classes=3, filters=4))
    images = torch.randn(4, 6, 1, 28, 28)
    labels = torch.arange(6).repeat(4, 1) % 3
    episodes = BY_NAME["ProtoNet"].batch(4)._replace(support_x=images, support_y=labels, query_x=images, query_y=labels)
    together = curvature(learner, episodes, steps=8)
    alone = curvature(learner, episodes.select(slice(1, 2)), steps=8)
    torch.testing.assert_close(together.largest[1:2], alone.largest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("cls", [MAML, ImplicitMAML])
def test_products_through_batch_normalization_are_finite_differences_of_the_gradient(cls):
    torch.manual_seed(0)
    learner = cls(Conv4(num_classes=3, filters=4)).double()
    images, labels = torch.randn(6, 1, 28, 28).double(), torch.arange(6) % 3
    point, loss = support_loss(learner, {n: p.detach() for n, p in learner.named_parameters()}, Support(images, labels))
    gradient = flattened(lambda shaped: grad(loss)(shaped), point)
    product = flattened(lambda shaped: vjp(grad(loss), point)[1](shaped)[0], point)
    flat = torch.cat([leaf.flatten() for leaf in point.values()])
    vector = torch.randn(flat.shape, dtype=torch.float64)
    expected = (gradient(flat + 1e-6 * vector) - gradient(flat - 1e-6 * vector)) / 2e-6
    torch.testing.assert_close(product(vector), expected, rtol=1e-6, atol=1e-7)


def test_condition_numbers_and_steps_of_conjugate_gradients():
    values = torch.tensor([[[1.0, 4.0]], [[-2.0, 4.0]]], dtype=torch.float64)
    found = Curvature(values, torch.full_like(values, 0.5))
    kappa = found.condition_number(1.0)
    assert float(kappa[0]) == 2.5
    assert math.isnan(float(kappa[1]))
    assert found.negative_share.tolist() == pytest.approx([0, 1 / 3])
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(30, 30)))
    matrix = q @ np.diag(np.linspace(1, 50, 30)) @ q.T
    b = rng.normal(size=30)
    exact = np.linalg.solve(matrix, b)
    for steps in (3, 8):
        error = cg(matrix, b, maxiter=steps, rtol=0)[0] - exact
        relative = math.sqrt(error @ matrix @ error / (exact @ matrix @ exact))
        assert relative <= cg_error_bound(50, steps)
    steps = cg_steps_for(50, 1e-3)
    assert cg_error_bound(50, steps) <= 1e-3 < cg_error_bound(50, steps - 1)
    assert cg_steps_for(1e40, 1e-2) == pytest.approx(0.5e20 * math.log(2 / 1e-2))  # the ratio of roots rounds to 1


def test_other_learners_are_refused():
    with pytest.raises(ValueError, match=r"such as MAML, Reptile and ImplicitMAML, not ProtoNet"):
        curvature(ProtoNet(nn.Linear(1, 3)), BY_NAME["ProtoNet"].batch())
    with pytest.raises(ValueError, match="not BayesianMAML"):
        curvature(BY_NAME["BayesianMAML"].learner(), BY_NAME["BayesianMAML"].batch())
