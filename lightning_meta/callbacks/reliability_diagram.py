"""A reliability diagram of a classifier's test tasks."""

from typing import Any

import lightning as L

from lightning_meta.callbacks.calibration import ClassCalibration
from lightning_meta.callbacks.pictures import save_picture
from lightning_meta.episodes.episode import Episode


class ReliabilityDiagram(L.Callback):
    """After a test, draws accuracy against confidence in 15 bins over the queries of all tasks.

    The title gives the expected calibration error over all queries. It is lower than ``test/ece``, the mean of the
    tasks' own errors, because a task has too few queries to fill the bins.
    """

    def __init__(self) -> None:
        self._calibration = ClassCalibration()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the queries of earlier tests."""
        self._calibration = ClassCalibration()

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
        self._calibration.add(logits, batch)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and save ``reliability_diagram.png``; on several devices, from the first one's tasks."""
        save_picture(trainer, self._calibration.draw, "reliability_diagram")
