"""MAML that learns its inner rates element by element.

Paper: Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, arXiv 1707.09835:
φ = θ − α ∘ ∇L_S(θ) (equation 4), with θ and the vector α learned together.

Differences from the paper: α starts at a constant rather than at random values; several steps are possible and
share one α.
"""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_meta.algorithms.maml import MAML
from lightning_meta.batch_statistics import BatchStatistics
from lightning_meta.learner import SchedulerInterval
from lightning_meta.losses import LossFunction
from lightning_meta.task_mapping import CompileMode


class MetaSGD(MAML):
    """MAML with a learned inner rate for every scalar parameter, starting at ``inner_lr``. Arguments as in `MAML`."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: SchedulerInterval = "epoch",
        task_chunk_size: int | None = None,
        compile: CompileMode = None,
        batch_statistics: BatchStatistics = "batch",
        log_step_metrics: bool = False,
    ) -> None:
        super().__init__(
            model=model,
            loss_fn=loss_fn,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            eval_inner_steps=eval_inner_steps,
            first_order=first_order,
            learned_rates="element",
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            task_chunk_size=task_chunk_size,
            compile=compile,
            batch_statistics=batch_statistics,
            log_step_metrics=log_step_metrics,
        )
