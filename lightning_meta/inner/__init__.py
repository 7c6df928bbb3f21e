"""What the algorithms share, as pure functions: update rules, rates, and which parameters adapt."""

from lightning_meta.inner.adapted import adapted_names
from lightning_meta.inner.kept_state import KeptState
from lightning_meta.inner.rates import InnerRates, LearnedRates
from lightning_meta.inner.update_rules import SGD, Adam, Momentum, UpdateRule, update_rule

__all__ = [
    "SGD",
    "Adam",
    "InnerRates",
    "KeptState",
    "LearnedRates",
    "Momentum",
    "UpdateRule",
    "adapted_names",
    "update_rule",
]
