"""Stein variational gradient descent against fixed points and sums over pairs."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_meta.inner import SGD
from lightning_meta.inner.solvers.svgd import stein_direction, svgd_step
from tests.algorithms.probabilistic.stein_loops import naive_direction

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("bandwidth", [None, 0.7])
def test_two_particles_settle_at_the_known_fixed_points(bandwidth):
    mean, std = 1.3, 0.8
    x = torch.tensor([[0.1], [2.0]])
    for _ in range(4000):
        x = x + 0.1 * stein_direction({"x": x}, {"x": -(x - mean) / std**2}, bandwidth)["x"]
    squared = std**2 * math.log(2) if bandwidth is None else bandwidth / 4 * math.log(1 + 4 * std**2 / bandwidth)
    torch.testing.assert_close(x, torch.tensor([[mean - squared**0.5], [mean + squared**0.5]]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_direction_is_the_sum_over_pairs(count):
    x, slopes = torch.randn(count, 6), torch.randn(count, 6)
    parted = [{"a": v[:, :2].clone(), "b": v[:, 2:].reshape(count, 2, 2)} for v in (x, slopes)]
    found = stein_direction(*parted)
    joined = torch.cat([found["a"], found["b"].flatten(1)], dim=1)
    torch.testing.assert_close(joined, naive_direction(x, slopes), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-25), (torch.float64, 1e-170), (torch.float64, 0.0)])
def test_particles_at_one_place_move_along_their_mean_slope(dtype, gap):
    """Where squared distances underflow, repulsion does not throw particles apart."""
    x, slopes = gap * torch.arange(3, dtype=dtype)[:, None].expand(3, 6), torch.randn(3, 6, dtype=dtype)
    found, pull_back = torch.func.vjp(lambda x: stein_direction({"x": x}, {"x": slopes})["x"], x)
    torch.testing.assert_close(found, slopes.mean(0).expand(3, 6))
    assert torch.isfinite(pull_back(torch.ones_like(x))[0]).all()


def test_particles_of_which_most_are_alike_stay_finite():
    """The median distance is then 0, or what rounding makes of it, which may be negative."""
    for size in (6, 257, 4097):
        for _ in range(10):
            place, other = 10 * torch.randn(2, 1, size)
            x = torch.cat([place.expand(16, size), other])
            assert torch.isfinite(stein_direction({"x": x}, {"x": torch.randn(17, size)})["x"]).all()


@pytest.mark.parametrize("vectorize", [True, False])
def test_equal_particles_of_a_model_that_draws_have_draws_of_their_own(vectorize):
    def log_density(particle, shared):
        return -(particle["x"] + torch.randn_like(particle["x"])).square().sum()

    step = svgd_step(log_density, {"x": torch.ones(3, 4)}, {}, 0.1, vectorize, SGD(), (), 0)
    assert len(step.log_densities.unique()) == 3
    assert len(step.slopes["x"].unique(dim=0)) == 3
