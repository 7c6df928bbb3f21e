"""After 20 outer steps on the same tasks, learn2learn's loop and our learner have the same parameters."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightning_meta.interop.learn2learn import from_learn2learn
from tests.interop.learn2learn.loops import (
    image_batches,
    largest_difference,
    regression_batches,
    train_ours,
    train_theirs,
)

TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6}  # measured: 4e-16 and 6e-8
# learn2learn's MetaSGD reads the gradient of tensors that are not leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

OPTIMIZERS = {"adam": partial(torch.optim.Adam, lr=1e-3), "sgd": partial(torch.optim.SGD, lr=0.05)}
LINEAR = partial(nn.Linear, 3, 2)


def mlp():
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))


def convolutions():
    """Without a bias before normalization: its gradient is zero but for rounding, which Adam makes steps of."""
    blocks = [
        [nn.Conv2d(i, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)] for i in (1, 4)
    ]
    return nn.Sequential(*blocks[0], *blocks[1], nn.Flatten(), nn.Linear(16, 3))


def rates_of(wrapper):
    """The parameters of a wrapper that are not its module's."""
    return nn.ParameterList(p for name, p in wrapper.named_parameters() if not name.startswith("module."))


@pytest.fixture(params=[torch.float64, torch.float32], ids=["double", "single"])
def _dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def check(l2l, _dtype, record_property):
    def run(theirs, batches, loss_fn, steps, optimizer, features=None, **options):
        batches = list(batches)
        ours, own_features = copy.deepcopy(theirs), copy.deepcopy(features)
        learner = from_learn2learn(ours, loss_fn, steps, features=own_features, **options)
        start = [p.detach().clone() for p in learner.parameters()]
        train_theirs(theirs, batches, loss_fn, steps, OPTIMIZERS[optimizer], features)
        train_ours(learner, batches, OPTIMIZERS[optimizer])
        moved = max(float((a - b.detach()).abs().max()) for a, b in zip(start, learner.parameters(), strict=True))
        module = nn.ModuleList([ours.module, own_features])
        difference = largest_difference(module, nn.ModuleList([theirs.module, features]))
        difference = max(difference, largest_difference(learner.inner_rates, rates_of(theirs)))
        record_property("difference", difference)
        print(f"moved {moved:.1e}, difference {difference:.1e}")
        assert moved > 1e-3  # both were trained
        assert difference < TOLERANCES[torch.get_default_dtype()]

    return run


@pytest.mark.parametrize(("steps", "optimizer"), [(1, "sgd"), (3, "adam")])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("make", [LINEAR, mlp], ids=["linear", "mlp"])
def test_maml(l2l, check, make, first_order, steps, optimizer):
    wrapper = l2l.algorithms.MAML(make(), lr=0.1, first_order=first_order)
    check(wrapper, regression_batches(), nn.MSELoss(), steps, optimizer)


@pytest.mark.parametrize(("steps", "optimizer"), [(1, "sgd"), (3, "adam")])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
def test_maml_with_batch_normalization(l2l, check, first_order, steps, optimizer):
    """Both use the statistics of the set at hand; learn2learn also updates running ones, which it does not use."""
    wrapper = l2l.algorithms.MAML(convolutions(), lr=0.1, first_order=first_order)
    check(wrapper, image_batches(), nn.CrossEntropyLoss(), steps, optimizer, compile=False)


@pytest.mark.parametrize(("steps", "optimizer"), [(1, "sgd"), (3, "adam")])
@pytest.mark.parametrize("first_order", [False, True], ids=["second", "first"])
def test_meta_sgd(l2l, check, first_order, steps, optimizer):
    wrapper = l2l.algorithms.MetaSGD(mlp(), lr=0.1, first_order=first_order)
    check(wrapper, regression_batches(), nn.MSELoss(), steps, optimizer)


def test_meta_sgd_with_convolutions(l2l, check):
    wrapper = l2l.algorithms.MetaSGD(convolutions(), lr=0.1)
    check(wrapper, image_batches(), nn.CrossEntropyLoss(), 1, "adam", compile=False)


def test_a_learned_rate_for_each_tensor(l2l, check):
    module = mlp()
    rates = nn.ParameterList(nn.Parameter(torch.tensor(0.1)) for _ in module.parameters())
    wrapper = l2l.algorithms.MetaSGD(module, lrs=rates)
    check(wrapper, regression_batches(), nn.MSELoss(), 3, "adam")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("algorithm", ["MAML", "MetaSGD"])
def test_anil(l2l, check, algorithm, steps):
    wrapper = getattr(l2l.algorithms, algorithm)(nn.Linear(16, 2), lr=0.1)
    features = nn.Sequential(nn.Linear(3, 16), nn.Tanh())
    check(wrapper, regression_batches(), nn.MSELoss(), steps, "adam", features)


@pytest.mark.parametrize("steps", [1, 3])
def test_gbml_without_transform(l2l, check, steps):
    wrapper = l2l.algorithms.GBML(mlp(), transform=lambda parameter: None, lr=0.1)
    check(wrapper, regression_batches(), nn.MSELoss(), steps, "adam")


def scale_of_each_element(parameter):
    """Called inside of tests only, where learn2learn is there."""
    import learn2learn

    return learn2learn.nn.Scale(parameter.shape, alpha=0.1)


@pytest.mark.parametrize("steps", [1, 3])
def test_gbml_with_scale(l2l, check, steps):
    """With lr=1 the learner's rates are the factors themselves."""
    wrapper = l2l.algorithms.GBML(mlp(), transform=scale_of_each_element, lr=1.0)
    check(wrapper, regression_batches(), nn.MSELoss(), steps, "adam")


def test_shared_modules(l2l, check):
    """A layer that is used in two places adapts once."""
    layer = nn.Linear(3, 3)
    module = nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer, nn.Linear(3, 2)))
    check(l2l.algorithms.MAML(module, lr=0.1), regression_batches(), nn.MSELoss(), 3, "adam")


def test_frozen_and_unused_parameters(l2l, check):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.frozen, self.unused = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(5, 5)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.used(x).tanh())

    wrapper = l2l.algorithms.MAML(Partly(), lr=0.1, allow_nograd=True)
    check(wrapper, regression_batches(), nn.MSELoss(), 3, "adam")
