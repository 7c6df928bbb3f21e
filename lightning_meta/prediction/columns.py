"""The columns of predictions."""

from __future__ import annotations

import json
import math

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.data.preparation import RealTargets
from lightning_meta.learners import AdaptedTask
from lightning_meta.likelihoods.predictive import Prediction, quantile
from lightning_meta.metrics.conformal_quantiles import ConformalQuantiles
from lightning_meta.metrics.conformal_scores import class_scores


def class_columns(
    task: AdaptedTask, x: object, classes: tuple[str, ...], coverage: float, scores: ConformalQuantiles | None
) -> pl.DataFrame:
    """Return ``prediction``, ``probability_<class>``, ``prediction_set``, and the uncertainties of Bayesian learners.

    Args:
        task: The adapted model.
        x: Inputs ``[query, ...]``.
        classes: The classes by position in the output. Further outputs of the model are left out. Classes after its
            last output, of which the support had no example, have probability 0.
        coverage: The probability that the set should contain the class.
        scores: The scores on validation tasks, from which sets come.
    """
    samples = task.samples(x)
    limited = samples._replace(outputs=samples.outputs[..., : len(classes)])  # [samples, query, classes]
    prediction = task.prediction_of(limited)
    probabilities = F.pad(prediction.mean.double(), (0, len(classes) - prediction.mean.shape[1]))  # [query, classes]
    chosen = probabilities.argmax(1).tolist()
    columns = {"prediction": pl.Series([classes[i] for i in chosen], dtype=pl.String)}
    columns |= {f"probability_{name}": _series(probabilities[:, i]) for i, name in enumerate(classes)}
    columns["prediction_set"] = pl.Series(_sets(probabilities, classes, coverage, scores), dtype=pl.String)
    return pl.DataFrame(columns | _uncertainties(prediction, 1.0))


def _sets(
    probabilities: Tensor, classes: tuple[str, ...], coverage: float, scores: ConformalQuantiles | None
) -> list[str | None]:
    """Return the classes of each set as a JSON list, ``[query]``; None: too little is known of the scores."""
    threshold = math.inf if scores is None or scores.score != "probability" else scores.quantile(coverage)
    if threshold == math.inf:
        return [None] * len(probabilities)
    inside = class_scores(probabilities.float()) <= threshold  # in the precision in which scores are kept
    chosen = ([name for name, is_in in zip(classes, row, strict=True) if is_in] for row in inside.tolist())
    return [json.dumps(own, ensure_ascii=False) for own in chosen]


def real_columns(
    task: AdaptedTask, x: object, targets: RealTargets, coverage: float, scores: ConformalQuantiles | None
) -> pl.DataFrame:
    """Return ``prediction``, ``mean``, ``std``, an interval, and the uncertainties of Bayesian learners.

    Args:
        task: The adapted model.
        x: Inputs ``[query, ...]``.
        targets: The scale of the targets.
        coverage: The probability that the interval should contain the target.
        scores: The scores on validation tasks, from which intervals come. Without, learners with a noise model have the
            quantiles of their predictive distribution, and others no interval.
    """
    samples = task.samples(x)
    prediction = task.prediction_of(samples)
    mean = prediction.mean[:, 0].double()  # [query]
    lower = upper = std = torch.full_like(mean, torch.nan)
    own = "error" if prediction.total is None else "standardized"
    threshold = math.inf if scores is None or scores.score != own else scores.quantile(coverage)
    if prediction.total is not None:
        std = prediction.total[:, 0].double().sqrt()
    elif scores is not None and scores.root_mean_square is not None:
        std = torch.full_like(mean, scores.root_mean_square)
    if threshold < math.inf:
        reach = threshold * (std if own == "standardized" else 1.0)
        lower, upper = mean - reach, mean + reach
    elif own == "standardized":
        lower, upper = (quantile(samples, level)[:, 0].double() for level in ((1 - coverage) / 2, (1 + coverage) / 2))
    percent = f"{100 * coverage:g}"

    def in_units(values: Tensor) -> pl.Series:
        return _series(values * targets.std + targets.mean)

    columns = {"prediction": in_units(mean), "mean": in_units(mean), "std": _series(std * targets.std)}
    columns |= {f"lower_{percent}": in_units(lower), f"upper_{percent}": in_units(upper)}
    return pl.DataFrame(columns | _uncertainties(prediction, targets.std**2))


def _uncertainties(prediction: Prediction, scale: float) -> dict[str, pl.Series]:
    if prediction.epistemic is None or prediction.aleatoric is None:
        return {}
    parts = {"aleatoric": prediction.aleatoric, "epistemic": prediction.epistemic}
    return {name: _series(scale * value.reshape(len(value))) for name, value in parts.items()}


def _series(values: Tensor) -> pl.Series:
    return pl.Series(values.double().numpy()).fill_nan(None)
