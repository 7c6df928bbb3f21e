"""Standardized targets in their own units again."""

from __future__ import annotations

from typing import Any

from lightning_meta.callbacks.episodes.record import ShownEpisode
from lightning_meta.data.preparation import RealTargets
from lightning_meta.episodes.trees import map_leaves


def in_own_units(shown: ShownEpisode, preparation: Any) -> ShownEpisode:
    """Return a task with targets, predictions and, for Gaussian likelihoods, variances in the units of the data.

    The adapted model stays as it is: its outputs are standardized.

    Args:
        shown: The task.
        preparation: The data module's preparation; one without `RealTargets` changes nothing.
    """
    targets = getattr(preparation, "targets", None)
    if not isinstance(targets, RealTargets):
        return shown
    mean, std = targets.mean, targets.std
    support_y, query_y, predicted = map_leaves(
        lambda leaf: leaf * std + mean, (shown.task.support_y, shown.task.query_y, shown.prediction.mean)
    )
    prediction = shown.prediction._replace(mean=predicted)
    if shown.likelihood == "gaussian":
        variances = {name: getattr(prediction, name) for name in ("total", "aleatoric", "epistemic")}
        known = {name: variance * std**2 for name, variance in variances.items() if variance is not None}
        prediction = prediction._replace(**known)
    task = shown.task._replace(support_y=support_y, query_y=query_y)
    return shown._replace(task=task, prediction=prediction)
