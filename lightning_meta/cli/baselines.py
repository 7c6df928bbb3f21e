"""``lightning-meta baselines``: the test result of a learner beside those of baselines."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from lightning_meta.analysis.comparison import compare_with_baselines
from lightning_meta.checkpoints.checked_io import read_checkpoint
from lightning_meta.cli.lightning_cli import MetaLearningCLI, run
from lightning_meta.data.tables import check_output, write_table


class BaselinesCLI(MetaLearningCLI):
    """Lightning's command line with the arguments of the comparison."""

    def add_arguments_to_parser(self, parser: object) -> None:
        """Add the checkpoint, the baseline that is trained, and the output."""
        add = parser.add_argument  # type: ignore[attr-defined]
        add("--ckpt_path", type=str | None, default=None, help="The trained learner; without it, baselines alone.")
        add("--pooled_epochs", type=int, default=0, help="Epochs in which to train the model without adaptation.")
        add("--output", type=str | None, default=None, help="A CSV, Parquet or JSON file for the table.")
        add("--overwrite", action="store_true", help="Replace the output file if it exists.")


def baselines_command(args: Sequence[str]) -> pl.DataFrame:
    """Run ``lightning-meta baselines``: print the table, and return it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # which come from the command line here
        cli = run(list(args), cls=BaselinesCLI, run=False)
    path = None if cli.config.output is None else check_output(cli.config.output, cli.config.overwrite)
    learner = None
    if cli.config.ckpt_path is not None:
        learner = cli.model
        checkpoint = read_checkpoint(Path(cli.config.ckpt_path), "cpu")
        learner.on_load_checkpoint(checkpoint)
        learner.load_state_dict(checkpoint["state_dict"])
    found = compare_with_baselines(cli.datamodule, learner, cli.config.pooled_epochs)
    table = Table("learner", f"test {found['metric'][0]}", "95 % interval", "tasks", "penalty")
    for row in found.iter_rows(named=True):
        chosen = "" if row["penalty"] is None else f"{row['penalty']:g}"
        table.add_row(row["learner"], f"{row['mean']:.4f}", f"± {row['ci95']:.4f}", str(row["tasks"]), chosen)
    Console().print(table)
    if path is not None:
        write_table(found, path)
    return found
