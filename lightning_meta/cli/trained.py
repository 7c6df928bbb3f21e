"""The learner of a command that takes a configuration and a checkpoint of its training."""

from __future__ import annotations

from typing import Any

from lightning_meta.checkpoints.checked_io import read_checkpoint
from lightning_meta.checkpoints.loading import check_learner_class, check_preparation
from lightning_meta.cli.lightning_cli import MetaLearningCLI
from lightning_meta.learners.task_learner import TaskLearner


def trained_learner(cli: MetaLearningCLI, ckpt_path: Any) -> TaskLearner:
    """Return the configuration's learner with the parameters of a checkpoint.

    Raises:
        ValueError: If another configuration's training saved the checkpoint.
    """
    checkpoint, data = read_checkpoint(ckpt_path, "cpu"), cli.datamodule
    data.prepare_data()
    data.setup("fit")
    check_learner_class(checkpoint, type(cli.model))
    own = None if data.preparation is None else data.preparation.state()
    check_preparation(checkpoint.get("meta_learner_preparation"), own)
    learner: TaskLearner = cli.model
    learner.on_load_checkpoint(checkpoint)
    learner.load_state_dict(checkpoint["state_dict"])
    return learner
