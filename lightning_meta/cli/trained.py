"""The learner of a command that takes a configuration and a checkpoint of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_meta.checkpoints.checked_io import read_checkpoint
from lightning_meta.checkpoints.content import shortened
from lightning_meta.checkpoints.differences import (
    Differences,
    data_differences,
    learner_differences,
    parameter_differences,
)
from lightning_meta.checkpoints.loading import check_learner_class, check_preparation
from lightning_meta.cli.lightning_cli import MetaLearningCLI
from lightning_meta.learners.task_learner import TaskLearner

_SHOWN = 5


def add_checkpoint_arguments(parser: Any, without: str) -> None:
    """Add the arguments that `trained_learner` takes to a parser.

    Args:
        parser: The parser of a command's arguments.
        without: What the command does without a checkpoint, a clause for the help.
    """
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help=f"The trained learner; without it, {without}."
    )
    parser.add_argument(
        "--accept_differences",
        action="store_true",
        help="Go on if the configuration has other arguments than the checkpoint's training; its own then count.",
    )


def trained_learner(cli: MetaLearningCLI, ckpt_path: Any, accept_differences: bool = False) -> TaskLearner:
    """Return the configuration's learner with the parameters of a checkpoint, and set up the data.

    Args:
        cli: The command line with learner and data module.
        ckpt_path: The checkpoint.
        accept_differences: Whether to go on if arguments of learner or data differ from the training's.

    Raises:
        ValueError: If another configuration's training saved the checkpoint. All but the preparation of the data is
            compared before these are read.
    """
    checkpoint, learner, data = read_checkpoint(ckpt_path, "cpu"), cli.model, cli.datamodule
    try:
        _check_learner(checkpoint, learner)
        if not accept_differences:
            _check_arguments({"model": learner_differences(checkpoint, learner)})
            _check_arguments({"data": data_differences(checkpoint, data)})
        _check_parameters(checkpoint["state_dict"], learner)
        data.prepare_data()
        data.setup("fit")
        own = None if data.preparation is None else data.preparation.state()
        check_preparation(checkpoint.get("meta_learner_preparation"), own)
    except ValueError as error:
        config = Path(ckpt_path).parent.parent / "config.yaml"
        if not config.is_file():
            raise
        raise ValueError(f"{error}. The configuration of its training seems to be --config {config}") from error
    learner.load_state_dict(checkpoint["state_dict"])
    return learner
