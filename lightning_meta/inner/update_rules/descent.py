"""Gradient descent, plain or with momentum."""

from __future__ import annotations

import torch

from lightning_meta.arguments import check_fraction
from lightning_meta.inner.update_rules.rule import Parameters, Rates, State, UpdateRule


class SGD(UpdateRule):
    """Plain gradient descent: ``φ ← φ − α g``."""

    def init(self, parameters: Parameters) -> State:
        """Return the state before the first step."""
        return ()

    def update(
        self, parameters: Parameters, gradients: Parameters, state: State, rates: Rates, step: int
    ) -> tuple[Parameters, State]:
        """Take one step; arguments as in `UpdateRule`."""
        return {name: p - rates[name] * gradients[name] for name, p in parameters.items()}, state


class Momentum(UpdateRule):
    """Heavy-ball momentum as in `torch.optim.SGD`: ``v ← β v + g``, ``φ ← φ − α v``.

    Args:
        beta: The momentum ``β``, in [0, 1).
    """

    def __init__(self, beta: float = 0.9) -> None:
        check_fraction("beta", beta)
        self.beta = beta

    def init(self, parameters: Parameters) -> State:
        """Return the state before the first step."""
        return {name: torch.zeros_like(p) for name, p in parameters.items()}

    def update(
        self, parameters: Parameters, gradients: Parameters, state: State, rates: Rates, step: int
    ) -> tuple[Parameters, State]:
        """Take one step; arguments as in `UpdateRule`."""
        velocity = {name: self.beta * state[name] + gradients[name] for name in parameters}
        return {name: p - rates[name] * velocity[name] for name, p in parameters.items()}, velocity
