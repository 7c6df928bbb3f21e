"""What a summary of Weights & Biases keeps."""

from __future__ import annotations

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_meta.callbacks.episodes.wandb_metrics import define_metrics
from tests.offline_runs import offline_runs, without_connection


@pytest.mark.parametrize(("metric", "kept", "expected"), [("acc", "max", 0.9), ("mse", "min", 0.1)])
def test_a_summary_keeps_the_best_value_which_is_neither_the_first_nor_the_last(metric, kept, expected, tmp_path):
    with without_connection(tmp_path):
        logger = WandbLogger(save_dir=tmp_path, offline=True)
        define_metrics(logger.experiment)
        for step, value in enumerate([0.5, 0.1, 0.9, 0.4]):
            logger.log_metrics({f"val/{metric}": value}, step)
        wandb.finish()
        (run,) = offline_runs(tmp_path)
    assert run.summary[f"val/{metric}"] == {kept: pytest.approx(expected)}
