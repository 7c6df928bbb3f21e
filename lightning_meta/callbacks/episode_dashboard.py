"""A dashboard of tasks for every logger."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_meta.arguments import check_count
from lightning_meta.callbacks.calibration import Calibration, add_to_calibration
from lightning_meta.callbacks.episodes.episode_figures import draw_episodes
from lightning_meta.callbacks.episodes.figures import draw_adaptation, draw_difficulty, draw_rates
from lightning_meta.callbacks.episodes.learned_rates import learned_rates, rate_metrics
from lightning_meta.callbacks.episodes.outlets import Shown, is_remote, outlet_of, rendered
from lightning_meta.callbacks.episodes.record import Record, record_of
from lightning_meta.callbacks.episodes.tables import Table, episode_table, per_task_table
from lightning_meta.callbacks.episodes.wandb_metrics import define_metrics
from lightning_meta.data.base import scope_of
from lightning_meta.episodes import Episode
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.learners.randomness import keeping_random_state
from lightning_meta.learners.step_logging import is_shown
from lightning_meta.learners.task_learner import TaskLearner

_logger = logging.getLogger(__name__)


class EpisodeDashboard(L.Callback):
    """Shows in every logger how a learner adapts: in validation while it trains, and in ``validate`` and ``test``.

    In training it logs ``train/meta_gradient_norm``, before clipping. After an evaluation, with ``STAGE`` either "val"
    or "test", it logs what the learner and the data have of:

    - ``STAGE_episodes/METRIC_step_K``: accuracy or error after K inner steps, as a mean over the shown tasks, or over
      all tasks if the learner has ``log_step_metrics``, and ``STAGE_episodes/inner_gradient_norm_step_K``, the norm of
      the gradient (or of the direction that the learner gives its update rule) after K steps, as a mean over the shown
      tasks;
    - ``STAGE_episodes/adaptation``: both and the support loss as a picture, with the curves of earlier evaluations;
    - ``STAGE_episodes/examples``: a table of the shown tasks' examples with truth, prediction and uncertainty, and
      ``STAGE_episodes/tasks``, a picture of them;
    - ``STAGE_episodes/calibration``: a reliability diagram, or for regressions with a noise model the share of targets
      below each predictive quantile;
    - ``STAGE_episodes/difficulty`` and ``STAGE_episodes/difficulty_histogram``: the metric's distribution over tasks;
    - ``STAGE_episodes/per_task``: a table of the metrics of each task;
    - ``learned_rates/PARAMETER``: the mean learned inner rate, and ``STAGE_episodes/learned_rates``, their picture.

    Weights & Biases gets all of it, and summaries with the best of each metric. TensorBoard gets scalars, pictures and
    histograms, `CSVLogger` scalars, and both tables as CSV files in ``episodes/`` of their folder, where `CSVLogger`'s
    pictures are too. Other loggers get scalars.

    Training does not change, nor do its random numbers. A dashboard costs an evaluation of ``num_episodes`` tasks on
    the first process and the drawing, which takes about a second. If showing an evaluation fails, a warning says so
    once, and the run goes on.

    Args:
        num_episodes: How many tasks to show.
        num_examples: The most examples to show of a task's support or query set in the table.
        every_n_validations: Shows the first of so many validations of a training; others are left out.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If the module that is trained is not a `TaskLearner`.
    """

    def __init__(self, num_episodes: int = 4, num_examples: int = 20, every_n_validations: int = 1) -> None:
        check_count("num_episodes", num_episodes)
        check_count("num_examples", num_examples)
        check_count("every_n_validations", every_n_validations)
        self.num_episodes = num_episodes
        self.num_examples = num_examples
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._history: dict[str, list[tuple[int, Record]]] = {"val": [], "test": []}
        self._shows = self._has_warned = False
        self._batches: list[Episode] = []
        self._calibration: Calibration | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the module and the loggers, and tell Weights & Biases how to show the metrics."""
        if not isinstance(pl_module, TaskLearner):
            raise TypeError(f"EpisodeDashboard shows the tasks of a TaskLearner, not a {type(pl_module).__name__}")
        if stage == "validate":
            self._history["val"] = []
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, WandbLogger):
                define_metrics(logger.experiment)
            elif isinstance(logger, TensorBoardLogger | CSVLogger) and is_remote(logger):
                warnings.warn(
                    f"EpisodeDashboard saves no files in {logger.log_dir}: it writes to local folders alone",
                    stacklevel=2,
                )

    # ---- Training. ------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget earlier trainings."""
        self._validations = 0
        self._history["val"] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the norm of the meta-gradient in steps that loggers keep."""
        if trainer.loggers and is_shown(trainer, trainer.fit_loop.batch_idx):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.stack([gradient.detach().float().norm() for gradient in gradients]).norm()
            pl_module.log("train/meta_gradient_norm", norm)

    # ---- Evaluation. ----------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide whether to show this validation."""
        fits = trainer.state.fn == "fit"
        shows = not trainer.sanity_checking and (not fits or self._validations % self.every_n_validations == 0)
        self._validations += fits and not trainer.sanity_checking
        self._start(trainer, shows)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last test."""
        self._history["test"] = []
        self._start(trainer, True)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Episode,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is shown of a batch."""
        self._keep(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Episode,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is shown of a batch."""
        self._keep(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the validation."""
        self._show(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the test."""
        self._show(trainer, pl_module, "test")

    # ---- Inside. --------------------------------------------------------------------------------------------

    def _start(self, trainer: L.Trainer, shows: bool) -> None:
        self._shows = shows and bool(trainer.loggers)
        self._batches, self._calibration = [], None

    def _keep(self, trainer: L.Trainer, learner: Any, outputs: Any, batch: Episode) -> None:
        if not self._shows or not trainer.is_global_zero:
            return
        missing = self.num_episodes - sum(kept.num_tasks for kept in self._batches)
        if missing > 0:
            # Whole batches draw the random numbers of the evaluation; of others a copy, which frees the rest.
            whole = batch.num_tasks <= missing
            self._batches.append(batch if whole else map_leaves(Tensor.clone, batch.select(slice(0, missing))))
        with self._guarded():
            self._calibration = add_to_calibration(self._calibration, learner.loss_fn, outputs, batch)

    def _show(self, trainer: L.Trainer, learner: Any, stage: str) -> None:
        if not self._shows:
            return
        per_task = learner.per_task(stage)  # collects from all processes, so that all must call it
        if not trainer.is_global_zero:
            return
        per_task = {name: values.float().cpu() for name, values in per_task.items()}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning logs the metrics of an evaluation
        with self._guarded():
            # Drawing must not happen in this context, which may make bfloat16 torch's default.
            with keeping_random_state(learner.device), trainer.precision_plugin.forward_context():
                record = record_of(learner, self._batches, per_task, self.num_episodes, trainer.world_size)
            self._history[stage].append((step, record._replace(episodes=[])))
            shown = self._shown(trainer, learner, stage, record, per_task)
            for logger in trainer.loggers:
                outlet_of(logger).show(shown, step)
        self._batches, self._calibration = [], None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn an error into a warning; for what the first process does alone, without messages to the others."""
        try:
            yield
        except Exception as error:  # whatever it is, a picture that fails must not end a training of days
            _logger.debug("EpisodeDashboard failed", exc_info=True)
            if not self._has_warned:
                self._has_warned = True
                text = f"EpisodeDashboard cannot show an evaluation: {type(error).__name__}: {error}"
                warnings.warn(f"{text}. The run goes on without.", stacklevel=2)

    def _shown(
        self, trainer: L.Trainer, learner: Any, stage: str, record: Record, per_task: Mapping[str, Tensor]
    ) -> Shown:
        section = f"{stage}_episodes"
        scalars = rate_metrics(learner)
        for name, curve in ((record.metric, record.curve), ("inner_gradient_norm", record.gradient_norm)):
            if curve is not None:
                scalars |= {f"{section}/{name}_step_{k}": v for k, v in zip(curve.steps, curve.mean, strict=True)}
        rates = learned_rates(learner)
        data = getattr(trainer, "datamodule", None)
        preparation, scope = getattr(data, "preparation", None), scope_of(data)
        figures = {
            "adaptation": draw_adaptation(record.metric, self._history[stage], scope),
            "tasks": draw_episodes(record.episodes, preparation),
            "calibration": None if self._calibration is None else self._calibration.draw(),
            "difficulty": draw_difficulty(record.metric, per_task, scope),
            "learned_rates": draw_rates(rates, learner.inner_lr) if rates else None,
        }
        tables: dict[str, Table] = {
            "examples": episode_table(record.episodes, self.num_examples, preparation),
            "per_task": per_task_table(per_task),
        }
        pictures = {name: rendered(figure) for name, figure in figures.items() if figure is not None}
        finite = per_task[record.metric][per_task[record.metric].isfinite()]
        return Shown(section, scalars, pictures, tables, {"difficulty_histogram": finite} if len(finite) else {})
