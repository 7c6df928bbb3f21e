"""Models and learners that start from new random values."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lightning_meta.inner import InnerRates
from lightning_meta.learners.task_learner import TaskLearner


def fresh_model(model: nn.Module, cure: str) -> nn.Module:
    """Return a copy of a model with new random values, drawn by its layers' ``reset_parameters``.

    Args:
        model: The model, which does not change.
        cure: The end of the error: what to do about a layer that cannot be given new values.

    Raises:
        ValueError: If a layer with parameters has no ``reset_parameters``.
    """
    copied = copy.deepcopy(model)
    for name, module in copied.named_modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"model.{name}, a {type(module).__name__}, has no reset_parameters, and so cannot be given new random "
                f"values: {cure}"
            )
    return copied


def fresh_learner(learner: TaskLearner, cure: str) -> TaskLearner:
    """Return a copy of a learner as before its training: a model with new random values, and the initial inner rates.

    Args:
        learner: The learner, which does not change.
        cure: The end of the error.

    Raises:
        ValueError: If the learner has other parameters than its model's and its rates, or a layer cannot be given new
            random values.
    """
    copied = copy.deepcopy(learner, {id(learner._trainer): None})
    copied.model.load_state_dict(fresh_model(learner.model, cure).state_dict())
    known = {id(parameter) for parameter in copied.model.parameters()}
    for module in copied.modules():
        if isinstance(module, InnerRates):
            for rate in module.parameters():
                nn.init.constant_(rate, module.inner_lr)
                known.add(id(rate))
    unknown = [name for name, parameter in copied.named_parameters() if id(parameter) not in known]
    if unknown:
        raise ValueError(
            f"{type(learner).__name__} has parameters beside its model's, such as {unknown[0]}, whose first values are "
            f"not known: {cure}"
        )
    return copied
