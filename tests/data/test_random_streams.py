from __future__ import annotations

import numpy as np
import pytest

from lightning_meta.data.random_streams import sample_without_replacement, splitmix64, uniforms


def test_splitmix64_gives_the_published_numbers():
    # The reference implementation's outputs for seed 1234567 (prng.di.unimi.it/splitmix64.c).
    found = splitmix64(np.array([1234567], dtype=np.uint64), 5)[0]
    assert found.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_numbers_are_a_function_of_seed_split_and_index_alone():
    together = uniforms(3, "train", np.arange(10), 6)
    alone = uniforms(3, "train", np.array([7]), 6)
    assert np.array_equal(together[7], alone[0])
    for other in [uniforms(4, "train", np.arange(10), 6), uniforms(3, "val", np.arange(10), 6)]:
        assert not np.any(other == together)


def test_numbers_are_uniform_and_uncorrelated():
    draws = uniforms(0, "train", np.arange(20_000), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = np.histogram(draws, bins=50, range=(0, 1))[0]
    chi_squared = ((histogram - 3200) ** 2 / 3200).sum()
    assert chi_squared < 100  # 49 degrees of freedom: exceeded once in 40,000 seeds
    correlation = np.corrcoef(np.concatenate([draws, np.roll(draws, 1, axis=0)], axis=1), rowvar=False)
    assert np.abs(correlation - np.eye(16)).max() < 5 / np.sqrt(20_000)


@pytest.mark.parametrize(("population", "k"), [(5, 5), (7, 3), (100, 10)])
def test_samples_are_distinct_and_uniform_in_every_position(population, k):
    tasks = 40_000
    draws = uniforms(1, "train", np.arange(tasks), 2 * k)
    samples = sample_without_replacement(np.full(tasks, population), draws)
    ordered = np.sort(samples, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    assert ordered.min() == 0
    assert ordered.max() == population - 1
    expected = tasks / population
    for position in range(k):
        counts = np.bincount(samples[:, position], minlength=population)
        # Five standard deviations of a binomial count.
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_population_sizes_may_differ():
    population = np.array([[3, 50], [8, 4]])
    draws = uniforms(1, "val", np.arange(2), 2 * 2 * 3).reshape(2, 2, 6)
    samples = sample_without_replacement(population, draws)
    assert samples.shape == (2, 2, 3)
    assert (samples < population[..., None]).all()
    assert sorted(samples[0, 0]) == [0, 1, 2]


def test_draws_have_independent_streams():
    indices = np.array([7, 7, 7, 8, 2**40])
    draws = np.array([0, 1, 2**40, 1, 1])
    together = uniforms(3, "train", indices, 6, draws)
    for row in range(5):
        assert np.array_equal(uniforms(3, "train", indices[[row]], 6, draws[[row]])[0], together[row])
    assert np.array_equal(uniforms(3, "train", indices, 6)[0], together[0])
    assert len(np.unique(together)) == together.size
    many = uniforms(0, "train", np.full(20_000, 5), 4, np.arange(20_000))
    histogram = np.histogram(many, bins=50, range=(0, 1))[0]
    assert ((histogram - 1600) ** 2 / 1600).sum() < 100  # 49 degrees of freedom: exceeded once in 40,000 seeds
    beside = np.concatenate([many, np.roll(many, 1, axis=0), uniforms(0, "train", np.arange(20_000), 4)], axis=1)
    assert np.abs(np.corrcoef(beside, rowvar=False) - np.eye(12)).max() < 5 / np.sqrt(20_000)
