"""``lightning-meta baselines``: the test result of a learner beside those of baselines."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import polars as pl
from rich.console import Console
from rich.table import Table

from lightning_meta.analysis.comparison import compare_with_baselines
from lightning_meta.cli.bad_input import one_message
from lightning_meta.cli.lightning_cli import MetaLearningCLI, run
from lightning_meta.cli.run_configuration import OF_SUBCOMMANDS
from lightning_meta.cli.saved import say_saved
from lightning_meta.cli.trained import add_checkpoint_arguments, trained_learner
from lightning_meta.data.tables import check_output, write_table


class BaselinesCLI(MetaLearningCLI):
    """Lightning's command line with the arguments of the comparison."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the checkpoint, the baseline that is trained, and the output."""
        add = parser.add_argument
        add_checkpoint_arguments(parser, without="baselines alone")
        add("--pooled_epochs", type=int, default=0, help="Epochs in which to train the model without adaptation.")
        add("--output", type=str | None, default=None, help="A CSV, Parquet or JSON file for the table.")
        add("--overwrite", action="store_true", help="Replace the output file if it exists.")
        for argument in OF_SUBCOMMANDS[1:]:  # `ckpt_path` is its own
            add(f"--{argument}", default=None, help="In configurations that a run saved; without effect.")


_SILENT = {"logger": False, "callbacks": None, "enable_checkpointing": False}
_SILENT |= {"enable_progress_bar": False, "enable_model_summary": False}


def baselines_command(args: Sequence[str]) -> pl.DataFrame:
    """Run ``lightning-meta baselines``: print the table, and return it; bad input ends it with status 2."""
    cli = run(list(args), cls=BaselinesCLI, run=False)
    trainer = L.Trainer(**{**cli.config_init.trainer, **_SILENT})
    with one_message("lightning-meta baselines"):
        found = _compared(cli, trainer)
    if trainer.is_global_zero:
        _print_table(found, cli.datamodule.interval_scope)
        if cli.config.output is not None:
            say_saved(table=cli.config.output)
    return found


def _print_table(found: pl.DataFrame, scope: str) -> None:
    table = Table("learner", f"test {found['metric'][0]}", "95 % interval", "tasks", "penalty")
    for row in found.iter_rows(named=True):
        chosen = "" if row["penalty"] is None else f"{row['penalty']:g}"
        table.add_row(row["learner"], f"{row['mean']:.4f}", f"± {row['ci95']:.4f}", str(row["tasks"]), chosen)
    console = Console()
    console.print(table)
    console.print(f"Means over test tasks, ± 95 % interval {scope}.")


def _compared(cli: MetaLearningCLI, trainer: L.Trainer) -> pl.DataFrame:
    config, data = cli.config, cli.datamodule
    path = None if config.output is None else check_output(config.output, config.overwrite)
    learner = None if config.ckpt_path is None else trained_learner(cli, config.ckpt_path, config.accept_differences)
    found = compare_with_baselines(data, learner, config.pooled_epochs, trainer)
    if path is not None and trainer.is_global_zero:
        write_table(found, path)
    return found
