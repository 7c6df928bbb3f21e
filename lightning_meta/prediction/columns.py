"""The columns of predictions."""

from __future__ import annotations

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.data.preparation import RealTargets
from lightning_meta.learners import AdaptedTask
from lightning_meta.likelihoods.predictive import Prediction, quantile
from lightning_meta.metrics.residuals import Residuals


def class_columns(task: AdaptedTask, x: object, classes: tuple[str, ...]) -> pl.DataFrame:
    """Return ``prediction``, ``probability_<class>``, and the uncertainties of Bayesian learners.

    Args:
        task: The adapted model.
        x: Inputs ``[query, ...]``.
        classes: The classes by position in the output. Further outputs of the model are left out. Classes after its
            last output, of which the support had no example, have probability 0.
    """
    samples = task.samples(x)
    limited = samples._replace(outputs=samples.outputs[..., : len(classes)])  # [samples, query, classes]
    prediction = task.prediction_of(limited)
    probabilities = F.pad(prediction.mean.double(), (0, len(classes) - prediction.mean.shape[1]))  # [query, classes]
    chosen = probabilities.argmax(1).tolist()
    columns = {"prediction": pl.Series([classes[i] for i in chosen], dtype=pl.String)}
    columns |= {f"probability_{name}": _series(probabilities[:, i]) for i, name in enumerate(classes)}
    return pl.DataFrame(columns | _uncertainties(prediction, 1.0))


def real_columns(
    task: AdaptedTask, x: object, targets: RealTargets, coverage: float, residuals: Residuals | None
) -> pl.DataFrame:
    """Return ``prediction``, ``mean``, ``std``, an interval, and the uncertainties of Bayesian learners.

    Args:
        task: The adapted model.
        x: Inputs ``[query, ...]``.
        targets: The scale of the targets.
        coverage: The probability that the interval should contain the target.
        residuals: The errors on validation tasks, from which learners without a noise model have their interval.
    """
    samples = task.samples(x)
    prediction = task.prediction_of(samples)
    mean = prediction.mean[:, 0].double()  # [query]
    lower = upper = std = torch.full_like(mean, torch.nan)
    if prediction.total is not None:
        std = prediction.total[:, 0].double().sqrt()
        lower, upper = (quantile(samples, level)[:, 0].double() for level in ((1 - coverage) / 2, (1 + coverage) / 2))
    elif residuals is not None:
        std = torch.full_like(mean, residuals.root_mean_square)
        reach = residuals.quantile(coverage)
        lower, upper = mean - reach, mean + reach
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
