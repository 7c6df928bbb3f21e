"""The progress bar of the command line, which shows the metric before and after adaptation."""

from typing import Any

import rich
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import TimeRemainingColumn


class AdaptationProgressBar(RichProgressBar):
    """Lightning's bar with few values: the training loss, and the validation metric before and after adaptation.

    Of a learner without adaptation, that is the first metric; more do not fit a line of 80 columns.

    Where the output is no terminal, as in a log file, there is no bar.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Show nothing where bars would be garbage."""
        super().setup(trainer, pl_module, stage)
        console = rich.get_console()
        if not (console.is_terminal or console.is_jupyter):
            self.disable()

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Return the values to show by name."""
        shown = super().get_metrics(trainer, pl_module)
        found = {"loss": shown["train/loss"]} if "train/loss" in shown else {}
        metrics = [name for name in shown if name.startswith("val/") and name != "val/loss"]
        with_before = [name for name in metrics if f"{name}_pre" in trainer.callback_metrics]
        for name in with_before or metrics[:1]:
            before = trainer.callback_metrics.get(f"{name}_pre")
            found[name] = ("" if before is None else f"{float(before):.3f} -> ") + f"{shown[name]:.3f}"
        return found

    def configure_columns(self, trainer: Any) -> list[Any]:
        """Show a short bar and the time that remains, so that the values have room in 80 columns."""
        description, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = 10
        return [description, bar, batches, TimeRemainingColumn()]
