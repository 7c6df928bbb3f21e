"""The command line, ``lightning-meta``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.cli import ArgsType

from lightning_meta.cli.adapt import adapt_command
from lightning_meta.cli.baselines import baselines_command
from lightning_meta.cli.lightning_cli import run

_COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {"adapt": adapt_command, "baselines": baselines_command}


def main(args: ArgsType = None) -> Any:
    """Run the command line.

    Args:
        args: Arguments as a list of strings, or a configuration as a dictionary; None: those of the process.

    Returns:
        For ``adapt`` the predictions, for ``baselines`` the table, otherwise the finished command line, with
        ``trainer``, ``model`` and ``datamodule``.
    """
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list) and given and given[0] in _COMMANDS:
        return _COMMANDS[given[0]](given[1:])
    return run(args)


def command() -> None:
    """Run ``lightning-meta``; without a return value, which would become the exit status."""
    main()
