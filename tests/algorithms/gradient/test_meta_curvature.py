"""Meta-Curvature against a loop over the entries of its matrices, and MAML, which it is with identities."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import MAML, Episode, MetaCurvature, MetaSGD, collate_episodes
from lightning_meta.inner import SGD, Chain, ClipNorm
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")


def network():
    return nn.Sequential(nn.Conv2d(2, 3, kernel_size=(2, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 3 * 2, 2))


def tasks(count=2):
    sizes = ((4, 2, 4, 4), (4, 2), (3, 2, 4, 4), (3, 2))
    return [Episode(*(torch.randn(size) for size in sizes)) for _ in range(count)]


def disturbed(learner):
    """The learner with matrices that are not the identity."""
    with torch.no_grad():
        for factor in learner.curvature_factors.parameters():
            factor += 0.3 * torch.randn_like(factor)
    return learner


def products(gradient, factors):
    """The products of a gradient and the matrices of its modes, entry by entry, by the definition."""
    tensor = gradient.flatten(2) if gradient.ndim > 2 else gradient
    for axis, mode in enumerate(("outputs", "inputs", "filter")[: tensor.ndim]):
        matrix = factors.get(mode)
        if matrix is not None:
            matrix = torch.diag(matrix) if matrix.ndim == 1 else matrix
            rows = [
                sum(matrix[j, i] * tensor.select(axis, i) for i in range(tensor.shape[axis]))
                for j in range(tensor.shape[axis])
            ]
            tensor = torch.stack(rows, dim=axis)
    return tensor.reshape(gradient.shape)


def loop(learner, batch, first_order):
    p = {name: own.detach().clone().requires_grad_() for name, own in learner.named_parameters()}
    names = learner.adapted_names
    losses = []
    for task in batch:
        values = {name.removeprefix("model."): own for name, own in p.items() if name.startswith("model.")}
        for _ in range(learner.inner_steps):
            loss = nn.functional.mse_loss(functional_call(learner.model, values, (task.support_x,)), task.support_y)
            slopes = torch.autograd.grad(loss, [values[name] for name in names], create_graph=not first_order)
            for name, slope in zip(names, slopes, strict=True):
                prefix = f"curvature_factors.factors.{name.replace('.', '/')}/"
                factors = {key.removeprefix(prefix): own for key, own in p.items() if key.startswith(prefix)}
                values = {**values, name: values[name] - learner.inner_lr * products(slope, factors)}
        losses.append(nn.functional.mse_loss(functional_call(learner.model, values, (task.query_x,)), task.query_y))
    loss = sum(losses) / len(losses)
    slopes = torch.autograd.grad(loss, list(p.values()), materialize_grads=True, allow_unused=True)
    return loss.detach(), dict(zip(p, slopes, strict=True))


def own_gradient(learner, batch):
    learner.zero_grad()
    loss = learner.training_step(collate_episodes(batch), 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in learner.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_order": True},
        {"task_chunk_size": 1},
        {"modes": ["outputs"]},
        {"modes": ["filter", "inputs"], "adapt": ["0.weight", "3.*"]},
        {"largest_matrix": 2},
    ],
    ids=str,
)
def test_the_meta_gradient_is_that_of_the_definition(options):
    learner = disturbed(MetaCurvature(network(), nn.MSELoss(), inner_lr=0.1, inner_steps=2, **options))
    batch = tasks()
    loss, found = own_gradient(learner, batch)
    expected_loss, expected = loop(learner, batch, options.get("first_order", False))
    torch.testing.assert_close(loss, expected_loss)
    assert_same(found, expected)
    assert all(slope.any() for name, slope in found.items() if name.startswith("curvature_factors."))


@pytest.mark.parametrize("first_order", [False, True])
def test_with_identities_it_is_maml(first_order):
    options = {"inner_lr": 0.1, "inner_steps": 3, "first_order": first_order}
    learner = MetaCurvature(network(), nn.MSELoss(), **options)
    maml = MAML(copy.deepcopy(learner.model), nn.MSELoss(), **options)
    batch = tasks()
    loss, found = own_gradient(learner, batch)
    expected_loss, expected = own_gradient(maml, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-13, atol=0)
    assert_same({name: found[name] for name in expected}, expected, 1e-12)


def test_with_diagonals_it_moves_biases_as_meta_sgd():
    """Both scale a bias's gradient entry by entry."""
    learner = MetaCurvature(nn.Linear(3, 2), nn.MSELoss(), inner_lr=0.1, adapt=["bias"], largest_matrix=1)
    other = MetaSGD(copy.deepcopy(learner.model), nn.MSELoss(), inner_lr=0.1, adapt=["bias"])
    with torch.no_grad():
        learner.curvature_factors.factors["bias/outputs"].copy_(torch.tensor([2.0, -1.0]))
        other.inner_rates.learned_rates["bias"].copy_(torch.tensor([0.2, -0.1]))
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    torch.testing.assert_close(learner.adapt(x, y)(x), other.adapt(x, y)(x))


def test_matrices_come_before_other_transforms():
    rule = Chain([ClipNorm(0.01)], SGD())
    learner = disturbed(MetaCurvature(nn.Linear(3, 2), nn.MSELoss(), inner_lr=1.0, inner_optimizer=rule))
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    task = learner.adapt(x, y)
    moved = [task.state[name] - p.detach() for name, p in learner.model.named_parameters()]
    torch.testing.assert_close(torch.cat([m.flatten() for m in moved]).norm(), torch.tensor(0.01))


def test_recomputed_steps_give_the_same_gradient():
    learner = disturbed(MetaCurvature(network(), nn.MSELoss(), inner_lr=0.1, inner_steps=5))
    options = {"inner_lr": 0.1, "inner_steps": 5, "checkpoint_inner_loop": True}
    other = MetaCurvature(copy.deepcopy(learner.model), nn.MSELoss(), **options)
    other.load_state_dict(learner.state_dict())
    batch = tasks()
    assert_same(own_gradient(other, batch)[1], own_gradient(learner, batch)[1], 1e-12)


def test_large_modes_have_diagonals():
    model = nn.Sequential(nn.Embedding(600, 4), nn.Flatten(), nn.Linear(8, 2))
    factors = MetaCurvature(model).curvature_factors.factors
    assert factors["0/weight/outputs"].shape == (600,)
    assert factors["0/weight/inputs"].shape == (4, 4)
    assert all(torch.equal(f, torch.ones(600) if f.ndim == 1 else torch.eye(len(f))) for f in factors.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": []}, r"modes=\[\] must be a list of some of"),
        ({"modes": "outputs"}, "modes='outputs' must be a list"),
        ({"modes": ["outputs", "outputs"]}, "each once"),
        ({"modes": ["rows"]}, "modes='rows' is not one of"),
        ({"modes": ["filter"], "adapt": ["3.*"]}, "no adapted tensor has one of them"),
        ({"largest_matrix": 0}, "largest_matrix=0"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        MetaCurvature(network(), nn.MSELoss(), **options)
