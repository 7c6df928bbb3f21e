"""Errors of implicit MAML's adjoint, against dense Hessians and closed forms."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from lightning_meta import MAML, MLP, ImplicitMAML
from lightning_meta.analysis import adjoint_errors
from lightning_meta.analysis.hessians import cg_error_bound
from lightning_meta.cli.analyze.adjoint_part import adjoint_advice
from tests.registry import BY_NAME


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))


def dense(learner, batch, task):
    """A, b, Λ and the inner gradient of a task, by explicit Hessians at the point where a plain loop stops."""
    x, y, query_x, query_y = (
        getattr(batch, name)[task].double() for name in ("support_x", "support_y", "query_x", "query_y")
    )
    names = list(learner.adapted_names)
    start = {name: p.detach().double() for name, p in learner.model.named_parameters()}
    sizes = [start[name].numel() for name in names]
    strengths = torch.cat([torch.full((start[n].numel(),), learner.prox_strength.initial[n]) for n in names]).double()

    def loss(flat, x, y):
        own = {n: piece.reshape(start[n].shape) for n, piece in zip(names, flat.split(sizes), strict=True)}
        return nn.functional.mse_loss(functional_call(learner.model, {**start, **own}, (x,)), y)

    anchor = torch.cat([start[name].flatten() for name in names])
    point = anchor.clone()
    for _ in range(learner.inner_steps):
        point = point - learner.inner_lr * (jacrev(loss)(point, x, y) + strengths * (point - anchor))
    system = jacrev(jacrev(loss))(point, x, y) + torch.diag(strengths)
    inner = jacrev(loss)(point, x, y) + strengths * (point - anchor)
    slope, of_query = jacrev(loss)(point, query_x, query_y), jacrev(jacrev(loss))(point, query_x, query_y)
    return (value.numpy() for value in (system, slope, strengths, inner, of_query))


def plain_cg(system, b, steps, start):
    """The textbook's iterates."""
    x, found = start, []
    residual = b - system @ x
    direction = residual
    for _ in range(steps):
        length = residual @ residual / (direction @ system @ direction)
        x, after = x + length * direction, residual - length * (system @ direction)
        direction = after + (after @ after) / (residual @ residual) * direction
        residual = after
        found.append(x)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"prox_lambda": 2.0, "cg_steps": 3},
        {"prox_lambda": {"2.*": 3.0, "*": 2.0}, "cg_steps": 2},
        {"prox_lambda": 2.0, "cg_steps": 4, "cg_damping": 0.5},
        {"prox_lambda": 2.0, "cg_steps": 2, "cg_warm_start": True},
        {"prox_lambda": 1.0, "cg_steps": 2, "adapt": "head"},
    ],
    ids=["one λ", "λ by tensor", "damping", "warm start", "head"],
)
def test_errors_eigenvalues_and_bounds_are_those_of_the_dense_system(options):
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.05, inner_steps=5, **options)
    batch = BY_NAME["MAML"].batch(3)
    found = adjoint_errors(learner, batch, steps=4, seed=1)
    assert found.positive_definite.all()
    assert found.solved.all()
    own, damping = learner.meta_gradient.cg_steps, options.get("cg_damping", 0.0)
    for task in range(3):
        system, b, strengths, inner, of_query = dense(learner, batch, task)
        exact = np.linalg.solve(system, b)
        start = b / strengths if options.get("cg_warm_start") else np.zeros_like(b)
        iterates = plain_cg(system + damping * np.eye(len(b)), b, max(4, own), start)
        expected = [np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in iterates[:4]]
        np.testing.assert_allclose(found.errors[task], expected, rtol=1e-4, atol=1e-9)
        size = np.linalg.norm(strengths * exact)
        error = np.linalg.norm(strengths * (iterates[own - 1] - exact)) / size
        assert float(found.own_error[task]) == pytest.approx(error, rel=1e-5)
        residual = np.linalg.norm(b - system @ iterates[own - 1])
        assert float(found.own_residual[task]) == pytest.approx(residual / np.linalg.norm(b), rel=1e-5)
        values = np.linalg.eigvalsh(system)
        assert float(found.condition[task]) == pytest.approx(values[-1] / values[0], rel=1e-6)
        assert float(found.stationarity[task]) == pytest.approx(np.linalg.norm(inner), rel=1e-6)
        bound = strengths.max() * residual / (values[0] * size)
        assert float(found.solver_bound[task]) == pytest.approx(bound, rel=1e-5)
        assert error <= bound
        moved = np.linalg.norm(inner) / values[0]
        largest = np.abs(np.linalg.eigvalsh(of_query)).max()
        bound = strengths.max() * largest * moved / (values[0] * size)
        assert float(found.inner_bound[task]) == pytest.approx(bound, rel=1e-5)


def test_a_quadratic_has_the_errors_of_its_closed_form_within_both_bounds():
    torch.manual_seed(0)
    learner = ImplicitMAML(
        nn.Linear(3, 1, bias=False), nn.MSELoss(), inner_lr=0.02, inner_steps=4, prox_lambda=0.5, cg_steps=2
    )
    batch = BY_NAME["MAML"].batch(2, features=3, support=7)
    found = adjoint_errors(learner, batch, steps=3)
    theta = learner.model.weight.detach().double()[0].numpy()
    for task in range(2):
        x, y, z, t = (
            getattr(batch, f)[task].double().numpy() for f in ("support_x", "support_y", "query_x", "query_y")
        )
        hessian, of_query = 2 * x.T @ x / len(x), 2 * z.T @ z / len(z)
        system = hessian + 0.5 * np.eye(3)
        solution = np.linalg.solve(system, 2 * x.T @ y[:, 0] / len(x) + 0.5 * theta)  # φ*

        def slope(at, of_query=of_query, z=z, t=t):
            return of_query @ at - 2 * z.T @ t[:, 0] / len(z)

        point = theta
        for _ in range(4):
            point = point - 0.02 * (system @ (point - solution))
        at_point, at_solution = (0.5 * np.linalg.solve(system, slope(at)) for at in (point, solution))
        error = np.linalg.norm(at_point - at_solution) / np.linalg.norm(at_point)
        assert error <= float(found.inner_bound[task])
        assert float(found.inner_bound[task]) < 100 * error  # a bound, but no empty one
        iterates = plain_cg(system, slope(point), 3, np.zeros(3))
        exact = iterates[-1]  # three steps solve a system of three unknowns
        assert float(found.own_error[task]) == pytest.approx(
            np.linalg.norm(iterates[1] - exact) / np.linalg.norm(exact), rel=1e-4
        )
        assert float(found.errors[task, 2]) < 1e-6
        energy = [np.sqrt((x - exact) @ system @ (x - exact) / (exact @ system @ exact)) for x in iterates[:2]]
        for steps, measured in enumerate(energy, start=1):
            assert measured <= cg_error_bound(float(found.condition[task]), steps)


def test_an_indefinite_system_has_no_errors_and_no_bounds():
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.01, inner_steps=1, prox_lambda=1e-3)
    found = adjoint_errors(learner, BY_NAME["MAML"].batch(4), steps=3)
    assert not found.positive_definite.any()
    assert found.smallest.lt(0).all()
    for values in (found.errors, found.own_error, found.condition, found.solver_bound, found.inner_bound):
        assert values.isnan().all()
    assert found.steps_for(0.5).isnan().all()


def test_a_reference_that_has_not_converged_is_not_used():
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.05, inner_steps=5)
    found = adjoint_errors(learner, BY_NAME["MAML"].batch(2), steps=2, reference_steps=1)
    assert found.positive_definite.all()
    assert not found.solved.any()
    assert found.errors.isnan().all()


def test_steps_for_a_tolerance_are_the_first_that_suffice():
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.05, inner_steps=5)
    found = adjoint_errors(learner, BY_NAME["MAML"].batch(3), steps=6)
    needed = found.steps_for(0.05)
    for task, steps in enumerate(needed.long().tolist()):
        assert found.errors[task, steps - 1] <= 0.05
        assert steps == 1 or found.errors[task, steps - 2] > 0.05
    assert found.steps_for(1e-30).isinf().all()


def test_a_task_does_not_depend_on_its_batch_and_the_learner_stays_as_it_is():
    torch.manual_seed(0)
    learner = ImplicitMAML(MLP(1, 1, hidden=[8]), nn.MSELoss(), inner_steps=3, learned_lambda="tensor").train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    batch = BY_NAME["MAML"].batch(4)
    together = adjoint_errors(learner, batch, steps=5)
    alone = adjoint_errors(learner, batch.select(slice(1, 2)), steps=5)
    torch.testing.assert_close(together.errors[1:2], alone.errors, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(together.largest[1:2], alone.largest)
    assert learner.training
    for name, value in learner.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_definite_tasks_among_indefinite_ones_have_the_errors_that_they_have_alone():
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.05, inner_steps=5, prox_lambda=0.5)
    torch.manual_seed(0)
    batch = BY_NAME["MAML"].batch(6)
    found = adjoint_errors(learner, batch, steps=3)
    assert 0 < found.positive_definite.sum() < 6
    for task in range(6):
        alone = adjoint_errors(learner, batch.select(slice(task, task + 1)), steps=3)
        for name, value in found._asdict().items():
            if name != "own_steps":
                torch.testing.assert_close(value[task], getattr(alone, name)[0], rtol=1e-6, atol=1e-9, equal_nan=True)


def test_the_advised_damping_makes_the_systems_positive_definite():
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.05, inner_steps=5, prox_lambda=0.1)
    torch.manual_seed(0)
    batch = BY_NAME["MAML"].batch(3)
    (sentence,) = (text for text in adjoint_advice(adjoint_errors(learner, batch, steps=3)) if "cg_damping" in text)
    damping = float(re.search(r"cg_damping above about ([\d.]+)", sentence)[1])
    least = [np.linalg.eigvalsh(next(dense(learner, batch, task)))[0] for task in range(3)]
    assert min(least) < 0
    assert min(least) + 1.1 * damping > 0


def test_other_learners_and_a_solver_that_diverges_are_refused():
    with pytest.raises(TypeError, match="must be an ImplicitMAML.* not MAML"):
        adjoint_errors(MAML(network(), nn.MSELoss()), BY_NAME["MAML"].batch())
    wild = ImplicitMAML(network(), nn.MSELoss(), inner_lr=1e6, inner_steps=200)
    with pytest.raises(ValueError, match="diverges: lower inner_lr"):
        adjoint_errors(wild, BY_NAME["MAML"].batch())
