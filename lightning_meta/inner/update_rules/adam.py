"""Adam that can be differentiated."""

from __future__ import annotations

import torch

from lightning_meta.arguments import check_fraction
from lightning_meta.inner.update_rules.rule import Parameters, Rates, State, UpdateRule


class Adam(UpdateRule):
    """Adam (Kingma and Ba, 2015) with finite derivatives.

    `torch.optim.Adam` divides by ``sqrt(v) + ε``. Its derivative at ``v = 0`` is infinite, so a parameter without a
    gradient (a dead unit) would make the meta-gradient NaN. Here ε is inside the root: ``φ ← φ − α m̂ / sqrt(v̂ + ε²)``,
    which agrees for ``v̂ ≫ ε²`` and is smooth at 0.

    Args:
        beta1: Decay of the first moment, in [0, 1). Reptile's authors use 0.
        beta2: Decay of the second moment, in [0, 1).
        eps: ε, positive.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        check_fraction("beta1", beta1)
        check_fraction("beta2", beta2)
        if not eps > 0:
            raise ValueError(f"eps={eps} must be positive: it keeps the square root differentiable at 0")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def init(self, parameters: Parameters) -> State:
        """Return the state before the first step."""
        first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        return first, dict(first)

    def update(
        self, parameters: Parameters, gradients: Parameters, state: State, rates: Rates, step: int
    ) -> tuple[Parameters, State]:
        """Take one step; arguments as in `UpdateRule`."""
        first, second = state
        first = {n: self.beta1 * first[n] + (1 - self.beta1) * g for n, g in gradients.items()}
        second = {n: self.beta2 * second[n] + (1 - self.beta2) * g.square() for n, g in gradients.items()}
        unbias1 = 1 - self.beta1 ** (step + 1)
        unbias2 = 1 - self.beta2 ** (step + 1)
        adapted = {
            n: p - rates[n] * (first[n] / unbias1) * torch.rsqrt(second[n] / unbias2 + self.eps**2)
            for n, p in parameters.items()
        }
        return adapted, (first, second)
