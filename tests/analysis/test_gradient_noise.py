"""The parts of meta-gradients' variance, against Gaussian vectors whose parts are known."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_meta.analysis.gradient_noise import gradient_variance, noise_scale


def test_the_noise_scale_of_gaussian_vectors():
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([1.0, 2.0, 0.5])
    mean = torch.tensor([1.0, -1.0, 0.5])
    gradients = mean + deviations * torch.randn(200_000, 3, generator=generator)
    expected = float(deviations.square().sum() / mean.square().sum())
    assert noise_scale(gradients) == pytest.approx(expected, rel=0.02)


def test_the_estimates_have_no_bias_with_few_tasks():
    generator = torch.Generator().manual_seed(1)
    mean = torch.tensor([0.3, -0.2])
    within = gradient = torch.randn(4_000, 5, 1, 2, generator=generator)
    gradient = mean + 0.7 * within + 0.4 * torch.randn(4_000, 5, 3, 2, generator=generator)
    parts = [gradient_variance(one, permutations=1) for one in gradient]
    for name, expected in {"common": 0.13, "between": 2 * 0.49, "within": 2 * 0.16}.items():
        found = torch.tensor([getattr(part, name) for part in parts])
        assert abs(found.mean() - expected) < 4 * found.std() / len(parts) ** 0.5
    assert all(math.isclose(p.common + p.between + p.within, p.total, rel_tol=1e-9) for p in parts)


def test_a_mean_that_is_lost_in_noise_is_undetermined():
    assert math.isnan(noise_scale(torch.tensor([[1.0], [-1.0]])))


def test_the_test_rejects_as_often_as_it_says_when_tasks_do_not_differ():
    generator = torch.Generator().manual_seed(2)
    values = [
        gradient_variance(torch.randn(6, 2, 3, generator=generator), permutations=19, seed=i).p_value
        for i in range(1_000)
    ]
    rejected = sum(value <= 0.1 for value in values)
    assert abs(rejected - 100) < 4 * math.sqrt(1_000 * 0.1 * 0.9)


def test_the_test_finds_tasks_that_differ():
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(20, 1, 4, generator=generator) + 0.1 * torch.randn(20, 2, 4, generator=generator)
    assert gradient_variance(gradients).p_value == 0.001


@pytest.mark.parametrize("shape", [(1, 3), (4,), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"gradients of shape .* must be \[tasks, parameters\]"):
        noise_scale(torch.zeros(shape))


def test_divergence_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        gradient_variance(torch.full((2, 2, 1), math.inf))
