"""In which training steps metrics are logged, of which each takes Lightning up to half a millisecond."""

from __future__ import annotations

from typing import Any

import lightning as L


def is_shown(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a step's metrics are kept by a logger, monitored, or those of an epoch's first or last step."""
    last = trainer.is_last_batch or trainer.global_step + 1 == trainer.max_steps
    # Lightning's own answer: a step counted otherwise would leave a logger the values of an earlier one.
    kept = trainer._logger_connector.should_update_logs
    return batch_idx == 0 or last or kept or _is_monitored(trainer)


def _is_monitored(trainer: Any) -> bool:
    """Whether a callback or schedule reads a training metric besides the loss, which every step logs."""
    observers = [*trainer.callbacks, *trainer.lr_scheduler_configs]
    monitors = [getattr(observer, "monitor", None) or "" for observer in observers]
    return any(monitor.startswith("train/") and monitor != "train/loss" for monitor in monitors)
