"""Calibration over the queries of all tasks: what is collected of batches, and how it is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap
from torchmetrics.functional.classification import binary_calibration_error

from lightning_meta.episodes.episode import Episode
from lightning_meta.likelihoods.losses import LossFunction, likelihood_of
from lightning_meta.likelihoods.predictive import Samples, cumulative
from lightning_meta.metrics.uncertainty import CALIBRATION_BINS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ClassCalibration:
    """Each query's confidence, and whether its predicted class is right."""

    def __init__(self) -> None:
        self._confidence: list[Tensor] = []
        self._correct: list[Tensor] = []

    def add(self, scores: Tensor, batch: Episode) -> None:
        """Add the queries of a batch.

        Args:
            scores: Logits ``[tasks, query, classes]``.
            batch: The tasks.

        Raises:
            ValueError: If these are no scores of classes.
        """
        if scores.ndim != 3 or batch.query_y.is_floating_point():
            raise ValueError(f"calibration needs scores [tasks, query, classes], not outputs of {tuple(scores.shape)}")
        confidence, predicted = scores.float().softmax(2).max(2)  # [tasks, query]
        counts = batch.query_y >= 0  # ignored labels are negative
        counts = counts if batch.query_mask is None else counts & batch.query_mask
        self._confidence.append(confidence[counts].cpu())
        self._correct.append((predicted == batch.query_y)[counts].cpu())

    def draw(self) -> Figure:
        """Draw accuracy against confidence in 15 bins, with the expected calibration error over all queries."""
        from matplotlib.figure import Figure

        confidence, correct = torch.cat(self._confidence), torch.cat(self._correct).float()
        bins = (confidence * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
        counts = torch.bincount(bins, minlength=CALIBRATION_BINS)
        accuracy = torch.bincount(bins, correct, minlength=CALIBRATION_BINS) / counts
        centers = ((torch.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS).numpy()
        error = float(binary_calibration_error(confidence, correct.long(), CALIBRATION_BINS))
        figure = Figure(figsize=(5, 6), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.plot([0, 1], [0, 1], color="gray", linestyle=":", label="calibrated")
        width, heights = 0.9 / CALIBRATION_BINS, accuracy.nan_to_num(0).numpy()
        top.bar(centers, heights, width, color="tab:blue", label="accuracy in the bin")
        title = f"calibration error {100 * error:.2f} % over {len(correct)} queries"
        top.set(ylabel="accuracy", ylim=(0, 1), title=title)
        top.legend(loc="upper left")
        bottom.bar(centers, (counts / len(correct)).numpy(), width, color="tab:gray")
        bottom.set(xlabel="confidence", ylabel="share of queries", xlim=(0, 1))
        return figure


class QuantileCalibration:
    """The predictive distribution function of a regression at each target: uniform if the learner is calibrated."""

    def __init__(self) -> None:
        self._levels: list[Tensor] = []

    def add(self, samples: Samples, batch: Episode) -> None:
        """Add the queries of a batch; samples are ``[tasks, samples, query, ...]``, with noise."""
        at_targets = vmap(lambda fields, targets: cumulative(Samples(**fields), targets))
        fields = {name: value.float() for name, value in samples.present().items()}
        levels = at_targets(fields, batch.query_y.float())  # [tasks, query, ...]
        self._levels.append((levels if batch.query_mask is None else levels[batch.query_mask]).flatten().cpu())

    def draw(self) -> Figure:
        """Draw the share of targets below each predictive quantile against the quantile's level."""
        from matplotlib.figure import Figure

        levels = torch.cat(self._levels).sort().values
        shares = torch.arange(1, len(levels) + 1) / len(levels)
        figure = Figure(figsize=(5, 5), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="calibrated")
        axis.plot(levels.numpy(), shares.numpy(), color="tab:blue", label="learner")
        covered = float(((levels >= 0.05) & (levels <= 0.95)).float().mean())
        axis.set(xlabel="level of the predictive quantile", ylabel="share of targets below it", xlim=(0, 1))
        axis.set(ylim=(0, 1), title=f"90 % interval holds {100 * covered:.1f} % of {len(levels)} targets")
        axis.legend(loc="upper left")
        axis.grid(alpha=0.2)
        return figure


Calibration = ClassCalibration | QuantileCalibration


def add_to_calibration(
    calibration: Calibration | None, loss_fn: LossFunction, outputs: dict[str, Any], batch: Episode
) -> Calibration | None:
    """Add what an evaluation step returned; None if the learner's outputs are no predictive distribution.

    Args:
        calibration: What this function returned for the batch before; None for the first.
        loss_fn: The learner's loss.
        outputs: The fields of the report.
        batch: The tasks.
    """
    scores, samples = outputs["outputs"][:, -1], Samples(**outputs["samples"])
    targets = batch.query_y
    if not isinstance(targets, Tensor):
        return None
    if likelihood_of(loss_fn) == "gaussian" and samples.noise is not None:
        quantiles = calibration if isinstance(calibration, QuantileCalibration) else QuantileCalibration()
        quantiles.add(samples, batch)
        return quantiles
    if likelihood_of(loss_fn) == "bernoulli":
        flat = scores.reshape(*scores.shape[:2], -1)
        if flat.shape[2] != 1:
            return None
        scores = torch.cat([torch.zeros_like(flat), flat], dim=2)  # [tasks, query, 2]
        batch = batch._replace(query_y=(targets.reshape(*flat.shape[:2]) > 0.5).long())
    elif targets.is_floating_point() or scores.ndim != 3 or targets.ndim != 2:
        return None
    classes = calibration if isinstance(calibration, ClassCalibration) else ClassCalibration()
    classes.add(scores, batch)
    return classes
