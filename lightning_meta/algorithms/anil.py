"""MAML that adapts a part of the model.

Papers: Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv 1909.09157 (ANIL);
Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, arXiv 2008.08882.

Differences from the papers: none in the algorithm. Any other part can be adapted by ``MAML(adapt=[patterns])``.
"""

from __future__ import annotations

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_meta.algorithms.maml import MAML
from lightning_meta.batch_statistics import BatchStatistics
from lightning_meta.learner import SchedulerInterval
from lightning_meta.losses import LossFunction
from lightning_meta.task_mapping import CompileMode


class ANIL(MAML):
    """Almost no inner loop: only the head adapts (``MAML(adapt="head")``). Arguments as in `MAML`."""

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
            adapt="head",
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            task_chunk_size=task_chunk_size,
            compile=compile,
            batch_statistics=batch_statistics,
            log_step_metrics=log_step_metrics,
        )


class BOIL(MAML):
    """Body only in the inner loop: all but the head adapts (``MAML(adapt="body")``). Arguments as in `MAML`."""

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
            adapt="body",
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            task_chunk_size=task_chunk_size,
            compile=compile,
            batch_statistics=batch_statistics,
            log_step_metrics=log_step_metrics,
        )
