"""What algorithms are made of, as pure functions: update rules, rates, meta-gradients, and which parameters adapt."""

from lightning_meta.inner.adapted import adapted_names
from lightning_meta.inner.inner_loop import InnerStep
from lightning_meta.inner.kept_state import KeptState
from lightning_meta.inner.meta_gradients import Checkpointed, FirstOrder, Implicit, MetaGradient, Unrolled
from lightning_meta.inner.rates import InnerRates, LearnedRates
from lightning_meta.inner.update_rules import SGD, Adam, Chain, ClipNorm, Momentum, UpdateRule, WeightDecay, update_rule

__all__ = [
    "SGD",
    "Adam",
    "Chain",
    "Checkpointed",
    "ClipNorm",
    "FirstOrder",
    "Implicit",
    "InnerRates",
    "InnerStep",
    "KeptState",
    "LearnedRates",
    "MetaGradient",
    "Momentum",
    "Unrolled",
    "UpdateRule",
    "WeightDecay",
    "adapted_names",
    "update_rule",
]
