"""Metrics over tasks, and of uncertainty."""

from lightning_meta.metrics.task_metrics import MeanOverTasks, TaskMetrics, per_task_metrics

__all__ = ["MeanOverTasks", "TaskMetrics", "per_task_metrics"]
