"""Training for an analysis, on one device and without logs, validation or checkpoints."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_meta.data.episodes import EpisodeDataset, EpisodeLoader, EpisodeSampler
from lightning_meta.episodes.episode import collate_episodes
from lightning_meta.learners.task_learner import TaskLearner


def train_for(learner: TaskLearner, tasks: EpisodeDataset, steps: int, tasks_per_batch: int) -> None:
    """Train a learner in place for a number of outer steps, with its own optimizer; it stays on its device.

    The tasks are those that training takes: fresh ones in every epoch, if the data set has no bound.
    """
    device = learner.device
    loader = EpisodeLoader(
        tasks, batch_size=tasks_per_batch, sampler=EpisodeSampler(tasks, fresh=True), collate_fn=collate_episodes
    )
    learner.train()
    quiet_trainer(max_steps=steps, max_epochs=-1, limit_val_batches=0).fit(learner, loader, val_dataloaders=[])
    learner.to(device)
    learner.zero_grad(set_to_none=True)


def quiet_trainer(**options: Any) -> L.Trainer:
    """Return a trainer on one CPU or GPU that shows and saves nothing."""
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="auto", devices=1, enable_checkpointing=False, **silent, **options)
