"""The support vector machine against a generic solver of its primal, and its derivative against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch.func import grad, grad_and_value, vmap

from lightning_meta.inner.solvers.support_vectors import support_vectors

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 20


def made(ways, shots, size, scale=1.0, seed=0):
    """Examples that overlap, or are separable where they have more features than examples; labels as one-hot rows."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(ways * shots) % ways
    centers = torch.randn(ways, size, generator=generator)
    x = scale * (centers[y] + 0.7 * torch.randn(ways * shots, size, generator=generator))
    return x, F.one_hot(y, ways)


def primal(x, one_hot, cost):
    """The primal by sequential quadratic programming, over weights and slacks: the weights and the objective."""
    x, y = x.detach().numpy(), one_hot.numpy()
    (examples, size), ways = x.shape, y.shape[1]

    def margins(z):
        weight, slack = z[: size * ways].reshape(size, ways), z[size * ways :]
        scores = x @ weight
        return ((scores * y).sum(1, keepdims=True) - scores - (1 - y) + slack[:, None]).ravel()

    def objective(z):
        return 0.5 * (z[: size * ways] ** 2).sum() + cost * z[size * ways :].sum()

    def slope(z):
        return np.concatenate([z[: size * ways], np.full(examples, cost)])

    start = np.concatenate([np.zeros(size * ways), np.ones(examples)])
    constant = margins(np.zeros_like(start))
    linear = np.stack([margins(unit) - constant for unit in np.eye(len(start))], axis=1)
    constraint = {"type": "ineq", "fun": margins, "jac": lambda _: linear}
    options = {"maxiter": 500, "ftol": 1e-15}
    found = minimize(objective, start, jac=slope, constraints=[constraint], method="SLSQP", options=options)
    return found.x[: size * ways].reshape(size, ways), found.fun


CASES = [(3, 1, 4, 1.0, 0.1), (3, 2, 4, 1.0, 1.0), (2, 4, 2, 1.0, 0.1), (3, 3, 2, 1.0, 10.0), (3, 2, 8, 5.0, 0.1)]


@pytest.mark.parametrize(("ways", "shots", "size", "scale", "cost"), CASES)
def test_weights_are_those_of_the_primal(ways, shots, size, scale, cost):
    x, one_hot = made(ways, shots, size, scale)
    solution = support_vectors(x, one_hot, None, cost, STEPS)
    expected, objective = primal(x, one_hot, cost)
    np.testing.assert_allclose(solution.weight.numpy(), expected, atol=2e-6 * max(1, np.abs(expected).max()))
    assert 0 <= float(solution.gap) < 1e-7 * max(1.0, cost)
    scores = x @ solution.weight
    worst = (scores + 1 - one_hot).amax(1) - (scores * one_hot).sum(1)
    own = 0.5 * solution.weight.square().sum() + cost * worst.sum()
    assert float(own) == pytest.approx(objective, rel=1e-6)


@pytest.mark.parametrize(
    ("ways", "shots", "size", "scale", "cost"), [*CASES, (5, 1, 64, 1.0, 0.1), (20, 2, 16, 1.0, 0.1)]
)
def test_derivative_is_that_of_the_solution(ways, shots, size, scale, cost):
    x, one_hot = made(ways, shots, size, scale, seed=1)
    generator = torch.Generator().manual_seed(2)
    direction = scale * torch.randn(x.shape, generator=generator)
    probe = torch.randn(size, ways, generator=generator)

    def value(x):
        return (support_vectors(x, one_hot, None, cost, STEPS).weight * probe).sum()

    slope = float((grad(value)(x) * direction).sum())
    step = 1e-6
    difference = float(value(x + step * direction) - value(x - step * direction)) / (2 * step)
    assert slope == pytest.approx(difference, rel=2e-4, abs=1e-6)
    assert abs(difference) > 1e-4


def test_a_value_is_the_same_with_and_without_derivative():
    x, one_hot = made(3, 2, 4)
    weight = support_vectors(x, one_hot, None, 0.1, STEPS).weight
    probe = torch.linspace(0, 1, weight.numel()).reshape(weight.shape)
    _, value = grad_and_value(lambda x: (support_vectors(x, one_hot, None, 0.1, STEPS).weight * probe).sum())(x)
    assert float(value) == pytest.approx(float((weight * probe).sum()), rel=1e-12)


def test_padding_and_absent_classes_change_nothing():
    x, one_hot = made(3, 2, 4)
    expected = support_vectors(x, one_hot, None, 0.1, STEPS)
    padded = torch.cat([x, torch.full((2, 4), torch.nan)])
    labels = F.pad(one_hot, (1, 1, 0, 2))  # classes without examples, and rows of padding
    mask = torch.tensor([True] * 6 + [False] * 2)
    found = support_vectors(padded, labels, mask, 0.1, STEPS)
    torch.testing.assert_close(found.weight[:, 1:4], expected.weight, rtol=1e-9, atol=1e-12)
    assert (found.weight[:, [0, 4]] == 0).all()
    assert float(found.gap) == pytest.approx(float(expected.gap), abs=1e-9)

    def value(padded, real):
        x = torch.where(mask[:, None], padded, 0) if real is None else real
        sizes = (labels, mask) if real is None else (one_hot, None)
        return support_vectors(x, *sizes, 0.1, STEPS).weight.square().sum()

    slopes = grad(value)(padded, None)
    torch.testing.assert_close(slopes[:6], grad(lambda real: value(padded, real))(x), rtol=1e-7, atol=1e-10)
    assert (slopes[6:] == 0).all()


def test_tasks_are_solved_together_as_each_alone():
    """Easy and hard tasks need different numbers of steps."""
    sets = [made(3, 2, 4, scale, seed) for seed, scale in enumerate((0.01, 1.0, 30.0))]
    x, one_hot = torch.stack([x for x, _ in sets]), sets[0][1]

    def value(x):
        return support_vectors(x, one_hot, None, 1.0, STEPS).weight.square().sum()

    slopes, values = vmap(grad_and_value(value))(x)
    for slope, found, alone in zip(slopes, values, x, strict=True):
        torch.testing.assert_close(found, value(alone), rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(slope, grad(value)(alone), rtol=1e-5, atol=1e-10)


def test_identical_examples_of_one_class_count_twice():
    """Two copies at cost C are one example at cost 2 C; their α are not unique, the weights are."""
    x, one_hot = made(3, 1, 4)
    twice = support_vectors(x.repeat(2, 1), one_hot.repeat(2, 1), None, 0.1, STEPS)
    torch.testing.assert_close(twice.weight, support_vectors(x, one_hot, None, 0.2, STEPS).weight, rtol=1e-6, atol=1e-9)
    slope = grad(lambda x: support_vectors(x, one_hot.repeat(2, 1), None, 0.1, STEPS).weight.square().sum())
    both = slope(x.repeat(2, 1))
    once = grad(lambda x: support_vectors(x, one_hot, None, 0.2, STEPS).weight.square().sum())(x)
    torch.testing.assert_close(both[:3] + both[3:], once, rtol=1e-4, atol=1e-7)  # both copies move


@pytest.mark.parametrize("x", [torch.zeros(6, 4), torch.ones(6, 4)], ids=["zeros", "equal"])
def test_examples_without_a_difference_have_no_weights(x):
    x, one_hot = x.double(), torch.eye(3).repeat(2, 1)

    def value(x):
        return support_vectors(x, one_hot, None, 0.1, STEPS).weight.square().sum()

    slope, found = grad_and_value(value)(x)
    assert float(found) < 1e-12
    assert torch.isfinite(slope).all()


def test_a_single_class_has_no_weights():
    solution = support_vectors(torch.randn(4, 3), torch.ones(4, 1), None, 0.1, STEPS)
    assert (solution.weight == 0).all()
    assert float(solution.gap) == 0


def test_single_precision_is_solved_in_double():
    x, one_hot = made(3, 2, 4)
    expected = support_vectors(x, one_hot, None, 0.1, STEPS).weight
    with torch.autocast("cpu", torch.bfloat16):
        found = support_vectors(x.float(), one_hot, None, 0.1, STEPS).weight
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_gap_tells_what_is_not_solved():
    x, one_hot = made(3, 2, 4)
    gaps = [float(support_vectors(x, one_hot, None, 1.0, steps).gap) for steps in (1, 4, STEPS)]
    assert gaps[0] > 1e-2 > gaps[1] > 1e-6 > gaps[2]
