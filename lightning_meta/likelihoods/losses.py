"""Properties of loss functions: the likelihood, the shapes compared, and the mean over the examples that count."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.likelihoods.predictive import Likelihood

LossFunction = Callable[[Any, Any], Tensor]

_SAME_SHAPE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)
_CLASS_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)


def takes_class_labels(loss_fn: LossFunction) -> bool:
    """Whether the loss compares class scores ``[examples, classes]`` with labels ``[examples]``."""
    return isinstance(loss_fn, _CLASS_LABELS) or loss_fn in (F.cross_entropy, F.nll_loss)


def likelihood_of(loss_fn: LossFunction) -> Likelihood | None:
    """Return the likelihood whose negative logarithm the loss is, up to constants; None for other losses."""
    if takes_class_labels(loss_fn):
        return "categorical"
    if isinstance(loss_fn, nn.BCEWithLogitsLoss):
        return "bernoulli"
    return "gaussian" if isinstance(loss_fn, nn.MSELoss) or loss_fn is F.mse_loss else None


def required_likelihood(loss_fn: LossFunction) -> Likelihood:
    """Return the likelihood of a Bayesian learner's loss.

    Raises:
        ValueError: If the loss is no negative log-likelihood, or weighs or smooths it.
    """
    likelihood = likelihood_of(loss_fn)
    plain = splits_by_example(loss_fn) or loss_fn in (F.cross_entropy, F.mse_loss)
    plain &= getattr(loss_fn, "label_smoothing", 0.0) == 0 and getattr(loss_fn, "ignore_index", -100) == -100
    if likelihood is None or not plain:
        raise ValueError(
            f"loss_fn={loss_fn!r} is no negative log-likelihood, which a Bayesian learner needs: use "
            "nn.CrossEntropyLoss() (categorical), nn.BCEWithLogitsLoss() (Bernoulli) or nn.MSELoss() (Gaussian), "
            "without weights, smoothing or ignored labels"
        )
    return likelihood


def target_rows(likelihood: Likelihood, y: Tensor, outputs: int) -> Tensor:
    """Return targets ``[examples, ...]`` as rows ``[examples, outputs]``; class labels as one-hot rows."""
    if likelihood == "categorical" and not y.is_floating_point():
        y = y[:, None] == torch.arange(outputs, device=y.device)  # F.one_hot cannot be vectorized
    return y.reshape(-1, outputs)


def needs_same_shape(loss_fn: LossFunction) -> bool:
    """Whether output and target must have one shape (they would broadcast silently otherwise)."""
    return isinstance(loss_fn, _SAME_SHAPE) or loss_fn in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)


def splits_by_example(loss_fn: LossFunction) -> bool:
    """Whether `masked_mean` can leave padded examples out of this loss exactly."""
    # Not isinstance: a derived class may compute something else with the same reduction.
    if type(loss_fn) not in _SAME_SHAPE + _CLASS_LABELS or getattr(loss_fn, "reduction", None) != "mean":
        return False
    return getattr(loss_fn, "weight", None) is None and getattr(loss_fn, "pos_weight", None) is None


def masked_mean(loss_fn: LossFunction, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the loss of one set of examples, averaged over those that count.

    `nn.CrossEntropyLoss` smooths labels over the classes whose score is not -inf: those that a task has.

    Args:
        loss_fn: Maps output ``[examples, ...]`` and target ``[examples, ...]`` to a scalar mean. With a mask it
            must satisfy `splits_by_example`.
        output: The model's output.
        target: The targets.
        mask: ``[examples]``, True where an example counts; None where all do.
    """
    smooths = isinstance(loss_fn, nn.CrossEntropyLoss) and loss_fn.label_smoothing > 0 and splits_by_example(loss_fn)
    smooths = smooths and not target.is_floating_point()
    if mask is None and not smooths:
        return loss_fn(output, target)
    losses = _smoothed(loss_fn, output, target) if smooths else _by_example(loss_fn, output, target)  # [examples, ...]
    counts = torch.ones_like(losses, dtype=torch.bool)
    if mask is not None:
        counts = mask.reshape(-1, *[1] * (losses.ndim - 1)).expand_as(losses)
    if takes_class_labels(loss_fn) and not target.is_floating_point():
        counts = counts & (target != getattr(loss_fn, "ignore_index", -100))
    return torch.where(counts, losses, 0).sum() / counts.sum()


def _by_example(loss_fn: LossFunction, output: Tensor, target: Tensor) -> Tensor:
    elementwise: Any = copy.copy(loss_fn)
    elementwise.reduction = "none"
    losses: Tensor = elementwise(output, target)
    return losses


def _smoothed(loss_fn: Any, output: Tensor, target: Tensor) -> Tensor:
    """Return each example's cross-entropy, ``[examples, ...]``; torch smooths over absent classes too, to infinity."""
    present = output > -torch.inf  # [examples, classes, ...]
    over_classes = -torch.where(present, output.log_softmax(1), 0).sum(1) / present.sum(1)
    of_label = F.cross_entropy(output, target, ignore_index=loss_fn.ignore_index, reduction="none")
    return (1 - loss_fn.label_smoothing) * of_label + loss_fn.label_smoothing * over_classes
