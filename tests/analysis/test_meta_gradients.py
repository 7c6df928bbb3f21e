"""Meta-gradients of learners and the parts of their variance, against training steps and a closed form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import MLP, Episode, SinusoidDataModule
from lightning_meta.algorithms.baselines import PooledModel
from lightning_meta.analysis.gradient_noise import noise_intervals, noise_scale, variance_of_products
from lightning_meta.analysis.meta_gradients import meta_gradient_products
from lightning_meta.cli import main
from lightning_meta.cli.analyze.batch import batch_report
from lightning_meta.data.distinct_tasks import FIRST_RESERVED_DRAW
from lightning_meta.data.episodes import EpisodeDataset
from tests.registry import BY_NAME, every
from tests.shipped import QUIET, ROOT

POINTS = 6


class Slopes(EpisodeDataset):
    """Tasks y = a x + noise at x = 1 and −1, whose slopes a are normal about 1 with deviation ``between``."""

    def __init__(self, between: float, noise: float) -> None:
        super().__init__(1_000)
        self.between, self.noise = between, noise

    def make(self, indices):
        return self.redrawn(indices, np.zeros_like(indices))

    def redrawn(self, indices, draws):
        tasks = [self._one(int(index), int(draw)) for index, draw in zip(indices, draws, strict=True)]
        return Episode(*map(torch.stack, zip(*tasks, strict=True)))

    def _one(self, index, draw):
        slope = 1 + self.between * np.random.default_rng(index).normal()
        rng = np.random.default_rng([index, draw])
        x = torch.tensor(rng.choice([-1.0, 1.0], (POINTS, 1))).float()
        y = slope * x + self.noise * torch.tensor(rng.normal(size=(POINTS, 1))).float()
        return x[:2], y[:2], x[2:], y[2:]


class SlopeData(SinusoidDataModule):
    def __init__(self, between: float, noise: float) -> None:
        super().__init__()
        self.tasks = Slopes(between, noise)

    def training_tasks(self):
        return self.tasks


def regression_through_zero() -> PooledModel:
    learner = PooledModel(nn.Linear(1, 1, bias=False), nn.MSELoss())
    nn.init.constant_(learner.model.weight, 3.0)
    return learner


@every(lambda entry: not entry.draws and not entry.classes_only)
def test_products_are_those_of_gradients_of_training_steps(entry):
    torch.manual_seed(0)
    learner = entry.learner(inner_lr=0.02) if entry.takes_steps and not entry.is_bayesian else entry.learner()
    tasks = SinusoidDataModule(shots=4).episodes("train")
    gradients = []
    for index in range(3):
        for draw in range(2):
            batch = tasks.redrawn(np.array([index]), np.array([FIRST_RESERVED_DRAW + draw]))
            own = copy.deepcopy(learner)
            own.training_step(batch, 0).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in own.parameters() if p.requires_grad]).double())
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    found = meta_gradient_products(learner, tasks, num_tasks=3, draws=2)
    torch.testing.assert_close(found.reshape(6, 6), expected, rtol=2e-3, atol=1e-4 * float(expected.abs().max()))


def test_blocks_change_nothing_and_the_learner_is_left_as_it_was():
    torch.manual_seed(0)
    learner = BY_NAME["ImplicitMAML"].learner(nn.Sequential(MLP(1, 1, hidden=[6]), nn.Dropout(0.5))).train()
    learner.model[0].eval()
    before, norms = copy.deepcopy(learner.state_dict()), dict(learner._norms)
    tasks = SinusoidDataModule(shots=4).episodes("train")
    together = meta_gradient_products(learner, tasks, 5, 2)
    in_blocks = meta_gradient_products(learner, tasks, 5, 2, most_numbers=3 * 20)
    torch.testing.assert_close(in_blocks, together, rtol=1e-4, atol=1e-6)
    assert (learner.training, learner.model[0].training, learner.model[1].training) == (True, False, True)
    assert learner._norms == norms
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize(("between", "noise"), [(0.5, 2.0), (1.0, 0.3)])
def test_a_linear_model_has_the_parts_of_the_closed_form(between, noise):
    """The gradient is 2 (w − a) − 2 mean(x ε): variances 4 · between² and 4 · noise² / points."""
    products = meta_gradient_products(regression_through_zero(), Slopes(between, noise), 400, 3)
    parts = variance_of_products(products, permutations=1)
    expected = {"common": (2 * (3 - 1)) ** 2, "between": 4 * between**2, "within": 4 * noise**2 / POINTS}
    intervals = noise_intervals(products)
    for name, value in expected.items():
        low, high = getattr(intervals, f"{name}_interval")
        assert low < getattr(parts, name) < high
        assert abs(getattr(parts, name) - value) < high - low  # four standard errors
        assert high - low < value
    share = expected["within"] / (expected["within"] + expected["between"])
    assert intervals.within_share == pytest.approx(share, abs=0.12)
    scale = (expected["within"] + expected["between"]) / expected["common"]
    assert intervals.noise_scale == pytest.approx(scale, rel=0.2)


def test_the_noise_scale_is_that_of_single_draws_on_average():
    gradients = 1 + torch.randn(30, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    products = torch.einsum("adp,bep->adbe", gradients, gradients)
    found = noise_intervals(products).noise_scale
    each = [noise_scale(gradients[:, draw]) for draw in range(2)]
    assert min(each) * 0.8 < found < max(each) * 1.2


def test_a_lost_mean_has_no_noise_scale():
    gradients = torch.randn(20, 2, 50, generator=torch.Generator().manual_seed(0)).double()
    assert np.isnan(noise_intervals(torch.einsum("adp,bep->adbe", gradients, gradients)).noise_scale)


def test_intervals_of_the_share_hold_it_mostly():
    generator = torch.Generator().manual_seed(1)
    held, repetitions = 0, 150
    for seed in range(repetitions):
        own = torch.randn(40, 1, 8, generator=generator).double()
        gradients = 1 + own + torch.randn(40, 2, 8, generator=generator).double()
        products = torch.einsum("adp,bep->adbe", gradients, gradients)
        low, high = noise_intervals(products, 200, seed).share_interval
        held += low <= 0.5 <= high
    assert held >= 0.87 * repetitions  # nominal 0.95; intervals of 40 tasks are a little narrow


@pytest.mark.parametrize(
    ("between", "noise", "num_tasks", "sentence"),
    [
        (0.1, 3.0, 100, "more shots and queries reduce the noise of a step, and so do more tasks"),
        (1.0, 0.1, 100, "more tasks in a batch reduce the noise of a step; more shots and queries hardly do"),
        (0.7, 1.2, 400, "more shots and queries can remove up to this share"),
        (0.5, 1.2, 8, "this interval is too wide to tell"),
    ],
)
def test_advice(between, noise, num_tasks, sentence):
    report = batch_report(regression_through_zero(), SlopeData(between, noise), num_tasks)
    assert sentence in report.advice[0]
    assert report.advice[-2].endswith("It is a diagnostic, and no advice on the number of tasks in a batch.")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(ROOT / "configs/sinusoid_maml.yaml"), *QUIET]
    report = main(["analyze", "batch", *config, "--num_tasks=6", "--output=found"])
    assert report.values["tasks"] == 6
    assert "variance within tasks" in capsys.readouterr().out
    assert (tmp_path / "found/variance.png").stat().st_size > 0


def test_bad_input_is_told():
    class Fixed(EpisodeDataset):
        def make(self, indices):
            return SinusoidDataModule().episodes("train").make(indices)

    learner = BY_NAME["MAML"].learner()
    with pytest.raises(TypeError, match="Fixed cannot draw a task's examples anew"):
        meta_gradient_products(learner, Fixed(10), 4)
    with pytest.raises(ValueError, match="num_tasks=1 must be an integer of at least 2"):
        meta_gradient_products(learner, Slopes(1, 1), 1)
    with pytest.raises(ValueError, match="draws=1 must be an integer of at least 2"):
        meta_gradient_products(learner, Slopes(1, 1), 4, 1)
    wild = BY_NAME["MAML"].learner(inner_lr=1e30)
    with pytest.raises(FloatingPointError, match=r"meta-gradient of task \d is not finite \(inner_lr=1e\+30\)"):
        meta_gradient_products(wild, SinusoidDataModule().episodes("train"), 4)
