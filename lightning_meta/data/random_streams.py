"""Random numbers as a pure function of (seed, split, index), vectorized over indices.

Since an episode does not depend on earlier draws, devices and workers can share the indices, and runs resume exactly.
A generator object per episode would cost more than the episode, so numbers come from SplitMix64 (Steele, Lea,
Flood, OOPSLA 2014), a counter-based generator of three multiplications, one stream per index.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(state: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return the first ``count`` outputs of SplitMix64 from each state, ``[..., count]``."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return _mix(state[..., None] + steps)


def uniforms(
    seed: int, split: str, indices: NDArray[np.integer], count: int, draws: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Return ``count`` uniform numbers in [0, 1) for each index ``[indices]``, ``[indices, count]``.

    Indices, draws and the seed, below 2**64, are not negative. Splits have independent streams, and so have the draws
    ``[indices]`` of an index; None: draw 0 of each.
    """
    key = np.array([zlib.crc32(split.encode())], dtype=np.uint64) << np.uint64(32) ^ _mix(
        np.array([seed], dtype=np.uint64)
    )
    states = _mix(_mix(key) ^ _mix(indices.astype(np.uint64) + _GOLDEN))
    if draws is not None:
        states = np.where(draws == 0, states, _mix(states ^ _mix(draws.astype(np.uint64) + _GOLDEN)))
    return (splitmix64(states, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_without_replacement(population: NDArray[np.integer], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw distinct numbers below a population size, in random order.

    Floyd's algorithm, vectorized over all leading dimensions, then a shuffle, as the set that the algorithm draws is
    uniform, but not its order.

    Args:
        population: Population sizes, ``[...]``, each at least ``k``.
        draws: Uniform numbers, ``[..., 2 k]``: ``k`` to draw with and ``k`` to shuffle with.

    Returns:
        Distinct numbers in [0, population), ``[..., k]``.
    """
    k = draws.shape[-1] // 2
    chosen = np.empty((*draws.shape[:-1], k), dtype=np.int64)
    for j in range(k):
        last = population - k + j
        candidate = np.floor(draws[..., j] * (last + 1)).astype(np.int64)
        taken = (chosen[..., :j] == candidate[..., None]).any(-1)
        chosen[..., j] = np.where(taken, last, candidate)
    return np.take_along_axis(chosen, draws[..., k:].argsort(-1), axis=-1)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
