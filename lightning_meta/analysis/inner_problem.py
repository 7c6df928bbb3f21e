"""The problem that a learner's inner loop solves, as a function for analysis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import GradientLearner
from lightning_meta.learners.task_learner import TaskLearner


def support_loss(
    learner: GradientLearner, meta: MetaParameters, support: Support
) -> tuple[Vector, Callable[[Vector], Tensor]]:
    """Return where a task's inner loop starts, and its support loss as a function of the adapted parameters.

    Args:
        learner: A learner that `check_adapts_a_model` takes.
        meta: The meta-parameters.
        support: One task's support set.
    """
    (first, *_) = learner.inner_loop(meta, support, 0)
    state: dict[str, Tensor] = first.state
    names = getattr(learner, "adapted_names", tuple(state))
    fixed = {**learner.model_parameters(meta), **state}
    return {name: fixed[name] for name in names}, lambda adapted: learner.set_loss({**fixed, **adapted}, support)


def flattened(product: Callable[[Vector], Vector], like: Vector) -> Callable[[Tensor], Tensor]:
    """Return a linear map of vectors by name as one of vectors ``[n]``, with the tensors one after another."""
    sizes = [leaf.numel() for leaf in like.values()]

    def of_flat(flat: Tensor) -> Tensor:
        pieces = zip(like.items(), flat.split(sizes), strict=True)
        image = product({name: piece.reshape(leaf.shape) for (name, leaf), piece in pieces})
        return torch.cat([leaf.flatten() for leaf in image.values()])

    return of_flat


def check_adapts_a_model(learner: TaskLearner, analysis: str) -> GradientLearner:
    """Return the learner; raise a ValueError unless it adapts parameters of one model by gradients of its loss."""
    own = type(learner).adapted_parameters is GradientLearner.adapted_parameters  # its state is the model's parameters
    if not isinstance(learner, GradientLearner) or not own or learner.adapted_parameters({}, {}) is None:
        raise ValueError(
            f"{analysis} is for learners that adapt parameters of one model by gradient steps, such as MAML, Reptile "
            f"and ImplicitMAML, not {type(learner).__name__}"
        )
    return learner
