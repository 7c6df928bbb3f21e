"""Update rules of the inner loop, which a `Chain` combines with transforms of the gradients."""

from lightning_meta.inner.update_rules.adam import Adam
from lightning_meta.inner.update_rules.by_name import update_rule
from lightning_meta.inner.update_rules.chain import Chain, ClipNorm, GradientTransform, WeightDecay
from lightning_meta.inner.update_rules.descent import SGD, Momentum
from lightning_meta.inner.update_rules.rule import UpdateRule

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
