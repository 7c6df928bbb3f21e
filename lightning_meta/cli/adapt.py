"""``lightning-meta adapt``: predictions for the examples of one file from the labelled examples of another."""

import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from jsonargparse import ArgumentParser

from lightning_meta import arguments
from lightning_meta.cli.bad_input import one_message
from lightning_meta.data.tables import check_output, write_table
from lightning_meta.models.batch_statistics import BatchStatistics
from lightning_meta.prediction import FewShotPredictor


def adapt(
    ckpt_path: str,
    support: str,
    query: str,
    output: str,
    task_column: str | None = None,
    coverage: float | None = None,
    steps: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    allow: list[str] | None = None,
    batch_statistics: BatchStatistics | None = None,
) -> pl.DataFrame:
    """Adapt a trained learner to labelled examples, and write its predictions for others.

    Args:
        ckpt_path: A checkpoint of a training on tables, text or pictures. It also says how the data are prepared.
        support: The labelled examples: a CSV, Parquet or JSON file; for pictures a folder with a folder of each class.
        query: The examples to predict: such a file without labels; for pictures a folder.
        output: The file for the predictions, a CSV, Parquet or JSON file: the query's columns, and those of the
            predictions.
        task_column: The column that names the task of a row; default: the one of the training, if the support has it.
        coverage: The probability that the interval of a regression, or the set of classes, should contain the target;
            default: 0.9. If validation had too few tasks for a coverage that is given, this is an error.
        steps: Inner steps; default: the learner's eval_inner_steps.
        overwrite: Whether to replace the output file if it exists.
        seed: The seed of random draws.
        allow: Classes of your own that the checkpoint may name, as import paths.
        batch_statistics: The statistics of batch normalization; default: those of the training. With "batch" the rows
            of a file influence each other's predictions, with "support" they do not.

    Returns:
        The predictions.
    """
    arguments.check_coverage(0.9 if coverage is None else coverage)
    path = check_output(output, overwrite)
    for source in (support, query):
        if path.exists() and path.samefile(source):
            raise ValueError(f"output={output!r} is also an input: name another file")
    options = {} if batch_statistics is None else {"batch_statistics": batch_statistics}
    predictor = FewShotPredictor.from_checkpoint(ckpt_path, allow or (), seed, **options)
    predictions = predictor.adapt(support, task_column, steps).predict(query, coverage)
    write_table(predictions, path)
    return predictions


def adapt_command(args: Sequence[str]) -> pl.DataFrame:
    """Run ``lightning-meta adapt``; bad input ends it with status 2 and one message, and nothing is written."""
    parser = ArgumentParser(
        allow_abbrev=False,
        prog="lightning-meta adapt",
        description="Adapt a trained learner to labelled examples, and write its predictions for others.",
    )
    parser.add_function_arguments(adapt, as_group=False, skip={"overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="Replace the output file if it exists.")
    config = parser.parse_args(list(args))
    with one_message("lightning-meta adapt"):
        predictions = adapt(**vars(config))
    print(f"{len(predictions)} predictions are saved in {Path(config.output)}", file=sys.stderr)
    return predictions
