"""Update rules: gradient descent, momentum, Adam."""

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


_BY_NAME: dict[str, type[UpdateRule]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}


def update_rule(rule: str | UpdateRule) -> UpdateRule:
    """Return the rule of that name ("sgd", "momentum", "adam"), or the rule itself."""
    if isinstance(rule, UpdateRule):
        return rule
    if not isinstance(rule, str) or rule not in _BY_NAME:
        raise ValueError(
            f"inner_optimizer={rule!r} is not one of {sorted(_BY_NAME)} or an UpdateRule (torch.optim's optimizers "
            "update in place, which cannot run per task)"
        )
    return _BY_NAME[rule]()
