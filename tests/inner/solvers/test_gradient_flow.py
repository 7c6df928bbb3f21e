"""Gradient flow of a linear layer, against integration of its weights, matrix exponentials and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_meta.inner.solvers.gradient_flow import CrossEntropy, SquaredError, gradient_flow

pytestmark = pytest.mark.usefixtures("float64")
EXAMPLES, FEATURES, OUTPUTS = 5, 4, 3


@pytest.fixture
def features():
    return torch.randn(EXAMPLES, FEATURES, requires_grad=True)


@pytest.fixture
def weight():
    return torch.randn(OUTPUTS, FEATURES, requires_grad=True)


def cross_entropy(mask=None):
    weights = torch.ones(EXAMPLES) if mask is None else mask.double()
    return CrossEntropy(torch.randn(EXAMPLES, OUTPUTS).softmax(1), weights / weights.sum())


def squared_error():
    return SquaredError(torch.randn(EXAMPLES, OUTPUTS), torch.full((EXAMPLES,), 1 / EXAMPLES))


def value(loss, outputs):
    """The loss by torch's own functions."""
    if isinstance(loss, SquaredError):
        return (loss.weights * F.mse_loss(outputs, loss.targets, reduction="none").mean(1)).sum()
    return (loss.weights * F.cross_entropy(outputs, loss.targets, reduction="none")).sum()


def flowed(loss, features, weight, time, steps=64, forward=True):
    """The layer after a time."""
    s = gradient_flow(loss, features @ weight.mT, features @ features.mT, time, steps, forward)
    return weight - s.mT @ features


def integrated(loss, features, weight, time, steps):
    """The layer after very small steps of gradient descent."""
    features, weight = features.detach(), weight.detach().clone().requires_grad_()
    for _ in range(steps):
        (slope,) = torch.autograd.grad(value(loss, features @ weight.mT), weight)
        with torch.no_grad():
            middle = (weight - time / (2 * steps) * slope).requires_grad_()
        (slope,) = torch.autograd.grad(value(loss, features @ middle.mT), middle)
        weight = (weight.detach() - time / steps * slope).requires_grad_()
    return weight.detach()


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
@pytest.mark.parametrize("forward", [True, False])
def test_it_is_the_limit_of_small_steps(loss, forward, features, weight):
    loss, time = loss(), torch.tensor(3.0)
    found = flowed(loss, features, weight, time, 64, forward).detach()
    torch.testing.assert_close(found, integrated(loss, features, weight, time, 400), rtol=1e-4, atol=1e-5)
    assert (found - weight).norm() > 0.1


@pytest.mark.parametrize("time", [0.1, 2.0, 20.0])
def test_the_flow_of_squared_errors_is_a_matrix_exponential(time, features, weight):
    loss = squared_error()
    rate = 2 / (EXAMPLES * OUTPUTS)
    best, *_ = torch.linalg.lstsq(features.detach(), loss.targets)  # [features, outputs]
    shrunk = torch.linalg.matrix_exp(-time * rate * features.mT @ features)
    expected = best.mT + (weight - best.mT) @ shrunk
    found = flowed(loss, features, weight, torch.tensor(time), 256)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    probe = torch.randn_like(found)
    slopes = [torch.autograd.grad((each * probe).sum(), weight)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_derivatives_by_features_weight_and_time_are_those_of_finite_differences(loss, features, weight):
    loss, time = loss(), torch.tensor(3.0, requires_grad=True)
    probe = torch.randn(OUTPUTS, FEATURES)

    def probed(*arguments):
        return (flowed(loss, *arguments, 8) * probe).sum()  # few steps: the derivatives are those of what is computed

    inputs = (features, weight, time)
    slopes = torch.autograd.grad(probed(*inputs), inputs)
    for position, (own, slope) in enumerate(zip(inputs, slopes, strict=True)):
        direction = torch.randn_like(own)
        moved = [[*inputs] for _ in range(2)]
        for sign, arguments in zip((1, -1), moved, strict=True):
            arguments[position] = own.detach() + sign * 1e-5 * direction
        difference = (probed(*moved[0]) - probed(*moved[1])) / 2e-5
        torch.testing.assert_close((slope * direction).sum(), difference.detach(), rtol=1e-7, atol=1e-9)
        assert slope.any()


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_forward_and_reverse_derivatives_are_the_same(loss, features, weight):
    loss, time = loss(), torch.tensor(3.0, requires_grad=True)
    found = []
    for forward in (True, False):
        layer = flowed(loss, features, weight, time, 8, forward)
        found.append((layer.detach(), *torch.autograd.grad(layer.sin().sum(), (features, weight, time))))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def saved_bytes(steps, forward, features, weight):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        flowed(squared_error(), features, weight, torch.tensor(1.0, requires_grad=True), steps, forward)
    return sum(saved)


def test_memory_does_not_grow_with_the_steps(features, weight):
    assert saved_bytes(4, True, features, weight) == saved_bytes(40, True, features, weight) > 0
    assert saved_bytes(40, False, features, weight) > 5 * saved_bytes(4, False, features, weight)


def test_padding_changes_nothing(features, weight):
    mask = torch.arange(EXAMPLES) < 3
    loss = cross_entropy(mask)
    alone = CrossEntropy(loss.targets[:3], loss.weights[:3])
    time = torch.tensor(3.0)
    padded, short = flowed(loss, features, weight, time), flowed(alone, features[:3], weight, time)
    torch.testing.assert_close(padded, short)
    slopes = [torch.autograd.grad(each.sin().sum(), features)[0] for each in (padded, short)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_the_largest_curvature_bounds_that_of_each_example(loss):
    loss = loss()
    outputs = torch.randn(EXAMPLES, OUTPUTS)
    hessian = torch.autograd.functional.hessian(lambda z: value(loss, z), outputs)
    largest = torch.stack([torch.linalg.eigvalsh(hessian[i, :, i]).max() for i in range(EXAMPLES)])
    assert (largest <= loss.weights * loss.largest_curvature() + 1e-12).all()
