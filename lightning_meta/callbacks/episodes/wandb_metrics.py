"""How Weights & Biases shows the metrics of a run: their axis, and which value its summary keeps."""

from typing import Any

STAGES = ("train", "val", "test")
BEST = {"acc": "max", "loss": "min", "mse": "min", "nll": "min", "ece": "min", "brier": "min"}
AXIS = "trainer/global_step"


def define_metrics(run: Any) -> None:
    """Make the training step the axis of all metrics; summaries keep the best accuracy, loss, error and calibration."""
    run.define_metric(AXIS)
    run.define_metric("*", step_metric=AXIS, step_sync=True)
    for stage in STAGES:
        for name, best in BEST.items():
            run.define_metric(f"{stage}/{name}", step_metric=AXIS, step_sync=True, summary=best)
