"""Update rules of the inner loop, which a `Chain` combines with transforms of the gradients."""

from lightning_meta.inner.update_rules.chain import Chain, ClipNorm, GradientTransform, WeightDecay
from lightning_meta.inner.update_rules.rule import UpdateRule
from lightning_meta.inner.update_rules.rules import SGD, Adam, Momentum, update_rule

__all__ = [
    "SGD",
    "Adam",
    "Chain",
    "ClipNorm",
    "GradientTransform",
    "Momentum",
    "UpdateRule",
    "WeightDecay",
    "update_rule",
]
