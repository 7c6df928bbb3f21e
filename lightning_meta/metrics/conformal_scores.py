"""Scores of conformal prediction: how far a target is from what was predicted."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from lightning_meta.likelihoods.losses import LossFunction, likelihood_of
from lightning_meta.likelihoods.predictive import Prediction, Samples, predict

Score = Literal["error", "standardized"]
Kind = Literal["error", "standardized", "probability"]


def kind_of_score(loss_fn: LossFunction, outputs: Tensor, targets: Any, has_noise: bool) -> Kind | None:
    """Return the score that suits a learner's tasks; None: there is none.

    Args:
        loss_fn: The learner's loss.
        outputs: ``[tasks, query, ...]``.
        targets: ``[tasks, query, ...]``.
        has_noise: Whether the learner has a noise model.

    Returns:
        "probability" for classes, ``1 − p(y)``; for regressions with one real number for each query "standardized",
        ``|y − mean| / std``, with a noise model and "error", ``|y − mean|``, without one.
    """
    if not isinstance(targets, Tensor):
        return None
    if not targets.is_floating_point():
        return "probability" if targets.ndim == 2 and outputs.ndim == 3 else None
    if targets.shape != outputs.shape or targets.ndim != 3 or targets.shape[2] != 1:
        return None
    if likelihood_of(loss_fn) not in (None, "gaussian"):
        return None
    return "standardized" if has_noise else "error"


def scores_of(prediction: Prediction, targets: Tensor, score: Kind) -> Tensor:
    """Return the score of each query, ``[query]``; of targets with several parts the largest.

    A score is infinite where a prediction is not a number. Negative labels, which losses ignore, have any score.
    """
    if targets.is_floating_point():
        errors = (prediction.mean - targets).abs() / scale_of(prediction, score)
        scores = errors.flatten(1).amax(1) if errors.ndim > 1 else errors
    else:
        scores = class_scores(prediction.mean).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return scores.nan_to_num(nan=math.inf, posinf=math.inf)


def class_scores(probabilities: Tensor) -> Tensor:
    """Return the score ``1 − p`` of each class, ``[query, classes]``."""
    return 1 - probabilities


def scale_of(prediction: Prediction, score: Kind) -> Tensor:
    """Return what a regression's errors are divided by, ``[query, ...]``.

    Raises:
        ValueError: If the learner has no noise model, and the score needs one.
    """
    if score != "standardized":
        return torch.ones_like(prediction.mean)
    if prediction.total is None:
        raise ValueError("score='standardized' needs a learner with a noise model, such as BayesianMAML: use 'error'")
    return prediction.total.sqrt()


def scores_by_task(loss_fn: LossFunction, samples: Samples, targets: Tensor, score: Kind, together: int) -> Tensor:
    """Return the score of each query of a batch, ``[tasks, query]``.

    Args:
        loss_fn: The learner's loss.
        samples: Draws, ``[tasks, samples, query, ...]``.
        targets: ``[tasks, query, ...]``.
        score: The score of regressions.
        together: As in `predict`.
    """
    likelihood = "categorical" if not targets.is_floating_point() else likelihood_of(loss_fn)

    def one(own: dict[str, Tensor], y: Tensor) -> Tensor:
        return scores_of(predict(likelihood, Samples(**own), together), y, score)

    return vmap(one)(samples.present(), targets)


def counted(loss_fn: LossFunction, targets: Tensor, mask: Tensor | None) -> Tensor:
    """Return which queries have a score, ``[tasks, query]``: no padding, and no label that the loss ignores."""
    counts = torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device) if mask is None else mask
    if targets.is_floating_point():
        return counts
    return counts & (targets >= 0) & (targets != getattr(loss_fn, "ignore_index", -100))
