"""A reliability diagram of a classifier's test tasks."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from lightning_meta.callbacks.pictures import save_picture
from lightning_meta.episodes.episode import Episode
from lightning_meta.metrics.uncertainty import CALIBRATION_BINS


class ReliabilityDiagram(L.Callback):
    """After a test, draws accuracy against confidence in 15 bins over the queries of all tasks.

    The title gives the expected calibration error over all queries. It is lower than ``test/ece``, the mean of the
    tasks' own errors, because a task has too few queries to fill the bins.
    """

    def __init__(self) -> None:
        self._confidence: list[Tensor] = []
        self._correct: list[Tensor] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the queries of earlier tests."""
        self._confidence, self._correct = [], []

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Episode,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep each query's confidence, and whether its predicted class is right."""
        logits = outputs["outputs"][:, -1]
        if logits.ndim != 3 or batch.query_y.is_floating_point():
            raise ValueError(
                f"ReliabilityDiagram needs scores [tasks, query, classes], not outputs of shape {tuple(logits.shape)}"
            )
        confidence, predicted = logits.softmax(2).max(2)  # [tasks, query]
        counts = torch.ones_like(predicted, dtype=torch.bool) if batch.query_mask is None else batch.query_mask
        self._confidence.append(confidence[counts].cpu())
        self._correct.append((predicted == batch.query_y)[counts].cpu())

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and save ``reliability_diagram.png``; on several devices, from the first one's tasks."""
        if not trainer.is_global_zero:
            return
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
        save_picture(trainer, figure, "reliability_diagram")
