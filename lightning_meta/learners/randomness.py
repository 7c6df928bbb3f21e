"""Random numbers that do not depend on how a run got to a step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch


def keeping_random_state(device: torch.device) -> AbstractContextManager[None]:
    """A context that restores torch's random generators."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def reproducible_draws(seed: int, process: int, step: int, device: torch.device) -> Iterator[None]:
    """Make random numbers a function of seed, process and step; the generators are restored at the end.

    A resumed run then draws the same numbers as an uninterrupted one, and every evaluation draws the same.
    """
    with keeping_random_state(device):
        sequence = np.random.SeedSequence([seed % 2**64, process, step])
        number = int(sequence.generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(number)  # torch.manual_seed would queue work for absent devices
        if device.type == "cuda":
            torch.cuda.manual_seed(number)
        yield
