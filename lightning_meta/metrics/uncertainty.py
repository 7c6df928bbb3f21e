"""Metrics of predictive distributions, each with one value per task: likelihood, calibration, novelty detection."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error, multiclass_calibration_error

from lightning_meta.likelihoods.predictive import (
    Likelihood,
    Samples,
    cumulative,
    mixture_log_likelihood,
    predict,
    quantile,
)
from lightning_meta.metrics.task_metrics import mean_by_task

CALIBRATION_BINS = 15
INTERVAL = 0.9
_LEVELS = torch.arange(0.05, 1.0, 0.05)


def uncertainty_metrics(
    likelihood: Likelihood | None, samples: Samples, targets: Any, mask: Tensor | None
) -> dict[str, Tensor]:
    """Return the metrics that the predictive distribution allows, values ``[tasks]`` by name.

    For classes: "nll", the negative log-likelihood of the mean probabilities; "brier", the squared error of the
    probabilities summed over classes; "ece", the expected calibration error in 15 bins (Guo et al., 2017).

    For real targets with a noise model: "nll"; "coverage_90", the share of targets inside the central 90 %
    interval; "width_90", that interval's mean width; "quantile_ce", the mean distance over the levels 0.05, 0.10,
    ..., 0.95 between a level and the share of targets below that quantile (Kuleshov, Fenner, Ermon, 2018).

    Args:
        likelihood: The distribution of the targets; None gives no metric.
        samples: Draws, ``[tasks, samples, query, ...]``.
        targets: ``[tasks, query, ...]``.
        mask: ``[tasks, query]``, True where an example counts, or None.

    Example:
        >>> samples = Samples(torch.tensor([[[[3.0, 0.0], [0.0, 2.0]]]]))  # [tasks, samples, query, classes]
        >>> uncertainty_metrics("categorical", samples, torch.tensor([[0, 1]]), mask=None)
        {'nll': tensor([0.0878]), 'brier': tensor([0.0165]), 'ece': tensor([0.0833])}
    """
    if likelihood is None or not isinstance(targets, Tensor):
        return {}
    mask = torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device) if mask is None else mask
    if likelihood == "gaussian":
        return {} if samples.noise is None else _of_regression(samples, targets, mask)
    if targets.is_floating_point() != (likelihood == "bernoulli") or targets.ndim > 2 + (likelihood == "bernoulli"):
        return {}  # soft labels and labels of several parts have accuracy and loss only
    return _of_classes(likelihood, samples, targets, mask)


def auroc(queries: Tensor, ood: Tensor, mask: Tensor | None) -> Tensor:
    """Return the area under the ROC curve, ``[tasks]``, of a score that detects out-of-distribution examples.

    The scores are ``queries [tasks, query]``, with True in ``mask`` where a query counts, and ``ood [tasks, ood]``.
    """
    values = []
    for task in range(queries.shape[0]):
        own = queries[task] if mask is None else queries[task][mask[task]]
        scores = torch.cat([own, ood[task]])
        # torchmetrics takes scores for probabilities, or passes them through a sigmoid, which may round them together.
        ranks = scores.unique(return_inverse=True)[1] / scores.numel()
        labels = torch.cat([torch.zeros_like(own), torch.ones_like(ood[task])]).long()
        values.append(binary_auroc(ranks, labels, validate_args=False))
    return torch.stack(values)


def _of_classes(likelihood: Likelihood, samples: Samples, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
    probabilities = _by_task(lambda draws: predict(likelihood, draws).mean, samples)  # [tasks, query, classes]
    if likelihood == "bernoulli":
        probabilities, targets = probabilities.reshape(*mask.shape, -1), targets.reshape(*mask.shape, -1)
        squared = 2 * (probabilities - targets).square().mean(2)  # [tasks, query]
        calibration = [
            binary_calibration_error(p[m].flatten(), t[m].flatten().long(), CALIBRATION_BINS, validate_args=False)
            for p, t, m in zip(probabilities, targets, mask, strict=True)
        ]
    else:
        mask = mask & (targets >= 0)  # ignored labels are negative
        targets = targets.clamp(min=0)
        squared = (probabilities - F.one_hot(targets, probabilities.shape[2])).square().sum(2)
        calibration = [
            multiclass_calibration_error(p[m], t[m], p.shape[1], CALIBRATION_BINS, validate_args=False)
            for p, t, m in zip(probabilities, targets, mask, strict=True)
        ]
    return {
        "nll": _nll(likelihood, samples, targets, mask),
        "brier": mean_by_task(squared, mask),
        "ece": torch.stack(calibration),
    }


def _of_regression(samples: Samples, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
    below = _by_task(cumulative, samples, targets).reshape(*mask.shape, -1)  # [tasks, query, outputs]
    tail = (1 - INTERVAL) / 2
    covered = ((below >= tail) & (below <= 1 - tail)).to(below.dtype).mean(2)  # [tasks, query]
    low, high = (_by_task(lambda draws, level=level: quantile(draws, level), samples) for level in (tail, 1 - tail))
    levels = _LEVELS.to(below)
    at_or_below = [(below <= level).to(below.dtype).mean(2) for level in levels]  # [tasks, query] for each level
    shares = torch.stack([mean_by_task(share, mask) for share in at_or_below], dim=1)  # [tasks, levels]
    return {
        "nll": _nll("gaussian", samples, targets, mask),
        "coverage_90": mean_by_task(covered, mask),
        "width_90": mean_by_task(high - low, mask),
        "quantile_ce": (shares - levels).abs().mean(1),
    }


def _nll(likelihood: Likelihood, samples: Samples, targets: Tensor, mask: Tensor) -> Tensor:
    logs = _by_task(lambda draws, target: mixture_log_likelihood(likelihood, draws, target), samples, targets)
    return -mean_by_task(logs, mask)


def _by_task(function: Callable[..., Tensor], samples: Samples, *others: Tensor) -> Tensor:
    return vmap(lambda fields, *rest: function(Samples(**fields), *rest))(samples.present(), *others)
