"""learn2learn's own unit tests of MAML and MetaSGD, with its wrappers replaced by what our adapters make of them.

Its source distribution has them. Their cases in terms of our learners are below.
"""

from __future__ import annotations

import importlib.util
import unittest
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_meta import Episode, MetaSGD
from lightning_meta.interop.learn2learn import from_learn2learn, to_learn2learn

# A softmax without a dimension, and gradients of tensors that are not leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.mark.parametrize(("name", "cases"), [("MAML", 8), ("MetaSGD", 5)])
def test_its_own_tests_pass_through_our_adapters(l2l, name, cases):
    path = Path(l2l.__file__).parents[1] / "tests" / "unit" / "algorithms" / f"{name.lower()}_test.py"
    assert path.is_file(), f"{path} is not there: install learn2learn with benchmarks/install_peers.sh, which keeps it"
    specification = importlib.util.spec_from_file_location("its_own_tests", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    original, converted = getattr(l2l.algorithms, name), []

    def through_our_adapters(*arguments, **options):
        wrapper = original(*arguments, **options)
        there_and_back = to_learn2learn(from_learn2learn(wrapper))
        assert type(there_and_back) is original
        assert there_and_back is not wrapper
        converted.append(there_and_back)
        return there_and_back

    module.l2l = SimpleNamespace(algorithms=SimpleNamespace(**{name: through_our_adapters}))  # in its tests alone
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    assert result.testsRun == cases
    assert not result.failures + result.errors
    assert len(converted) >= cases - 1  # the case about memory needs a GPU


def model():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.Sigmoid(), nn.Linear(20, 20))


@pytest.fixture(params=["MAML", "MetaSGD"])
def wrapper(request, l2l):
    return getattr(l2l.algorithms, request.param)(model(), lr=0.01)


def test_the_meta_gradient_reaches_every_parameter(wrapper):
    x, y = torch.randn(2, 7, 10), torch.randn(2, 7, 20)
    from_learn2learn(wrapper, nn.MSELoss()).training_step(Episode(x, y, x, y), 0).backward()
    assert all(float(p.grad.norm()) > 0 for p in wrapper.parameters())


def test_a_task_adapts_as_a_clone_and_the_model_stays(wrapper):
    x, y = torch.randn(7, 10), torch.randn(7, 20)
    before = [p.detach().clone() for p in wrapper.parameters()]
    task = from_learn2learn(wrapper, nn.MSELoss(), inner_steps=3).adapt(x, y)
    clone = wrapper.clone()
    losses = []
    for _ in range(3):
        losses.append(nn.functional.mse_loss(clone(x), y))
        clone.adapt(losses[-1])
    torch.testing.assert_close(task(x), clone(x))
    assert nn.functional.mse_loss(task(x), y) < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, wrapper.parameters(), strict=True))


def test_meta_sgd_has_a_rate_for_each_parameter(l2l):
    learner = from_learn2learn(l2l.algorithms.MetaSGD(model(), lr=0.1))
    assert isinstance(learner, MetaSGD)
    assert sum(p.numel() for p in learner.parameters()) == 2 * sum(p.numel() for p in learner.model.parameters())
    assert all(bool((p == torch.tensor(0.1)).all()) for p in learner.inner_rates.parameters())
