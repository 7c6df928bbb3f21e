"""Logistic regression against its own gradient, and against L-BFGS on the weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from lightning_meta.inner.solvers.logistic import logistic_regression

pytestmark = pytest.mark.usefixtures("float64")


def objective(weight, bias, x, y, penalty):
    scores = (x - x.mean(0)) @ weight + bias
    return F.cross_entropy(scores, y, reduction="sum") + penalty / 2 * (
        weight.square().sum() + bias.square().sum() / 100
    )


def examples(number, features, ways, apart=0.0, scale=1.0):
    y = torch.arange(number) % ways
    x = torch.randn(number, features) + apart * torch.randn(ways, features)[y] + 3
    return scale * x, y[torch.randperm(number)] if apart == 0 else y


def slope(x, y, penalty, weight, bias):
    """The norm of the objective's gradient, relative to that of the features."""
    inner = (bias + x.mean(0) @ weight).requires_grad_()
    weight = weight.clone().requires_grad_()
    slopes = torch.autograd.grad(objective(weight, inner, x, y, penalty), [weight, inner])
    return float(torch.cat([part.flatten() for part in slopes]).norm() / x.norm())


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("apart", [0.0, 3.0])
@pytest.mark.parametrize(
    ("number", "features", "ways", "scale"),
    [(5, 784, 5, 0.3), (25, 64, 5, 1), (40, 16, 20, 1), (60, 2, 3, 1), (40, 10, 2, 100)],
)
def test_the_gradient_is_zero(number, features, ways, scale, apart, penalty):
    x, y = examples(number, features, ways, apart, scale)
    weight, bias = logistic_regression(x, F.one_hot(y, ways), None, penalty)
    assert slope(x, y, penalty, weight, bias) < 1e-7


def test_it_is_what_lbfgs_finds():
    x, y = examples(30, 4, 3)
    weight, bias = torch.zeros(4, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    precise = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 1e-16}
    lbfgs = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe", **precise)

    def closure():
        lbfgs.zero_grad()
        loss = objective(weight, bias, x, y, 0.3)
        loss.backward()
        return loss

    lbfgs.step(closure)
    found = logistic_regression(x, F.one_hot(y, 3), None, 0.3)
    expected = weight.detach(), (bias - x.mean(0) @ weight).detach()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_unequal_classes_masked_examples_and_absent_classes_are_exact_and_vectorize():
    x, y = examples(12, 5, 3)
    y[4:9] = 0
    mask = torch.rand(12) < 0.7
    other = torch.where(mask[:, None], x, torch.nan)
    one_hot = F.one_hot(y, 4)  # of which the last class has no example
    masked = vmap(logistic_regression, in_dims=(0, 0, 0, None))(
        torch.stack([other, x]), torch.stack([one_hot * mask[:, None], one_hot]), torch.stack([mask, mask | True]), 0.5
    )
    for index, chosen in enumerate((mask, mask | True)):
        expected = logistic_regression(x[chosen], F.one_hot(y[chosen], 3), None, 0.5)
        for found, own in zip(masked, expected, strict=True):
            torch.testing.assert_close(found[index, ..., :3], own)
        assert not masked[0][index, :, 3].any()


def test_single_precision_is_solved_in_double():
    x, y = examples(20, 50, 4)
    expected = logistic_regression(x, F.one_hot(y, 4), None, 0.1)
    found = logistic_regression(x.float(), F.one_hot(y, 4), None, 0.1)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
