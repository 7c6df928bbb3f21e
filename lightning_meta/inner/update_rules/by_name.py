"""Update rules by name."""

from __future__ import annotations

from lightning_meta.inner.update_rules.adam import Adam
from lightning_meta.inner.update_rules.descent import SGD, Momentum
from lightning_meta.inner.update_rules.rule import UpdateRule

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
