"""Which training steps log metrics: each value logged takes Lightning up to half a millisecond."""

from typing import Any

import lightning as L


def is_shown(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a logger keeps this step's metrics, a callback monitors them, or the step is an epoch's first or last."""
    last = trainer.is_last_batch or trainer.global_step + 1 == trainer.max_steps
    # Lightning's own answer, because with another one a logger would get the values of an earlier step.
    kept = trainer._logger_connector.should_update_logs
    return batch_idx == 0 or last or kept or _is_monitored(trainer)


def _is_monitored(trainer: Any) -> bool:
    """Whether a callback or schedule monitors a training metric other than the loss, which every step logs."""
    observers = [*trainer.callbacks, *trainer.lr_scheduler_configs]
    monitors = [getattr(observer, "monitor", None) or "" for observer in observers]
    return any(monitor.startswith("train/") and monitor != "train/loss" for monitor in monitors)
