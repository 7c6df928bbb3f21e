"""The learner of a command that takes a configuration and a checkpoint of its training."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

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
    checkpoint, data = read_checkpoint(ckpt_path, "cpu"), cli.datamodule
    learner: TaskLearner = cli.model
    with _naming_the_configuration(ckpt_path):
        check_learner_class(checkpoint, type(learner), cure="pass the configuration of its training with --config")
        learner.on_load_checkpoint(checkpoint)
        if not accept_differences:
            _check_arguments(learner_differences(checkpoint, learner), data_differences(checkpoint, data))
        _check_parameters(checkpoint["state_dict"], learner.state_dict())
    data.prepare_data()
    data.setup("fit")
    with _naming_the_configuration(ckpt_path):
        own = None if data.preparation is None else data.preparation.state()
        check_preparation(checkpoint.get("meta_learner_preparation"), own)
    learner.load_state_dict(checkpoint["state_dict"])
    return learner


def _check_arguments(of_learner: Differences, of_data: Differences) -> None:
    found = {f"model.{name}": values for name, values in of_learner.items()}
    found |= {f"data.{name}": values for name, values in of_data.items()}
    if not found:
        return
    said = [
        f"{name} is {shortened(trained)} in the checkpoint and {shortened(own)} in the configuration"
        for name, (trained, own) in found.items()
    ]
    flags = [
        f"--{name} {shlex.quote(str(trained))}"
        for name, (trained, _) in found.items()
        if isinstance(trained, int | float | str) and name != "data.class"
    ]
    complete = len(flags) == len(found) <= _SHOWN
    cure = f"pass {' '.join(flags)}" if complete else "pass the configuration of its training"
    raise ValueError(f"{_first(said)}: {cure}, or go on with the configuration's values by --accept_differences")


def _check_parameters(trained: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if found := parameter_differences(trained, own):
        raise ValueError(f"{_first(found, 1)}: pass the model of the checkpoint's training")


def _first(said: list[str], count: int = _SHOWN) -> str:
    more = len(said) - count
    return "; ".join(said[:count]) + (f" (and {more} more differences)" if more > 0 else "")


@contextmanager
def _naming_the_configuration(ckpt_path: Any) -> Iterator[None]:
    """Add to a ValueError which configuration was saved beside the checkpoint, if one was."""
    try:
        yield
    except ValueError as error:
        saved = Path(str(ckpt_path)).parent.parent / "config.yaml"
        if not saved.is_file():
            raise
        raise ValueError(f"{error}. The training saved its configuration as {saved}") from error
